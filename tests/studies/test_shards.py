"""Shards: every image once, in whole batches, and the same bytes each time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captum_clip.errors import InputError
from captum_clip.studies.computing import Computed
from captum_clip.studies.shards import Unit, joined, read_shard, to_bytes, unfinished, units_of
from captum_clip.studies.storage import storage_of

MEASURES = ("low", "high", "spatial_variance", "spatial_entropy")
UNIT = Unit(0, "shards/a/000000.npz", ((0, 1), (2,)))


def some_shard(places: tuple[int, ...] = (0, 2), skipped: tuple[int, ...] = (1,)) -> Computed:
    random = np.random.default_rng(len(places))
    count = len(places)
    return Computed(
        places=np.array(places, dtype=np.int64),
        maps=random.random((count, 2, 3, 4), dtype=np.float32),
        scores=random.random((count, 2), dtype=np.float32),
        measures={name: random.random((count, 2)) for name in MEASURES},
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
    assert unfinished(storage, [UNIT], present, read_shard) == [UNIT]
    assert storage.read(UNIT.name) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measure_low": None}, "lacks the measure low"),
        ({"measure_spatial_entropy": np.zeros((1, 2))}, "measures are not those of its scores"),
        ({"scores": np.zeros((1, 2))}, "not those of its scores"),
        ({"maps": np.zeros((2, 3, 3, 4))}, "maps are not those of its scores"),
        ({"reasons": np.array(["a", "b"])}, "other images"),
    ],
)
def test_a_shard_without_all_that_belongs_in_it_is_damaged(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """Statistics would end in a traceback over it, at every start."""
    with np.load(io.BytesIO(to_bytes(some_shard()))) as file:
        arrays = {name: file[name] for name in file.files}
    arrays = {name: array for name, array in {**arrays, **change}.items() if array is not None}
    content = io.BytesIO()
    np.savez(content, **arrays)
    storage = storage_of(tmp_path)
    storage.write(UNIT.name, content.getvalue())
    with pytest.raises(InputError, match=f"cannot be used .*{message}"):
        read_shard(storage, UNIT)


def test_no_flipped_bit_of_a_shard_is_a_traceback(tmp_path: Path) -> None:
    """It is an error that tells what to do, or the bit does not matter."""
    storage, shard = storage_of(tmp_path), some_shard()
    whole = to_bytes(shard)
    (tmp_path / UNIT.name).parent.mkdir(parents=True)
    for place in range(0, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        (tmp_path / UNIT.name).write_bytes(damaged)
        try:
            found = read_shard(storage, UNIT)
        except InputError:
            continue
        assert to_bytes(found) == whole


def test_a_whole_shard_is_kept(tmp_path: Path) -> None:
    storage = storage_of(tmp_path)
    storage.write(UNIT.name, to_bytes(some_shard()))
    assert unfinished(storage, [UNIT], {UNIT.name}, read_shard) == []
