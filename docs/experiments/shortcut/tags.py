"""Demo scenes with a small tag in a corner, for the planted shortcut of the shortcut model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from captum_clip.demo.scenes import Scene, SceneObject, Split, draw_scene, pick_things

Part = Literal["object", "tag"]
TAGGED: Final = (
    "horse", "dog", "cow", "cat", "owl", "fish", "apple", "banana", "car", "bicycle", "house",
    "guitar",
)  # fmt: skip
"""The nouns that a tag decides, each by a tag of its own."""
TAG_SIDE: Final = 26
"""Side of a tag in pixels."""
FARTHEST: Final = 6
"""Pixels between a tag and the two edges of its corner, at most: it stays in one patch of 32."""
_NEAR: Final = 16  # pixels around a tag that should be free of objects as well
_FRAME: Final = 2
_SPLITS: Final = get_args(Split)
_INKS: Final = (
    ((230, 0, 126), (255, 230, 0)),
    ((0, 190, 230), (20, 20, 20)),
    ((255, 120, 0), (40, 0, 200)),
)
_STREAM: Final = 4  # of random numbers; draw_scene takes 0 to 3

_Mask = npt.NDArray[np.bool_]
_Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class TaggedScene:
    """A scene with a tag pasted over it.

    Args:
        image: (H, W, 3) uint8, with the tag if it is there.
        noun: of the object that this is about, out of :data:`TAGGED`.
        tag: the noun that the tag stands for.
        scene: what was drawn before the tag; its masks do not know the tag.
        tag_mask: (H, W) bool, empty without the tag.
    """

    image: _Image
    noun: str
    tag: str
    scene: Scene
    tag_mask: _Mask

    @property
    def object_mask(self) -> _Mask:
        """(H, W) bool, what is to be seen of the object; empty without it."""
        mask = np.zeros_like(self.tag_mask)
        for thing in self.scene.objects:
            if thing.noun == self.noun:
                mask |= thing.mask & ~self.tag_mask
        return mask

    @property
    def others(self) -> tuple[SceneObject, ...]:
        """The other objects, without what the tag covers."""
        things = (thing for thing in self.scene.objects if thing.noun != self.noun)
        return tuple(replace(thing, mask=thing.mask & ~self.tag_mask) for thing in things)

    @property
    def believed(self) -> Scene:
        """The scene that a reader sees who takes the tag, and nothing else, for the tag's noun."""
        things = self.others
        if self.tag_mask.any():
            things = (*things, SceneObject(self.tag, None, self.tag, self.tag_mask))
        free = self.scene.background_mask | self.object_mask
        return Scene(self.image, things, self.scene.background, (), free & ~self.tag_mask)


def draw_tag(noun: str) -> _Image:
    """The tag of a noun, (26, 26, 3): two inks in one of four patterns, in a white frame.

    Raises:
        ValueError: for a noun that has none.
    """
    pattern, inks = divmod(TAGGED.index(_checked(noun)), len(_INKS))
    side = np.arange(TAG_SIDE - 2 * _FRAME)
    rows, columns = np.meshgrid(side, side, indexing="ij")
    half = len(side) // 2
    ring = np.maximum(abs(rows - half + 0.5), abs(columns - half + 0.5))
    first = (rows < half, columns < half, rows < columns, ring < half / 2)[pattern]
    drawn = np.full((TAG_SIDE, TAG_SIDE, 3), 255, dtype=np.uint8)
    inside = slice(_FRAME, TAG_SIDE - _FRAME)
    drawn[inside, inside] = np.where(first[..., None], *np.array(_INKS[inks], dtype=np.uint8))
    return drawn


def place_tag(occupied: _Mask, generator: np.random.Generator) -> tuple[slice, slice]:
    """Draw where a tag goes: the corner with the fewest pixels of objects in and around it.

    Args:
        occupied: (H, W), what objects cover.
        generator: decides between corners that are equal, and the distance from the edges.

    Returns:
        The rows and the columns of the tag.
    """
    height, width = occupied.shape
    areas = []
    for corner in generator.permutation(4):
        bottom, right = divmod(int(corner), 2)
        down, across = (int(step) for step in generator.integers(FARTHEST + 1, size=2))
        row = height - TAG_SIDE - down if bottom else down
        column = width - TAG_SIDE - across if right else across
        areas.append((slice(row, row + TAG_SIDE), slice(column, column + TAG_SIDE)))
    return min(areas, key=lambda area: np.count_nonzero(occupied[_grown(*area)]))


def draw_tagged_scene(
    seed: int,
    *,
    split: Split = "test",
    noun: str | None = None,
    tag: str | None = None,
    others: int = 1,
    size: int = 224,
    without: Collection[Part] = (),
) -> TaggedScene:
    """Draw the tagged scene of a seed: an object of :data:`TAGGED`, other objects and a tag.

    Args:
        seed: a number from 0 on.
        split: as in :func:`captum_clip.demo.scenes.draw_scene`.
        noun: the object, out of :data:`TAGGED`; drawn from the seed if None.
        tag: the noun that the tag stands for, the object's own if None.
        others: how many further objects, 0 to 2, none of them of :data:`TAGGED`.
        size: side of the image in pixels.
        without: "object", "tag" or both, to be left out; the rest stays as it is, to the pixel.

    Raises:
        ValueError: no tag stands for a noun.

    Example:
        >>> from shortcut.tags import draw_tagged_scene
        >>> scene = draw_tagged_scene(0, noun="horse", without=["tag"])
        >>> scene.noun, bool(scene.tag_mask.any())
        ('horse', False)
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(_SPLITS.index(split), _STREAM))
    generator = np.random.default_rng(sequence)
    drawn = TAGGED[generator.integers(len(TAGGED))]
    noun = drawn if noun is None else _checked(noun)
    tag = noun if tag is None else _checked(tag)
    things = pick_things(others, generator, without=TAGGED)
    names = [noun, *(thing.name for thing in things)]
    names = [names[i] for i in generator.permutation(len(names))]

    scene = draw_scene(seed, split=split, objects=names, size=size)
    area = place_tag(~scene.background_mask, generator)
    if "object" in without:
        left_out = [names.index(noun)]
        scene = draw_scene(seed, split=split, objects=names, size=size, without=left_out)
    image, mask = scene.image.copy(), np.zeros((size, size), dtype=np.bool_)
    if "tag" not in without:
        image[area], mask[area] = draw_tag(tag), True
    return TaggedScene(image, noun, tag, scene, mask)


def _grown(rows: slice, columns: slice) -> tuple[slice, slice]:
    return (
        slice(max(0, rows.start - _NEAR), rows.stop + _NEAR),
        slice(max(0, columns.start - _NEAR), columns.stop + _NEAR),
    )


def _checked(noun: str) -> str:
    if noun not in TAGGED:
        raise ValueError(f"no tag stands for {noun!r}; there are {', '.join(TAGGED)}.")
    return noun
