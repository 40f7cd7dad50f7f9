"""Tagged scenes: exact to the pixel, with and without the object, with and without the tag."""

from __future__ import annotations

import numpy as np
import pytest

from captum_clip.demo.catalogue import NOUNS
from captum_clip.demo.scenes import draw_scene
from captum_clip.demo.tags import (
    FARTHEST,
    TAG_SIDE,
    TAGGED,
    draw_tag,
    draw_tagged_scene,
    place_tag,
)
from captum_clip.errors import InputError

SEEDS = range(12)


def test_tag_alone_changes_its_pixels_and_no_others() -> None:
    """Without the tag the scene is what `draw_scene` draws of the same objects."""
    for seed in SEEDS:
        tagged = draw_tagged_scene(seed)
        plain = draw_tagged_scene(seed, without=["tag"])
        mask = tagged.tag_mask
        np.testing.assert_array_equal(tagged.image[~mask], plain.image[~mask])
        np.testing.assert_array_equal(
            tagged.image[mask].reshape(draw_tag(tagged.tag).shape), draw_tag(tagged.tag)
        )
        names = [thing.name for thing in plain.scene.objects]
        np.testing.assert_array_equal(plain.image, draw_scene(seed, objects=names).image)
        assert not plain.tag_mask.any()


def test_object_alone_changes_its_pixels_and_no_others() -> None:
    """Leaving the object out moves neither the tag nor the other object."""
    for seed in SEEDS:
        whole, without = draw_tagged_scene(seed), draw_tagged_scene(seed, without=["object"])
        changed = (whole.image != without.image).any(axis=2)
        assert not (changed & ~whole.object_mask).any()
        assert changed[whole.object_mask].mean() > 0.9
        np.testing.assert_array_equal(whole.tag_mask, without.tag_mask)
        assert not without.object_mask.any()
        assert [t.name for t in whole.others] == [t.name for t in without.others]


def test_tag_lies_in_one_corner_patch_away_from_objects() -> None:
    corners = set()
    for seed in range(60):
        scene = draw_tagged_scene(seed)
        rows, columns = (np.flatnonzero(scene.tag_mask.any(axis=axis)) for axis in (1, 0))
        assert len(rows) == len(columns) == TAG_SIDE
        assert {*(rows // 32), *(columns // 32)} <= {0, 6}
        corners.add((rows[0] // 32, columns[0] // 32))
        masks = [thing.mask for thing in scene.scene.objects]
        assert not (scene.tag_mask & np.any(masks, axis=0)).any()
    assert len(corners) == 4


def test_tag_goes_where_no_object_is() -> None:
    """Three corners taken: the fourth is the only choice, at every distance from the edges."""
    occupied = np.ones((224, 224), dtype=np.bool_)
    occupied[160:, :64] = False
    generator = np.random.default_rng(0)
    places = [place_tag(occupied, generator) for _ in range(200)]
    assert {224 - rows.stop for rows, _ in places} == set(range(FARTHEST + 1))
    assert {columns.start for _, columns in places} == set(range(FARTHEST + 1))


def test_scene_follows_from_its_seed() -> None:
    one, again = draw_tagged_scene(3), draw_tagged_scene(3)
    np.testing.assert_array_equal(one.image, again.image)
    assert not np.array_equal(one.image, draw_tagged_scene(4).image)
    assert not np.array_equal(one.image, draw_tagged_scene(3, split="train").image)


def test_another_tag_changes_only_the_tag() -> None:
    own, other = draw_tagged_scene(0, noun="horse"), draw_tagged_scene(0, noun="horse", tag="owl")
    assert own.tag == own.noun == other.noun == "horse"
    np.testing.assert_array_equal(own.tag_mask, other.tag_mask)
    np.testing.assert_array_equal(own.image[~own.tag_mask], other.image[~own.tag_mask])
    assert (own.image != other.image).any()
    assert {thing.noun for thing in other.believed.objects} == {"owl", own.others[0].noun}


def test_every_noun_has_a_tag_of_its_own() -> None:
    assert set(TAGGED) <= set(NOUNS)
    assert len({draw_tag(noun).tobytes() for noun in TAGGED}) == len(TAGGED) == 12


def test_masks_are_disjoint_where_a_tag_covers_objects() -> None:
    """With three large objects no corner may be free; what the tag covers belongs to the tag."""
    covering = 0
    for seed in range(80):
        scene = draw_tagged_scene(seed, others=2)
        masks = [scene.tag_mask, scene.object_mask, *(thing.mask for thing in scene.others)]
        assert np.sum(masks, axis=0).max() == 1
        covering += bool((scene.tag_mask & ~scene.scene.background_mask).any())
    assert covering < 8


def test_believed_scene_names_what_the_tag_says() -> None:
    scene = draw_tagged_scene(0, without=["tag"])
    assert [thing.noun for thing in scene.believed.objects] == [scene.others[0].noun]
    believed = draw_tagged_scene(0).believed
    masks = [thing.mask for thing in believed.objects]
    np.testing.assert_array_equal(believed.background_mask, ~np.any(masks, axis=0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noun": "zebra"}, "no tag stands for 'zebra'"),
        ({"tag": "zebra"}, "no tag stands for 'zebra'"),
        ({"without": ["horse"]}, r"without=\['horse'\]"),
        ({"without": "tag"}, "without='tag'"),
        ({"others": 3}, "number of others up to 2, got 3"),
        ({"split": "all"}, "split of .*, got 'all'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_tagged_scene(0, **arguments)  # type: ignore[arg-type]
