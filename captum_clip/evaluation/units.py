"""Units of work, the plan that lists them, and their files, which are whole or not there."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError
from ..files import DAMAGED
from ..models import ClipAdapter, load_clip
from ..models.loading import load_processor, load_tokenizer
from .config import EvaluationConfig, StudyConfig, full_name
from .storage import Storage

AGAIN: Final = " It is tried again when the same command is started again."
"""Ends the reason why an image was skipped where its disk refused, which may pass."""

Arrays = dict[str, npt.NDArray[Any]]
Skipped = list[tuple[int, str]]
"""Number of a sample, and why it, or a region or map of it, was left out."""
Content = dict[str, Any]
Progress = Callable[[int, int], None]
"""Called with how many images were done, and how many there are."""


@dataclass(frozen=True)
class Unit:
    """What is computed at one go and kept in one file."""

    name: str  # of its file, in the output folder
    job: int  # number of the model and method, as the plan counts them
    numbers: tuple[int, ...]  # of the images


class ModelLoader:
    """Loads models by name, and keeps the last one for as long as it is asked for again.

    Sent to another process it loads there for itself. Where `processor` names another model, the
    models get its image processor in place of their own, and so for the tokenizer.
    """

    def __init__(self, processor: str | None = None, tokenizer: str | None = None) -> None:
        parts = (processor, tokenizer)
        self._parts = tuple(None if name is None else full_name(name) for name in parts)
        self._loaded: tuple[tuple[str, str], ClipAdapter] | None = None

    def __reduce__(self) -> tuple[Callable[..., ModelLoader], tuple[str | None, ...]]:
        return ModelLoader, self._parts

    def load(self, model: str, device: str = "cpu", fingerprint: str | None = None) -> ClipAdapter:
        """Load a model, which must have the fingerprint that the run was begun with, if given."""
        if self._loaded is None or self._loaded[0] != (model, device):
            self._loaded = None  # lets go of the old one first
            processor, tokenizer = self._parts
            parts = {"processor": load_processor(processor), "tokenizer": load_tokenizer(tokenizer)}
            self._loaded = ((model, device), load_clip(model, **parts, device=device))
        clip = self._loaded[1]
        if fingerprint not in (None, clip.fingerprint):
            raise InputError(
                f"the weights or the preprocessing of {model} are not those that the run was "
                "begun with; give all machines the same, and leave them alone while it runs."
            )
        return clip


Worker = Callable[[Sequence[Unit]], Iterator[tuple[Unit, Arrays, Skipped]]]
"""Computes units in their order; the same unit gives the same bytes in every process.

With the local engine it is called once, so that images can be read ahead; with Ray unit by unit.
"""


class Plan(ABC):
    """A run that can begin; it can be sent to other processes."""

    noun: ClassVar[str]  # "study", "evaluation"
    result: ClassVar[str]  # the file that is written last
    config: EvaluationConfig | StudyConfig
    units: tuple[Unit, ...]

    @abstractmethod
    def about(self) -> Content:
        """All that decides the results, as JSON, the settings first."""

    @abstractmethod
    def worker(self, models: ModelLoader) -> Worker:
        """Make what computes units; called once in each process."""

    def files(self) -> dict[str, bytes]:
        """Further CSV files that must be the same when a run goes on."""
        return {}


def write_units(worker: Worker, units: Sequence[Unit], output: Storage) -> Iterator[Unit]:
    """Compute units and write their files."""
    for unit, arrays, skipped in worker(units):
        reasons = {
            "skipped": np.array([number for number, _ in skipped], dtype=np.int64),
            "reasons": np.array([reason for _, reason in skipped], dtype=np.str_),
        }
        # by its name an exchange of two files is noticed
        output.write(unit.name, to_npz({**arrays, **reasons, "unit": np.array(unit.name)}))
        yield unit


def read_unit(storage: Storage, unit: Unit) -> tuple[Arrays, Skipped]:
    """The arrays of a unit, and what was skipped.

    Raises:
        InputError: the file is gone or damaged, or is that of another unit.
    """
    content = storage.read(unit.name)
    try:
        return parse_unit(content, unit)
    except DAMAGED as error:
        raise InputError(
            f"{storage.root}/{unit.name} cannot be used ({error}); delete it and start the same "
            "command again, which computes it anew."
        ) from error


def parse_unit(content: bytes | None, unit: Unit) -> tuple[Arrays, Skipped]:
    """What a file holds; one of the errors `DAMAGED` where it is not the whole file of the unit."""
    if content is None:
        raise FileNotFoundError("it is gone")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if (name := str(arrays.pop("unit"))) != unit.name:
        raise ValueError(f"it was written as {name}")
    skipped, reasons = arrays.pop("skipped").tolist(), arrays.pop("reasons").tolist()
    return arrays, list(zip(skipped, reasons, strict=True))


def to_json(content: Mapping[str, Any]) -> bytes:
    """JSON for people and programs."""
    return f"{json.dumps(content, indent=1)}\n".encode()


def to_npz(arrays: Arrays) -> bytes:
    """Arrays as the content of an .npz file; the same arrays are the same bytes."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
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


def slug(name: str) -> str:
    """A name as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.=]+", "-", name).strip("-.").lower()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def default_environment(**wanted: str) -> Iterator[None]:
    """Set environment variables for a while; what the user has set stays."""
    added = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
