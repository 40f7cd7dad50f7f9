"""What an engine gets to do, and the step that all engines share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .computing import Computer
from .decoding import Batch, Decoder
from .jobs import Job
from .shards import Unit, joined, to_bytes
from .storage import Storage

Advance = Callable[[int], None]
"""Told how many images of a job were done since the last call."""


@dataclass(frozen=True, eq=False)
class Work:
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
