"""Scenes: exact masks, true captions, seeds that never meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from captum_clip.demo import scenes
from captum_clip.demo.catalog import FEELINGS, THINGS
from captum_clip.demo.scenes import (
    STANDARD,
    Scene,
    World,
    draw_scene,
)
from captum_clip.errors import InputError

SEEDS = range(12)


def _masks(scene: Scene) -> np.ndarray:
    return np.stack([scene.background_mask, *(thing.mask for thing in scene.objects)])


def check_masks(world: World) -> None:
    """Every pixel belongs to the background or to one object."""
    for seed in SEEDS:
        scene = draw_scene(seed, count=world.objects, world=world)
        np.testing.assert_array_equal(_masks(scene).sum(axis=0), 1)


def test_masks_cover_every_pixel_exactly_once() -> None:
    check_masks(STANDARD)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_scene_without_an_object_changes_its_pixels_only(position: int) -> None:
    for seed in range(4):
        check_scene_without(seed, STANDARD, position)


def check_scene_without(seed: int, world: World, position: int) -> None:
    """Leaving an object out changes its own pixels, and shows what it covered."""
    whole, rest = (
        draw_scene(seed, count=world.objects, world=world, without=left_out)
        for left_out in ([], [position])
    )
    left_out = whole.objects[position]
    changed = (whole.image != rest.image).any(axis=-1)
    assert changed.any()
    assert not (changed & ~left_out.mask).any()
    kept = [thing for i, thing in enumerate(whole.objects) if i != position]
    assert [thing.name for thing in rest.objects] == [thing.name for thing in kept]
    uncovered = rest.background_mask & ~whole.background_mask
    for before, after in zip(kept, rest.objects, strict=True):
        assert not (before.mask & ~after.mask).any()
        uncovered |= after.mask & ~before.mask
    np.testing.assert_array_equal(uncovered, left_out.mask)


def test_objects_stay_mostly_visible_and_in_size() -> None:
    for seed in range(20):
        whole = draw_scene(seed, count=3)
        for i in range(3):
            others = [j for j in range(3) if j != i]
            alone = draw_scene(seed, count=3, without=others).objects[0].mask
            assert whole.objects[i].mask.sum() >= 0.6 * alone.sum()
            rows, columns = np.nonzero(alone)
            longer = max(np.ptp(rows), np.ptp(columns)) + 1
            # rotated by 15 degrees, a thin drawing loses and a square one gains some length
            smallest, largest = STANDARD.sizes
            assert 0.9 * smallest <= longer / 224 <= 1.27 * largest


def test_same_seed_gives_the_same_scene() -> None:
    first, second = draw_scene(7), draw_scene(7)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(_masks(first), _masks(second))
    assert first.captions == second.captions


def test_global_random_state_has_no_say() -> None:
    np.random.seed(0)
    first = draw_scene(7).image
    np.random.seed(1)
    np.testing.assert_array_equal(first, draw_scene(7).image)


def test_forced_objects_and_background_are_drawn() -> None:
    scene = draw_scene(0, objects=["horse", "red heart", "book"], background="snow", size=160)
    assert [thing.noun for thing in scene.objects] == ["horse", "heart", "book"]
    assert scene.objects[1].adjective == "red"
    assert scene.background == "snow"
    assert scene.image.shape == (160, 160, 3)
    assert scene.image.dtype == np.uint8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"objects": ["frobnicator"]},
            "things such as horse or red heart, got 'frobnicator'; .*models --vocabulary",
        ),
        ({"objects": "horse"}, "expected objects as a list"),
        ({"objects": ["horse"] * 4}, "number of objects up to 3, got 4"),
        ({"objects": ["horse"], "count": 2}, "`count` as many as objects, 1, got 2"),
        ({"count": 0}, "number of objects of 1 or more, got 0"),
        ({"background": "lava"}, "background of grass, .*, got 'lava'"),
        ({"split": "dev"}, "split of train, .*, got 'dev'"),
        ({"count": 1, "without": [1]}, "`without` below 1, the number of objects, got"),
        ({"size": 8}, "a size of 64 or more, got 8"),
    ],
)
def test_impossible_scenes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_scene(0, **options)


def test_each_emotion_has_three_faces_to_learn_from_and_one_held_out() -> None:
    faces = [thing for thing in THINGS if thing.noun == "face"]
    assert [thing.adjective for thing in faces] == list(FEELINGS.values())
    assert len(FEELINGS) == 8
    for thing in faces:
        assert len(thing.characters) >= 3
        assert len(thing.held_out) == 1


def test_test_scenes_show_the_held_out_faces_and_others_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Each drawing becomes one color, by which it is known in the scene.
    for thing in (thing for thing in THINGS if thing.held_out):
        count = len(thing.characters) + 1
        shades = [Image.new("RGBA", (96, 96), (255, 0, 10 * n, 255)) for n in range(count)]
        monkeypatch.setattr(scenes, "load_sprites", lambda n=thing.name, d=shades: {n: tuple(d)})
        seen: dict[str, set[int]] = {"train": set(), "validation": set(), "test": set()}
        for split, found in seen.items():
            for seed in range(30):
                scene = draw_scene(seed, split=split, objects=[thing.name])  # type: ignore[arg-type]
                rows, columns = np.nonzero(scene.objects[0].mask)
                found.add(int(scene.image[int(rows.mean()), int(columns.mean()), 2]) // 10)
        assert seen["train"] == seen["validation"] == set(range(count - 1))
        assert seen["test"] == {count - 1}
