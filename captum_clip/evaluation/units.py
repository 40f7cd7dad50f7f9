"""Units of a run: each one file, whole or not at all, with arrays and what was left out.

A stop at any moment loses no more than the units that were being computed, and the same command
started again ends in the same bytes.
"""

import csv
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..files import DAMAGED
from ..pictures import is_io_error
from .storage import Storage

_FORMULA: Final = re.compile(r"\s*'*[=+@\t\r-](?!\d+(\.\d+)?$)")
Arrays = dict[str, npt.NDArray[Any]]


class Skipped(NamedTuple):
    """A sample that was left out, or a region or map of it."""

    number: int  # of the sample
    reason: str
    again: bool = False  # its disk refused, which may pass: the unit is computed again

    @classmethod
    def of(cls, number: int, error: Exception) -> "Skipped":
        """A sample that could not be read."""
        return cls(number, getattr(error, "reason", str(error)), is_io_error(error))

    @property
    def message(self) -> str:
        """The reason, and what becomes of the sample, for people."""
        again = " It is tried again when the same command runs again."
        return self.reason + again * self.again


@dataclass(frozen=True)
class Unit:
    """A part of a run that is computed at one go and kept in one file."""

    name: str  # of its file, in the output folder
    job: int  # number of the model and method, as the plan counts them
    numbers: tuple[int, ...]  # of the images
    label: str = ""  # of the model or the data set and the method, for progress


class DamagedUnitError(InputError):
    """The file of a unit is gone or damaged, or is that of another unit."""


def write_unit(output: Storage, unit: Unit, arrays: Arrays, skipped: list[Skipped]) -> None:
    """Write the file of a unit."""
    # by its name an exchange of two files is noticed
    told = {"skipped": np.array(json.dumps(skipped)), "unit": np.array(unit.name)}
    output.write(unit.name, to_npz({**arrays, **told}))


def read_unit(storage: Storage, unit: Unit) -> tuple[Arrays, list[Skipped]]:
    """The arrays of a unit, and what was skipped.

    Raises:
        DamagedUnitError: there is no whole file of this unit.
        InputError: the storage refuses.
    """
    content = storage.read(unit.name)
    try:
        if content is None:
            raise FileNotFoundError("it is gone")
        arrays = from_npz(content)
        if (name := str(arrays.pop("unit"))) != unit.name:
            raise ValueError(f"it was written as {name}")
        return arrays, [Skipped(*entry) for entry in json.loads(str(arrays.pop("skipped")))]
    except DAMAGED as error:
        raise DamagedUnitError(
            f"{storage.root}/{unit.name} cannot be used ({error}); delete it and run the same "
            "command again to compute it anew."
        ) from error


def to_json(content: Mapping[str, Any]) -> bytes:
    """JSON for people and programs."""
    return f"{json.dumps(content, indent=1)}\n".encode()


def to_npz(arrays: Arrays) -> bytes:
    """Arrays as the content of an .npz file; the same arrays are the same bytes."""
    file = io.BytesIO()
    # NumPy writes no time of day into the archive, so a unit computed again is the same file.
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def from_npz(content: bytes) -> Arrays:
    """The arrays of an .npz file; what it raises over another content is in `DAMAGED`."""
    # A pickle in a file from elsewhere could run anything.
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def to_csv(*tables: Mapping[str, Any]) -> bytes:
    """Tables as one, the same on every machine: numbers to ten digits, an empty field for NaN.

    A column is an array or a list, or one value for all rows. Names of files need not be UTF-8. An
    apostrophe before a text that looks like a formula keeps a spreadsheet from running it.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(tables[0])
    for columns in tables:
        rows = zip(*np.broadcast_arrays(*columns.values()), strict=True)
        writer.writerows(map(_field, row) for row in rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def read_field(field: str) -> str:
    """A text as it was before :func:`to_csv` wrote it."""
    return field[1:] if field[:1] == "'" and _FORMULA.match(field[1:]) else field


def _field(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{value}" if _FORMULA.match(value) else value
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value + 0.0:.10g}"  # + 0.0: no minus zero
