"""Broad scenes: exact masks, small and covered objects, backgrounds with and without a name."""

from __future__ import annotations

import numpy as np
import pytest

from captum_clip.demo.catalog import BACKGROUNDS
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError
from tests.demo.test_scenes import SEEDS, check_masks, check_scene_without
from tests.experiments import experiment

broad_scenes = experiment("training.broad_scenes")
BROAD, UNNAMED = broad_scenes.BROAD, broad_scenes.UNNAMED


def test_broad_masks_are_exact() -> None:
    check_masks(BROAD)
    check_scene_without(0, BROAD, 2)


def test_captions_of_broad_scenes_name_up_to_three_things_and_no_unnamed_background() -> None:
    for seed in range(10):
        scene = draw_scene(seed, world=BROAD, count=3, size=96, background="plain")
        words = set(" ".join(scene.captions).split())
        names = {word for thing in scene.objects for word in thing.name.split()}
        assert words - {"a", "an", "and"} <= names
        assert 3 < len(scene.captions) <= 7


def test_broad_objects_are_small_and_large_and_partly_covered() -> None:
    lengths, visible = [], []
    for seed in SEEDS:
        whole = draw_scene(seed, world=BROAD, count=5)
        for i in range(5):
            rest = [j for j in range(5) if j != i]
            alone = draw_scene(seed, world=BROAD, count=5, without=rest).objects[0].mask
            rows, columns = np.nonzero(alone)
            lengths.append((max(np.ptp(rows), np.ptp(columns)) + 1) / 224)
            visible.append(whole.objects[i].mask.sum() / alone.sum())
    assert min(lengths) < 0.2
    assert 0.6 < max(lengths) <= 1.27 * BROAD.sizes[1]
    assert min(visible) >= 0.4
    assert 0.1 < np.mean(np.array(visible) < 0.95) < 0.6


def test_half_of_the_broad_backgrounds_have_a_name_and_none_is_held_out() -> None:
    drawn = [draw_scene(s, world=BROAD, count=1, size=64).background for s in range(200)]
    assert set(drawn) == {*BACKGROUNDS, *UNNAMED}
    assert 0.4 < np.mean([name in BACKGROUNDS for name in drawn]) < 0.6
    assert draw_scene(0, world=BROAD, background="dots").background == "dots"
    with pytest.raises(InputError, match=r"background of grass, .*, got 'dots'"):
        draw_scene(0, world=BROAD, background="dots", split="train")
    with pytest.raises(InputError, match=r"background of grass, .*, got 'plain'"):
        draw_scene(0, background="plain")
