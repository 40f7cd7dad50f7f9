"""Shards: every image once, in whole batches, and the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from captum_clip.errors import InputError
from captum_clip.studies.computing import Computed
from captum_clip.studies.shards import Unit, joined, read_shard, to_bytes, unfinished, units_of
from captum_clip.studies.storage import storage_of

UNIT = Unit(0, "shards/a/000000.npz", ((0, 1), (2,)))


def some_shard(places: tuple[int, ...] = (0, 2), skipped: tuple[int, ...] = (1,)) -> Computed:
    random = np.random.default_rng(len(places))
    count = len(places)
    return Computed(
        places=np.array(places, dtype=np.int64),
        maps=random.random((count, 2, 3, 4), dtype=np.float32),
        scores=random.random((count, 2), dtype=np.float32),
        measures={"low": random.random((count, 2)), "spatial_variance": random.random((count, 2))},
        skipped={place: f"image {place} is broken" for place in skipped},
    )


@pytest.mark.parametrize("images", [1, 4, 7, 8, 9])
def test_units_hold_every_image_once_for_each_job(images: int) -> None:
    """In order, in full batches but for the last one."""
    units = units_of(["a", "b"], images, batch_size=2, batches_per_shard=2)
    for job in (0, 1):
        own = [unit for unit in units if unit.job == job]
        assert [place for unit in own for place in unit.places] == list(range(images))
        sizes = [len(batch) for unit in own for batch in unit.batches]
        assert all(size == 2 for size in sizes[:-1])
        assert all(len(unit.batches) == 2 for unit in own[:-1])
    assert len({unit.name for unit in units}) == len(units)


def test_a_shard_is_read_as_it_was_written(tmp_path: Path) -> None:
    storage, shard = storage_of(tmp_path), some_shard()
    storage.write(UNIT.name, to_bytes(shard))
    found = read_shard(storage, UNIT)
    for name in ("places", "maps", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(shard, name))
        assert getattr(found, name).dtype == getattr(shard, name).dtype
    assert found.measures.keys() == shard.measures.keys()
    np.testing.assert_array_equal(found.measures["low"], shard.measures["low"])
    assert found.skipped == {1: "image 1 is broken"}
    assert to_bytes(found) == to_bytes(shard)


def test_batches_are_joined_in_their_order() -> None:
    first, second = some_shard((0,), (1,)), some_shard((2, 3), ())
    whole = joined([first, second])
    assert whole.places.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(whole.maps[1:], second.maps)
    np.testing.assert_array_equal(whole.measures["low"][:1], first.measures["low"])
    assert whole.skipped == {1: "image 1 is broken"}


@pytest.mark.parametrize("damage", ["gone", "short", "flipped", "other", "text"])
def test_a_shard_that_cannot_be_used_is_said_and_computed_again(
    tmp_path: Path, damage: str
) -> None:
    storage, whole = storage_of(tmp_path), to_bytes(some_shard())
    flipped = bytearray(whole)
    flipped[whole.index(some_shard().maps.tobytes())] ^= 255
    content = {
        "short": whole[: len(whole) // 2],
        "flipped": bytes(flipped),
        "other": to_bytes(some_shard((0,), (1,))),
        "text": b"nothing of the kind",
    }
    if damage in content:
        storage.write(UNIT.name, content[damage])
    with pytest.raises(InputError, match=r"cannot be used .* delete it"):
        read_shard(storage, UNIT)
    present = {name for name, _ in storage.files()}
    assert unfinished(storage, [UNIT], present) == [UNIT]
    assert storage.read(UNIT.name) is None


def test_a_whole_shard_is_kept(tmp_path: Path) -> None:
    storage = storage_of(tmp_path)
    storage.write(UNIT.name, to_bytes(some_shard()))
    assert unfinished(storage, [UNIT], {UNIT.name}) == []
