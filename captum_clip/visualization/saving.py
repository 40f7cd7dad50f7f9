"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Final

from matplotlib.figure import Figure

from ..errors import InputError
from ..files import replace_file

FORMATS: Final = (".png", ".pdf", ".svg")
# without the time of day, the same picture is the same file
_METADATA: Final = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, PDF or SVG, by the ending of the name.

    The file appears under its name only when it is complete.

    Args:
        figure: any matplotlib figure.
        path: in an existing folder; an existing file is replaced.

    Returns:
        The path.

    Raises:
        InputError: another ending, or a folder that cannot be written to.
    """
    path = check_destination(path, FORMATS)
    kind = path.suffix.lower()

    def write(file: BinaryIO) -> None:
        figure.savefig(file, format=kind[1:], dpi="figure", metadata=_METADATA[kind])

    replace_file(path, write)
    return path


def check_destination(path: str | Path, formats: tuple[str, ...]) -> Path:
    """See before any work is done whether a file can be written.

    Args:
        path: of the file.
        formats: endings that it may have.

    Raises:
        InputError: another ending, no such folder, a folder without leave to write, or a folder of
            the file's name.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in formats:
        raise InputError(f"cannot write {path}: the name must end in {', '.join(formats)}.")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; make it first.")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder.")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: the folder {path.parent} is not writable.")
    return path
