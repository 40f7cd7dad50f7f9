"""Units of work: what is computed at one go and kept in one file, whole or not at all."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..files import DAMAGED
from .storage import Storage

_NAME: Final = "unit"
AGAIN: Final = " It is tried again when the same command is started again."
"""Ends the reason why an image was skipped where its disk refused, which may pass."""
Arrays = dict[str, npt.NDArray[Any]]


class Unit(Protocol):
    """What is computed at one go: a frozen dataclass, which can be sent to other processes."""

    @property
    def name(self) -> str:
        """Of its file, in the output folder."""

    @property
    def size(self) -> int:
        """How many images it counts for in the progress."""


U = TypeVar("U", bound=Unit)
Content = TypeVar("Content")


def to_npz(arrays: Arrays, unit: Unit | None = None) -> bytes:
    """Arrays as the content of an .npz file; the same arrays are the same bytes.

    The name of `unit`, whose file it is, is kept as "unit": an exchange of two files is noticed.
    """
    file = io.BytesIO()
    own = {} if unit is None else {_NAME: np.array(unit.name)}
    np.savez(file, **arrays, **own)  # type: ignore[arg-type]
    return file.getvalue()


def to_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A table, the same on every machine: numbers to ten digits, an empty field for NaN.

    Names of files need not be UTF-8.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_field(value) for value in row] for row in rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _field(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value + 0.0:.10g}"  # + 0.0: no minus zero


def read_unit(storage: Storage, unit: U, parse: Callable[[Arrays, U], Content]) -> Content:
    """Read a unit's file; `parse` raises a ValueError where the arrays are not those of the unit.

    Raises:
        InputError: the file is gone or damaged, or holds something else.
    """
    content = storage.read(unit.name)
    try:
        return _load(content, unit, parse)
    except DAMAGED as error:
        raise InputError(
            f"{storage.root}/{unit.name} cannot be used ({error}); delete it and start the same "
            "command again, which computes it anew."
        ) from error


def unfinished(
    storage: Storage, units: Iterable[U], parse: Callable[[Arrays, U], object]
) -> list[U]:
    """Units without a file that `parse` can read, in order; damaged files are taken away."""
    present = {name for name, _ in storage.files()}
    missing = []
    for unit in units:
        # What the storage refuses ends the run: a file that cannot be reached is not damaged.
        content = storage.read(unit.name) if unit.name in present else None
        try:
            _load(content, unit, parse)
        except DAMAGED:
            missing.append(unit)
            if content is not None:
                storage.remove(unit.name)
    return missing


def _load(content: bytes | None, unit: U, parse: Callable[[Arrays, U], Content]) -> Content:
    if content is None:
        raise FileNotFoundError("it is gone")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    name = str(arrays.pop(_NAME, unit.name))  # earlier versions wrote none
    if name != unit.name:
        raise ValueError(f"it was written as {name}")
    return parse(arrays, unit)


def slug(name: str) -> str:
    """A name as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.=]+", "-", name).strip("-.").lower()
