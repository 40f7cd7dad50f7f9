"""Shards: a fixed slice of the images of one job, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..runs import AGAIN, Arrays, to_npz
from .batch_explainer import Explained

FOLDER: Final = "shards"
_START: Final = "measure_"
_MEASURES: Final = {"low", "high", "spatial_variance", "spatial_entropy"}


@dataclass(frozen=True)
class Shard:
    """A unit of work: the whole batches of one file."""

    job: int  # its number
    name: str  # of the file
    batches: tuple[tuple[int, ...], ...]  # indices of the images of each

    @property
    def indices(self) -> tuple[int, ...]:
        """Those of all its images."""
        return tuple(index for batch in self.batches for index in batch)

    @property
    def size(self) -> int:
        """How many images it has."""
        return len(self.indices)


def shards_of(
    keys: Sequence[str], images: int, *, batch_size: int, batches_per_shard: int
) -> list[Shard]:
    """Cut the list of images into batches and shards, the same for every job.

    The last batch and the last shard may be smaller; `keys` are those of the jobs.
    """
    batches = [
        tuple(range(start, min(start + batch_size, images)))
        for start in range(0, images, batch_size)
    ]
    starts = range(0, len(batches), batches_per_shard)
    return [
        Shard(
            job,
            f"{FOLDER}/{key}/{number:06d}.npz",
            tuple(batches[start : start + batches_per_shard]),
        )
        for job, key in enumerate(keys)
        for number, start in enumerate(starts)
    ]


def join(parts: Sequence[Explained]) -> Explained:
    """Several batches as one; their order stays."""
    return Explained(
        indices=np.concatenate([part.indices for part in parts]),
        maps=np.concatenate([part.maps for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        measures={
            name: np.concatenate([part.measures[name] for part in parts])
            for name in parts[0].measures
        },
        skipped={index: reason for part in parts for index, reason in part.skipped.items()},
    )


def to_bytes(explained: Explained, shard: Shard) -> bytes:
    """What is known of a shard's images as the content of its .npz file."""
    skipped = sorted(explained.skipped)
    arrays: Arrays = {
        "places": explained.indices,
        "maps": explained.maps,
        "scores": explained.scores,
        "skipped": np.array(skipped, dtype=np.int64),
        "reasons": np.array([explained.skipped[index] for index in skipped], dtype=np.str_),
        **{f"{_START}{name}": values for name, values in explained.measures.items()},
    }
    return to_npz(arrays, shard)


def parse_shard(arrays: Arrays, shard: Shard) -> Explained:
    """What :func:`to_bytes` wrote.

    A ValueError says that it is of other images, or that no statistics could be made of it.
    """
    indices, maps, scores = arrays["places"], arrays["maps"], arrays["scores"]
    skipped, reasons = arrays["skipped"], arrays["reasons"]
    if sorted([*indices, *skipped]) != sorted(shard.indices) or len(reasons) != len(skipped):
        raise ValueError("it holds other images")
    if not len(indices) == len(scores) == len(maps) or maps.shape[:2] != scores.shape:
        raise ValueError("its maps are not those of its scores")
    measures = {
        name.removeprefix(_START): values
        for name, values in arrays.items()
        if name.startswith(_START)
    }
    if missing := sorted(_MEASURES - measures.keys()):
        raise ValueError(f"it lacks the measure {missing[0]}")
    if any(values.shape != scores.shape for values in measures.values()):
        raise ValueError("its measures are not those of its scores")
    why = {int(index): str(reason) for index, reason in zip(skipped, reasons, strict=True)}
    return Explained(indices, maps, scores, measures, why)


def parse_final(arrays: Arrays, shard: Shard) -> Explained:
    """The same of a shard that need not be computed again: no disk refused one of its images."""
    explained = parse_shard(arrays, shard)
    if any(reason.endswith(AGAIN) for reason in explained.skipped.values()):
        raise ValueError("some of its images could not be read")
    return explained
