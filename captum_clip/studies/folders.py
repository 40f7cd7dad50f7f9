"""Folders for results."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError


def make_folder(folder: str | Path) -> Path:
    """Make a folder where there is none, with those above it.

    Raises:
        InputError: it cannot be made, or not be written to.
    """
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made: {error.strerror}.") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"the folder {folder} is not writable.")
    return folder
