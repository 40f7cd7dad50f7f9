"""Units of work: one method on one chunk of a data set, in one file."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..errors import InputError
from ..files import DAMAGED
from ..studies.storage import Storage
from .data.base import DataSet
from .methods import Method
from .metric import CurveRows, Rows
from .tasks import Found

FOLDER: Final = "units"


@dataclass(frozen=True)
class Unit:
    """What is computed at one go.

    Attributes:
        data: number of the data set.
        method: number of the method.
        numbers: of the samples.
        name: of its file.
    """

    data: int
    method: int
    numbers: tuple[int, ...]
    name: str


def units_of(
    data: Sequence[DataSet], methods: Sequence[Method], *, size: int, few: int
) -> list[Unit]:
    """Cut every data set into chunks; all methods of a chunk follow each other.

    Args:
        data: the data sets.
        methods: all of them.
        size: samples a chunk; the last one may have fewer.
        few: samples of a data set that costly methods see.
    """
    units = []
    for place, one in enumerate(data):
        for start in range(0, len(one), size):
            for number, method in enumerate(methods):
                most = min(start + size, len(one), few if method.costly else len(one))
                folder = f"{FOLDER}/{place:02d}-{_slug(one.name)}"
                name = f"{folder}/{start:06d}-{number:02d}-{_slug(method.name)}.npz"
                if start < most:
                    units.append(Unit(place, number, tuple(range(start, most)), name))
    return units


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=]+", "-", name).strip("-.").lower()


def to_bytes(found: Found) -> bytes:
    """What was found as the content of an .npz file; the same is the same bytes."""
    arrays: dict[str, Any] = {}
    for name, rows in sorted(found.rows.items()):
        arrays |= {f"rows {name} owners": rows.owners, f"rows {name} values": rows.values}
    for name, curve in sorted(found.curves.items()):
        arrays |= {
            f"curves {name} owners": curve.owners,
            f"curves {name} fractions": curve.fractions,
            f"curves {name} values": curve.values,
        }
    numbers = np.array([number for number, _ in found.skipped], dtype=np.int64)
    reasons = np.array([reason for _, reason in found.skipped], dtype=np.str_)
    file = io.BytesIO()
    np.savez(file, skipped=numbers, reasons=reasons, **arrays)
    return file.getvalue()


def read_unit(storage: Storage, unit: Unit) -> Found:
    """Read a unit's file.

    Raises:
        InputError: it is gone or damaged.
    """
    content = storage.read(unit.name)
    try:
        if content is None:
            raise FileNotFoundError("it is gone")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        skipped = zip(arrays.pop("skipped").tolist(), arrays.pop("reasons").tolist(), strict=True)
        parts: dict[tuple[str, str], dict[str, Any]] = {}
        for key, value in arrays.items():
            kind, name, field = key.split(" ")
            parts.setdefault((kind, name), {})[field] = value
        rows = {name: Rows(**of) for (kind, name), of in parts.items() if kind == "rows"}
        curves = {name: CurveRows(**of) for (kind, name), of in parts.items() if kind == "curves"}
        found = Found(rows, curves, tuple(skipped))
        _check(found, unit)
    except DAMAGED as error:
        raise InputError(
            f"{storage.root}/{unit.name} cannot be used ({error}); delete it and start the same "
            "command again, which computes it anew."
        ) from error
    return found


def _check(found: Found, unit: Unit) -> None:
    """Raise a ValueError for rows of other samples, or of no sensible shape."""
    known = set(unit.numbers)
    if not known.issuperset(number for number, _ in found.skipped):
        raise ValueError("it tells of other samples")
    every: list[Rows | CurveRows] = [*found.rows.values(), *found.curves.values()]
    for one in every:
        if one.values.ndim != 2 or len(one.owners) != len(one.values):
            raise ValueError("its rows have no owners")
        if not known.issuperset(one.owners.tolist()) or not np.isfinite(one.values).all():
            raise ValueError("it holds rows of other samples, or NaN")


def joined(parts: Sequence[Found]) -> Found:
    """The chunks of one method as one."""
    rows: dict[str, list[Rows]] = {}
    curves: dict[str, list[CurveRows]] = {}
    for part in parts:
        for name, one in part.rows.items():
            rows.setdefault(name, []).append(one)
        for name, curve in part.curves.items():
            curves.setdefault(name, []).append(curve)
    return Found(
        {name: Rows(_owners(some), _values(some)) for name, some in rows.items()},
        {
            name: CurveRows(_owners(some), some[0].fractions, _values(some))
            for name, some in curves.items()
        },
        tuple(entry for part in parts for entry in part.skipped),
    )


def _owners(parts: Sequence[Rows] | Sequence[CurveRows]) -> Any:
    return np.concatenate([part.owners for part in parts])


def _values(parts: Sequence[Rows] | Sequence[CurveRows]) -> Any:
    return np.concatenate([part.values for part in parts])
