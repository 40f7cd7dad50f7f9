"""The engine for one machine: PyTorch's workers decode, this process computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import groupby, islice

from torch.utils.data import Dataset

from ..errors import CaptumClipError
from .computing import Computer
from .decoding import Batch, Decoder
from .engine import Advance, Work, compute_unit
from .jobs import Job, Loader
from .shards import Unit
from .workers import handed_over


def run_local(work: Work, loader: Loader, advance: Advance) -> None:
    """Compute and write every unit.

    Raises:
        CaptumClipError: a model that cannot be loaded, a disk that refuses, a worker that died.
    """
    for number, units in groupby(work.units, key=lambda unit: unit.job):
        _run_job(work, work.jobs[number], list(units), loader, advance)


def _run_job(work: Work, job: Job, units: Sequence[Unit], loader: Loader, advance: Advance) -> None:
    computer = Computer.load(job, loader)
    decoder = work.decoder(job, computer.clip.processor)
    places = [batch for unit in units for batch in unit.batches]
    with decoded(decoder, places, work.processes) as batches:
        for unit in units:
            own = islice(batches, len(unit.batches))
            compute_unit(unit, computer, own, work.output, advance)


class _Batches(Dataset[Batch | CaptumClipError]):
    def __init__(self, decoder: Decoder, places: Sequence[Sequence[int]]) -> None:
        self.decoder = decoder
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Batch | CaptumClipError:
        try:
            return self.decoder.batch(self.places[index])
        except CaptumClipError as error:
            return error


def decoded(
    decoder: Decoder, places: Sequence[Sequence[int]], workers: int
) -> AbstractContextManager[Iterator[Batch]]:
    """Decoded batches in their order, a few ahead."""
    advice = (
        "take fewer workers or a smaller batch, and start the same command again: what is done is "
        "kept"
    )
    return handed_over(_Batches(decoder, places), min(workers, len(places)), advice=advice)
