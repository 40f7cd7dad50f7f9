"""Shards: a fixed slice of the images of one job, in one file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from ..errors import InputError
from ..files import DAMAGED
from .computing import Computed
from .storage import Storage

FOLDER: Final = "shards"
_ARRAYS: Final = ("places", "maps", "scores", "skipped", "reasons")
_START: Final = "measure_"
_MEASURES: Final = {"low", "high", "spatial_variance", "spatial_entropy"}


@dataclass(frozen=True)
class Unit:
    """What an engine does at one go: the whole batches of one shard.

    Attributes:
        job: its number.
        name: of the shard's file.
        batches: numbers of the images of each batch.
    """

    job: int
    name: str
    batches: tuple[tuple[int, ...], ...]

    @property
    def places(self) -> tuple[int, ...]:
        """Numbers of all its images."""
        return tuple(place for batch in self.batches for place in batch)


def tries_of(name: str) -> str:
    """The file that counts how often a shard was begun on Ray."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/.{file}.tries"


def units_of(
    keys: Sequence[str], images: int, *, batch_size: int, batches_per_shard: int
) -> list[Unit]:
    """Cut the list of images into batches and shards, the same for every job.

    Args:
        keys: of the jobs.
        images: number of images.
        batch_size: images in a batch; the last one may have fewer.
        batches_per_shard: batches in a shard; the last one may have fewer.
    """
    batches = [
        tuple(range(start, min(start + batch_size, images)))
        for start in range(0, images, batch_size)
    ]
    cut = range(0, len(batches), batches_per_shard)
    return [
        Unit(
            job,
            f"{FOLDER}/{key}/{number:06d}.npz",
            tuple(batches[start : start + batches_per_shard]),
        )
        for job, key in enumerate(keys)
        for number, start in enumerate(cut)
    ]


def joined(parts: Sequence[Computed]) -> Computed:
    """Several batches as one; their order stays."""
    return Computed(
        places=np.concatenate([part.places for part in parts]),
        maps=np.concatenate([part.maps for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        measures={
            name: np.concatenate([part.measures[name] for part in parts])
            for name in parts[0].measures
        },
        skipped={place: why for part in parts for place, why in part.skipped.items()},
    )


def to_bytes(shard: Computed) -> bytes:
    """The shard as the content of an .npz file; the same shard is the same bytes."""
    skipped = sorted(shard.skipped)
    arrays: dict[str, Any] = {
        "places": shard.places,
        "maps": shard.maps,
        "scores": shard.scores,
        "skipped": np.array(skipped, dtype=np.int64),
        "reasons": np.array([shard.skipped[place] for place in skipped], dtype=np.str_),
        **{f"{_START}{name}": values for name, values in shard.measures.items()},
    }
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def read_shard(storage: Storage, unit: Unit) -> Computed:
    """Read a shard that is there.

    Raises:
        InputError: it is gone, damaged, or holds other images.
    """
    content = storage.read(unit.name)
    try:
        if content is None:
            raise FileNotFoundError("it is gone")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        places, maps, scores, skipped, reasons = (found[name] for name in _ARRAYS)
        if sorted([*places, *skipped]) != sorted(unit.places) or len(reasons) != len(skipped):
            raise ValueError("it holds other images")
        measures = _measures(found, scores)
        if not len(places) == len(scores) == len(maps) or maps.shape[:2] != scores.shape:
            raise ValueError("its maps are not those of its scores")
    except DAMAGED as error:
        raise InputError(
            f"the shard {storage.root}/{unit.name} cannot be used ({error}); delete it and start "
            "the same command again, which computes it anew."
        ) from error
    why = {int(place): str(reason) for place, reason in zip(skipped, reasons, strict=True)}
    return Computed(places, maps, scores, measures, why)


def _measures(found: dict[str, Any], scores: Any) -> dict[str, Any]:
    measures = {
        name.removeprefix(_START): values
        for name, values in found.items()
        if name.startswith(_START)
    }
    missing = sorted(_MEASURES - measures.keys())
    if missing:
        raise ValueError(f"it lacks the measure {missing[0]}")
    if any(values.shape != scores.shape for values in measures.values()):
        raise ValueError("its measures are not those of its scores")
    return measures


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Unit = TypeVar("_Unit", bound=_Named)


def unfinished(
    storage: Storage,
    units: Iterable[_Unit],
    present: set[str],
    read: Callable[[Storage, _Unit], object],
) -> list[_Unit]:
    """Units without a whole file; damaged files go away.

    Args:
        storage: the output.
        units: all of them.
        present: names of the files that are there.
        read: reads the file of a unit, and raises an InputError where it is damaged.
    """
    pending = []
    for unit in units:
        if unit.name in present:
            try:
                read(storage, unit)
                continue
            except InputError:
                storage.remove(unit.name)
        pending.append(unit)
    return pending
