"""A subject made ready: a job holds all that a worker must know to compute its shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
        target: K directions.
        centred: indices of (emotion, the same emotion centred) among the targets.
        emotions: SHA-256 of the emotions' rows; "" where there are none.
        value_entropy: whether to measure it.
    """

    key: str
    model: str
    label: str
    fingerprint: str
    kind: str
    size: tuple[int, int]
    method: str
    target: Target
    centred: tuple[tuple[int, int], ...]
    emotions: str
    value_entropy: bool

    def describe(self) -> dict[str, Any]:
        """As the manifest tells it."""
        return {
            "model": self.label,
            "method": self.method,
            "fingerprint": self.fingerprint,
            "emotions": self.emotions,
            "tower": self.kind,
            "targets": list(self.target.names),
        }
