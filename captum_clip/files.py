"""Files that are whole or not there, and which files of a folder are images."""

import csv
import hashlib
import os
import re
import secrets
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from .checks import expand
from .errors import InputError

IMAGE_ENDINGS: Final = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif"),
)
"""Endings of the files that are taken for images."""

MARK: Final = "figure of captum-clip"
"""What every image that this package writes says in its metadata."""

DAMAGED: Final = (
    *(OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, NotImplementedError),
    *(MemoryError, OverflowError, zipfile.BadZipFile, zlib.error, struct.error),
    *(SyntaxError, tokenize.TokenError, IndexError, AttributeError),  # NumPy reads headers as code
)
"""All that zipfile and NumPy raise over bits that are not theirs."""


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write next to the file, then put it in its place; after a failure nothing is left."""
    if path.is_symlink():  # its file is replaced, and not the link
        path = Path(os.path.realpath(path))
    # a name may have 255 bytes, and this one is longer
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # a name must never outlive its content
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write {path}: {reason}.") from error
    finally:
        with suppress(OSError):  # it would hide the reason
            temporary.unlink(missing_ok=True)


def read_csv(path: Path) -> list[list[str]]:
    """The rows of a CSV file in UTF-8 that are not blank; InputError where it is none."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            # strict: else an open quote would swallow all the rows that follow it
            return [row for row in csv.reader(file, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV in UTF-8 ({error}).") from error


def image_names(names: Iterable[str]) -> list[str]:
    """Find the images among names that are relative to one folder, sorted.

    Hidden files and folders are left out, and so are the figures of earlier studies (all that is
    in a folder with their ``manifest.json`` and ``images.csv``).

    Example:
        >>> image_names(["b.png", "a/c.JPG", "notes.txt", ".cache/d.png"])
        ['a/c.JPG', 'b.png']
    """
    paths = {PurePosixPath(name) for name in names}
    manifests = [path for path in paths if path.name == "manifest.json"]
    studies = {path.parent for path in manifests if path.with_name("images.csv") in paths}
    return sorted(
        str(path)
        for path in paths
        if path.suffix.lower() in IMAGE_ENDINGS
        and not any(name.startswith(".") for name in path.parts)
        and not studies.intersection(path.parents)
    )


def is_own_figure(path: Path) -> bool:
    """Whether an image was written by this package: its metadata say so in its first bytes."""
    with suppress(OSError):
        if path.is_file():  # a named pipe would wait for ever
            with open(path, "rb") as file:
                return MARK.encode() in file.read(4096)
    return False


def slug(*texts: str, longest: int = 40) -> str:
    """Texts as a part of a file's name, their letters and digits; what is cut off has a digest.

    Example:
        >>> slug("A horse!", "a dog"), slug("the quick brown fox jumps over the lazy dog")
        ('a-horse_a-dog', 'the-quick-brown-fox-jumps-over-the-lazy-05c6e08f')
    """
    words = "_".join(re.sub(r"[\W_]+", "-", text.lower()).strip("-") for text in texts)
    if len(words) <= longest and words.strip("_"):
        return words
    digest = hashlib.sha256("\n".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{words[:longest].strip('-_')}-{digest}".strip("-") if texts else ""


def draw_names(names: Iterable[str], limit: int | None, seed: int) -> list[str]:
    """A sample of names, in their order; None is all.

    Those whose SHA-256 together with the seed is smallest: the same on every machine, and a larger
    sample holds the smaller one.
    """
    names = list(names)
    return names if limit is None else [names[i] for i in sorted(draw_order(names, seed)[:limit])]


def draw_order(names: Sequence[str], seed: int) -> list[int]:
    """Indices of all names, those that the smaller samples of :func:`draw_names` hold first."""

    def rank(index: int) -> bytes:
        text = f"{seed}/{names[index]}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()

    return sorted(range(len(names)), key=rank)


@contextmanager
def filled_folder(folder: str | Path) -> Iterator[Path]:
    """Make a folder for results; where none comes, it goes again with those made above it."""
    folder = expand(folder)
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield make_folder(folder)
    finally:
        with suppress(OSError):  # it holds something
            for each in new:
                each.rmdir()


def make_folder(folder: str | Path) -> Path:
    """Make a folder where there is none, with those above it; one that can be written to."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(folder)):
        raise InputError(f"{folder} is a URL; give a folder of this machine.")
    folder = expand(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made: {error.strerror}.") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"the folder {folder} is not writable.")
    return folder
