"""Shards: every image once, in whole batches, and the same bytes each time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captum_clip.errors import InputError
from captum_clip.runs import read_unit, storage_of
from captum_clip.studies.batch_explainer import Explained
from captum_clip.studies.shards import Shard, join, parse_shard, shards_of, to_bytes

MEASURES = ("low", "high", "spatial_variance", "spatial_entropy")
SHARD = Shard(0, "shards/a/000000.npz", ((0, 1), (2,)))


def some_shard(places: tuple[int, ...] = (0, 2), skipped: tuple[int, ...] = (1,)) -> Explained:
    random = np.random.default_rng(len(places))
    count = len(places)
    return Explained(
        indices=np.array(places, dtype=np.int64),
        maps=random.random((count, 2, 3, 4), dtype=np.float32),
        scores=random.random((count, 2), dtype=np.float32),
        measures={name: random.random((count, 2)) for name in MEASURES},
        skipped={place: f"image {place} is broken" for place in skipped},
    )


@pytest.mark.parametrize("images", [1, 4, 7, 8, 9])
def test_shards_hold_every_image_once_for_each_job(images: int) -> None:
    """In order, in full batches but for the last one."""
    shards = shards_of(["a", "b"], images, batch_size=2, batches_per_shard=2)
    for job in (0, 1):
        own = [shard for shard in shards if shard.job == job]
        assert [index for shard in own for index in shard.indices] == list(range(images))
        sizes = [len(batch) for shard in own for batch in shard.batches]
        assert all(size == 2 for size in sizes[:-1])
        assert all(len(shard.batches) == 2 for shard in own[:-1])
    assert len({shard.name for shard in shards}) == len(shards)


def test_a_shard_is_read_as_it_was_written(tmp_path: Path) -> None:
    storage, shard = storage_of(tmp_path), some_shard()
    storage.write(SHARD.name, to_bytes(shard, SHARD))
    found = read_unit(storage, SHARD, parse_shard)
    for name in ("indices", "maps", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(shard, name))
        assert getattr(found, name).dtype == getattr(shard, name).dtype
    assert found.measures.keys() == shard.measures.keys()
    np.testing.assert_array_equal(found.measures["low"], shard.measures["low"])
    assert found.skipped == {1: "image 1 is broken"}
    assert to_bytes(found, SHARD) == to_bytes(shard, SHARD)


def test_batches_are_joined_in_their_order() -> None:
    first, second = some_shard((0,), (1,)), some_shard((2, 3), ())
    whole = join([first, second])
    assert whole.indices.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(whole.maps[1:], second.maps)
    np.testing.assert_array_equal(whole.measures["low"][:1], first.measures["low"])
    assert whole.skipped == {1: "image 1 is broken"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measure_low": None}, "lacks the measure low"),
        ({"measure_spatial_entropy": np.zeros((1, 2))}, "measures are not those of its scores"),
        ({"scores": np.zeros((1, 2))}, "not those of its scores"),
        ({"maps": np.zeros((2, 3, 3, 4))}, "maps are not those of its scores"),
        ({"reasons": np.array(["a", "b"])}, "other images"),
        ({"places": np.array([0, 3])}, "other images"),
    ],
)
def test_a_shard_without_all_that_belongs_in_it_is_damaged(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """Statistics would end in a traceback over it, at every start."""
    with np.load(io.BytesIO(to_bytes(some_shard(), SHARD))) as file:
        arrays = {name: file[name] for name in file.files}
    arrays = {name: array for name, array in {**arrays, **change}.items() if array is not None}
    content = io.BytesIO()
    np.savez(content, **arrays)
    storage = storage_of(tmp_path)
    storage.write(SHARD.name, content.getvalue())
    with pytest.raises(InputError, match=f"cannot be used .*{message}"):
        read_unit(storage, SHARD, parse_shard)
