"""What an engine gets to do, and the step that all engines share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .computing import Computer
from .decoding import Batch, Decoder
from .jobs import Job, Loader
from .on_ray import RayWork
from .shards import Unit, joined, to_bytes
from .storage import Storage

Advance = Callable[[int], None]
"""Told how many images of a job were done since the last call."""


@dataclass(frozen=True, eq=False)
class Work(RayWork):
    """All that is to be computed; it can be sent to another process or machine.

    Attributes:
        jobs: of the study.
        units: shards that are not there yet, in order.
        names: of all image files.
        images: where they are.
        output: where shards go.
        processes: that decode or compute.
        gpus: that Ray's processes share.
    """

    jobs: Sequence[Job]
    units: Sequence[Unit]
    names: Sequence[str]
    images: Storage
    output: Storage
    processes: int
    gpus: int

    @property
    def threads(self) -> int:  # type: ignore[override]
        """See :class:`RayWork`; all jobs have the same."""
        return self.jobs[0].threads

    @property
    def files(self) -> Sequence[str]:
        """See :class:`RayWork`."""
        return [unit.name for unit in self.units]

    @property
    def sizes(self) -> Sequence[int]:
        """See :class:`RayWork`."""
        return [len(unit.places) for unit in self.units]

    def worker(self) -> Callable[[int], None]:
        """See :class:`RayWork`."""
        return _Worker(self)

    def decoder(self, job: Job, processor: Any) -> Decoder:
        """What reads the images for a job, with its model's processor."""
        return Decoder(self.images, self.names, processor, job.size, job.batch_size)


def compute_unit(
    unit: Unit,
    computer: Computer,
    batches: Iterable[Batch],
    output: Storage,
    advance: Advance = lambda images: None,
) -> None:
    """Compute a shard from its decoded batches, in order, and write it."""
    parts = []
    for batch in batches:
        parts.append(computer.compute(batch))
        advance(len(batch.places))
    output.write(unit.name, to_bytes(joined(parts)))


class _Worker:
    """Computes units one by one, in a process of its own; loads a model once."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._loader = Loader()
        self._ready: tuple[int, Computer, Decoder] | None = None

    def __call__(self, number: int) -> None:
        unit = self._work.units[number]
        computer, decoder = self._prepared(unit)
        compute_unit(unit, computer, _ahead(decoder, unit), self._work.output)

    def _prepared(self, unit: Unit) -> tuple[Computer, Decoder]:
        if self._ready is None or self._ready[0] != unit.job:
            self._ready = None
            job = self._work.jobs[unit.job]
            computer = Computer.load(job, self._loader)
            self._ready = unit.job, computer, self._work.decoder(job, computer.clip.processor)
        return self._ready[1:]


def _ahead(decoder: Decoder, unit: Unit) -> Iterator[Batch]:
    """Decoded batches in their order; a thread is one batch ahead."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(decoder.batch, unit.batches[0])
        for places in unit.batches[1:]:
            batch, coming = coming.result(), pool.submit(decoder.batch, places)
            yield batch
        yield coming.result()
