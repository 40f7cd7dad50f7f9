"""The images of a folder: which files, in which order."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ..errors import InputError
from ..files import IMAGE_ENDINGS, draw_names, image_names
from ..runs import Storage, to_csv

NAME: Final = "images.csv"
_HEADER: Final = ("file", "bytes")
_ESCAPED: Final = "surrogateescape"  # names of files that are no UTF-8


@dataclass(frozen=True)
class FileList:
    """Image files by name and size, sorted; the index of a file is its number in all results."""

    files: tuple[tuple[str, int], ...]  # (name, bytes) of each

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names only."""
        return tuple(name for name, _ in self.files)

    def to_csv(self) -> bytes:
        """As the output folder keeps it."""
        return to_csv(_HEADER, self.files)

    @classmethod
    def from_csv(cls, content: bytes) -> FileList:
        """Read what :meth:`to_csv` gave; InputError where it is something else."""
        try:
            header, *rows = csv.reader(io.StringIO(content.decode("utf-8", _ESCAPED), newline=""))
            if tuple(header) != _HEADER:
                raise ValueError(f"the columns are {header}")
            return cls(tuple((name, int(size)) for name, size in rows))
        except (ValueError, csv.Error) as error:
            raise InputError(f"{NAME} is not what a study wrote ({error}).") from error

    def difference(self, before: FileList) -> str:
        """In words what changed since then; "" where nothing did."""
        now, then = dict(self.files), dict(before.files)
        changes = {
            "new": [name for name in now if name not in then],
            "gone": [name for name in then if name not in now],
            "of another size": [n for n in now if n in then and now[n] != then[n]],
        }
        return ", ".join(
            f"{len(names)} {what} (such as {names[0]})" for what, names in changes.items() if names
        )


def list_images(
    images: Storage, output: Storage | None = None, *, limit: int | None = None, seed: int = 0
) -> FileList:
    """Image files of a folder and the folders in it, hidden ones and results left out.

    The output may lie inside. A sample of `limit` is that of :func:`captum_clip.files.draw_names`.

    Raises:
        InputError: there is no folder or no image file in it, or the output is the same folder.
    """
    inside = None if output is None else output.name_inside(images)
    if inside == ".":
        raise InputError(
            f"the results cannot go into the folder of the images, {images.root}; name another, "
            "such as one in it."
        )
    sizes = dict(images.files())
    names = [
        name for name in image_names(sizes) if inside is None or not name.startswith(f"{inside}/")
    ]
    if not names:
        endings = ", ".join(IMAGE_ENDINGS)
        raise InputError(f"there is no image file ({endings}) in {images.root}.")
    return FileList(tuple((name, sizes[name]) for name in draw_names(names, limit, seed)))
