"""A subject made ready: a job holds all that a worker must know to compute its shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..models import ClipAdapter, load_clip
from ..targets import Target


@dataclass(frozen=True, eq=False)
class Job:
    """One subject of a study; it can be sent to another process or machine.

    Attributes:
        key: names its files.
        model: what `load_clip` takes, a folder by its full path.
        label: what results call the model.
        fingerprint: of the model; a worker must find the same.
        kind: of its tower.
        size: (H, W) of the images that it sees.
        method: with its options, as on the command line.
        names: of the K targets.
        rows: the targets (K, D), unit length.
        centred: places of (emotion, the same emotion centred) among the targets.
        emotions: SHA-256 of the emotions' rows; "" where there are none.
        batch_size: images in every batch.
        value_entropy: whether to measure it.
        device: where to compute.
        threads: of the process that computes.
    """

    key: str
    model: str
    label: str
    fingerprint: str
    kind: str
    size: tuple[int, int]
    method: str
    names: tuple[str, ...]
    rows: npt.NDArray[np.float32]
    centred: tuple[tuple[int, int], ...]
    emotions: str
    batch_size: int
    value_entropy: bool
    device: str
    threads: int

    @property
    def target(self) -> Target:
        """The rows as a target."""
        return Target(torch.tensor(self.rows), torch.ones(len(self.rows)), self.names)

    def identity(self) -> dict[str, str]:
        """What must not change between the runs of a study."""
        return {
            "model": self.label,
            "method": self.method,
            "fingerprint": self.fingerprint,
            "emotions": self.emotions,
        }


class Loader:
    """Loads models by name, and keeps the last one for as long as it is asked for again."""

    def __init__(self) -> None:
        self._loaded: tuple[tuple[str, str], ClipAdapter, str] | None = None

    def load(self, model: str, device: str) -> tuple[ClipAdapter, str]:
        """The model and its fingerprint."""
        if self._loaded is None or self._loaded[0] != (model, device):
            self._loaded = None  # lets go of the old one first
            clip = load_clip(model, device=device)
            self._loaded = ((model, device), clip, clip.fingerprint)
        return self._loaded[1:]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The jobs as the manifest tells them."""
    return [{**job.identity(), "tower": job.kind, "targets": list(job.names)} for job in jobs]
