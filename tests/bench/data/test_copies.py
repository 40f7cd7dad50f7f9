"""Three copies of one thing: one area, one circle, one text, and every subset of them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captum_clip.bench.data.demo import DemoIdentical, DemoThirds
from captum_clip.demo.scenes import without_thirds

KINDS = [DemoThirds, DemoIdentical]


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_lawful_and_of_one_area_on_one_circle(kind: Any, lawful: Any) -> None:
    for sample in lawful(kind(12, seed=3)):
        masks = np.stack([region.mask for region in sample.regions])
        assert len({region.text for region in sample.regions}) == 1
        assert len({int(mask.sum()) for mask in masks}) == 1
        assert masks.sum(0).max() == 1
        if kind is DemoIdentical:  # of a third that is cut off the rest has another center
            boxes = [Image.fromarray(mask).getbbox() or (0,) * 4 for mask in masks]
            centers = np.array([((x + right) / 2, (y + end) / 2) for x, y, right, end in boxes])
            assert np.linalg.norm(centers - 112, axis=1) == pytest.approx(0.28 * 224, abs=1)
            shown = [np.asarray(sample.image)[mask] for mask in masks]
            assert all(np.array_equal(shown[0], other) for other in shown)


def test_each_copy_lacks_another_third() -> None:
    """Each pixel is missing in one copy at most, and every copy lacks equally many."""
    sprite = np.random.default_rng(0).integers(0, 256, (17, 23, 4), dtype=np.uint8)
    sprite[..., 3][:, ::4] = 0
    copies = without_thirds(sprite, np.random.default_rng(1))
    whole = sprite[..., 3] > 0
    missing = np.stack([whole & (copy[..., 3] == 0) for copy in copies])
    assert {int(m.sum()) for m in missing} == {int(whole.sum()) // 3}
    assert missing.sum(0).max() == 1
    for copy, gone in zip(copies, missing, strict=True):
        assert np.array_equal(copy[~gone], sprite[~gone])


def test_every_subset_is_drawn_on_the_same_background() -> None:
    """A copy that comes changes its own pixels alone."""
    sample = DemoThirds(3, seed=5).read(2)
    images = [np.asarray(image).astype(int) for image in sample.subsets]
    assert len(images) == 8
    for place, subset in itertools.product(range(3), range(8)):
        changed = (images[subset] != images[subset | 1 << place]).any(-1)
        assert not (changed & ~sample.regions[place].mask).any()
    assert np.array_equal(images[-1], np.asarray(sample.image))


@pytest.mark.parametrize("seed", [0, 1])
def test_no_other_data_have_these_draws(seed: int) -> None:
    first, second = (kind(1, seed=seed).read(0).image for kind in KINDS)
    assert first.tobytes() != second.tobytes()
    assert first.tobytes() != DemoThirds(1, seed=seed + 1).read(0).image.tobytes()
