"""Rows of numbers on disk, keyed by content: what was computed once is not computed again.

One folder per model, one file per process that wrote, records of one size appended to it. So
processes never share a file, a record that was cut off or damaged is found by its checksum and
computed again, and what was appended before a process was killed stays.
"""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..checks import expand
from ..errors import InputError

Row = npt.NDArray[np.float32]


def default_cache() -> Path:
    """Where features are kept: ``$CAPTUM_CLIP_CACHE/features``, else the user's cache folder."""
    chosen = os.environ.get("CAPTUM_CLIP_CACHE")
    if chosen:
        return expand(chosen) / "features"
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand(home) / "captum_clip" / "features"


class FeatureCache(dict[bytes, Row]):
    """The rows (D,) of one model by key, a SHA-256, as they were when it was opened.

    Those on disk stay there until one is used. The folder is of this model, and made where there
    is none; None keeps nothing on disk.
    """

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        self._folder = folder
        self._name = secrets.token_hex(8)
        if folder is None:
            return
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.*.rows")):
            for record in _read(path):
                if _checksum(record) == record["crc"]:
                    self.setdefault(record["key"].tobytes(), record["row"])

    def append(self, rows: Sequence[tuple[bytes, Row]]) -> None:
        """Add (key, row) pairs, here and on disk."""
        self.update(rows)
        if self._folder is None or not rows:
            return
        size = rows[0][1].size
        records = np.zeros(len(rows), dtype=_layout(size))
        for record, (key, row) in zip(records, rows, strict=True):
            record["key"], record["row"] = np.frombuffer(key, dtype=np.uint8), row
            record["crc"] = _checksum(record)
        path = self._folder / f"{self._name}.{size}.rows"
        with _explained(self._folder), open(path, "ab") as file:
            file.write(records.tobytes())


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"features cannot be kept in {folder} ({error.strerror or error}); set "
            "CAPTUM_CLIP_CACHE to a folder that can be written to, or pass cache=False."
        ) from error


def _layout(size: int) -> np.dtype[Any]:
    return np.dtype([("key", "u1", (32,)), ("row", "<f4", (size,)), ("crc", "<u4")])


def _checksum(record: Any) -> int:
    return zlib.crc32(record["row"].tobytes(), zlib.crc32(record["key"].tobytes()))


def _read(path: Path) -> Any:
    """The whole records of a file, whose name says their size."""
    try:
        layout = _layout(int(path.suffixes[-2][1:]))
        count = path.stat().st_size // layout.itemsize
        return np.memmap(path, layout, mode="r", shape=(count,))
    except (OSError, ValueError):  # what cannot be read is computed again
        return ()
