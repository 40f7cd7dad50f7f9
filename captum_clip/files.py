"""Files that are whole or not there."""

from __future__ import annotations

import os
import secrets
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from .errors import InputError

DAMAGED: Final = (
    *(OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, NotImplementedError),
    *(MemoryError, OverflowError, zipfile.BadZipFile, zlib.error, struct.error),
)
"""All that zipfile and NumPy raise over bits that are not theirs."""


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write beside the file, then put it in its place; after a failure nothing is left.

    Raises:
        InputError: the folder or the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            write(file)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write {path}: {reason}.") from error
    finally:
        with suppress(OSError):  # it would hide the reason
            temporary.unlink(missing_ok=True)
