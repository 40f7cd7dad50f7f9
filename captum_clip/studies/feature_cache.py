"""Rows of numbers on disk, keyed by content: what was computed once is not computed again.

One folder a model, one file a process that wrote, records of one size appended to it. So processes
never share a file, a record that was cut off or damaged is found by its checksum and computed
again, and what was appended before a process was killed stays.
"""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Row = npt.NDArray[np.float32]
KEY_SIZE: Final = 32  # bytes of a SHA-256
_MAGIC: Final = b"captum_clip features 1\n"
_ENDING: Final = ".rows"


def default_cache() -> Path:
    """Where features are kept: ``$CAPTUM_CLIP_CACHE/features``, else the user's cache folder."""
    chosen = os.environ.get("CAPTUM_CLIP_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "features"
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "captum_clip" / "features"


class FeatureCache:
    """The rows of one model; a context that appends to a file of its own.

    Args:
        folder: of this model, made where there is none; None keeps nothing.

    Raises:
        InputError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _refusal(folder, error) from error

    def find(self, keys: Collection[bytes]) -> dict[bytes, Row]:
        """Those of the keys that there are, with their rows (D,)."""
        wanted, found = set(keys), {}
        files = [] if self._folder is None else sorted(self._folder.glob(f"*{_ENDING}"))
        for path in files:
            for record in _records(path):
                key = record["key"].tobytes()
                if key in wanted and key not in found and _checksum(record) == record["crc"]:
                    found[key] = np.array(record["row"], dtype=np.float32)
        return found

    def append(self, rows: Iterable[tuple[bytes, Row]]) -> None:
        """Add (key, row) pairs.

        Raises:
            InputError: the folder or the disk refuses.
        """
        records = [_record(key, row) for key, row in rows]
        if self._folder is None or not records:
            return
        try:
            if self._file is None:
                name = f"{secrets.token_hex(8)}{_ENDING}"
                self._file = open(self._folder / name, "xb")  # noqa: SIM115
                self._file.write(_MAGIC + struct.pack("<I", records[0]["row"].size))
            self._file.write(b"".join(record.tobytes() for record in records))
            self._file.flush()
        except OSError as error:
            raise _refusal(self._folder, error) from error

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        file, self._file = self._file, None
        if self._folder is None or file is None:
            return
        try:
            file.close()  # writes once more what a full disk refused before
        except OSError as failure:
            if error is None:
                raise _refusal(self._folder, failure) from failure


def _refusal(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"features cannot be kept in {folder} ({error.strerror or error}); set CAPTUM_CLIP_CACHE "
        "to a folder that can be written to, or pass cache=False."
    )


def _record(key: bytes, row: Row) -> Any:
    record = np.zeros((), dtype=_layout(row.size))
    record["key"], record["row"] = np.frombuffer(key, dtype=np.uint8), row
    record["crc"] = _checksum(record)
    return record


def _layout(size: int) -> np.dtype[Any]:
    return np.dtype([("key", "u1", (KEY_SIZE,)), ("row", "<f4", (size,)), ("crc", "<u4")])


def _checksum(record: Any) -> int:
    return zlib.crc32(record["row"].tobytes(), zlib.crc32(record["key"].tobytes()))


def _records(path: Path) -> Any:
    """The whole records of a file, as an array; none where it is no file of records."""
    start = len(_MAGIC) + 4
    try:
        with open(path, "rb") as file:
            head = file.read(start)
    except OSError:  # what cannot be read is computed again
        return ()
    size = struct.unpack("<I", head[-4:])[0] if len(head) == start else 0
    if head[:-4] != _MAGIC or not 0 < size < 2**20:
        return ()
    layout = _layout(size)
    count = (path.stat().st_size - start) // layout.itemsize
    if not count:
        return ()
    return np.memmap(path, dtype=layout, mode="r", offset=start, shape=(count,))
