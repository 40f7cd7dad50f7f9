"""The demo scenes as data sets: held-out test scenes, drawn when they are read."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, Final, final

import numpy as np
from PIL import Image

from ...checks import check_integer
from ...demo import scenes
from ...demo.catalog import BACKGROUNDS, NOUNS, article, compose
from ...errors import naming
from .base import DataSet, NamedRegion, Sample

_PER_SEED: Final = 100_000
"""The most scenes of one seed, so that no scene belongs to two seeds."""
_FURTHER: Final = 10**12
"""The first seed of reference images and of cells of mosaics, far above those of scenes."""
_CELL_SIDE: Final = 112
_UNCUT_SIDE: Final = 176  # The largest object of a scene of this side, rotated, just fits a cell.
_SCENE_SIDE: Final = 224
_SIZES_OF_COPIES: Final = replace(scenes.STANDARD, sizes=scenes.SIDES)


class _DemoData(DataSet):
    """Scenes of the split "test", on which no demo model was trained.

    Args:
        number: of scenes, at most 100,000.
        seed: another seed gives other scenes; the demo's own figures are those of seed 0.

    Raises:
        InputError: a number out of range.
    """

    def __init__(self, number: int = 500, seed: int = 0) -> None:
        with naming(type(self).__name__):
            check_integer("number", number, most=_PER_SEED)
            check_integer("seed", seed, least=0)
        self.number = number
        self.seed = seed
        self.names = tuple(f"{index:05d}" for index in range(number))
        self.classes = tuple(article(noun) for noun in NOUNS)

    def read(self, index: int) -> Sample:
        return self._draw(self.names[index], index, self.seed * _PER_SEED + index)

    @abstractmethod
    def _draw(self, name: str, index: int, scene: int) -> Sample:
        """Draw sample number `index` from the seed of its scene."""

    def identity(self) -> dict[str, Any]:
        return {"data": self.name, "number": self.number, "seed": self.seed}


@final
class DemoScenes(_DemoData):
    """Scenes of two and three objects in turn, each with all its subsets.

    Every object is a region with its visible pixels, named by its noun, as "a horse". A noun occurs
    once in a scene. The reference of a region is another test scene that shows its noun alone.

    Example:
        >>> scenes = DemoScenes(1)
        >>> sample = scenes.read(0)
        >>> [region.text for region in sample.regions], len(sample.subsets)
        (['a donut', 'a shoe'], 4)
    """

    name = "demo"
    truth = ("masks", "objects", "scenes")

    def _draw(self, name: str, index: int, scene: int) -> Sample:
        count = 2 + index % 2
        subsets = []
        for subset in range(2**count):
            absent = [position for position in range(count) if not subset >> position & 1]
            subsets.append(scenes.draw_scene(scene, count=count, without=absent))
        images = tuple(Image.fromarray(subset.image) for subset in subsets)
        return Sample(name, images[-1], _regions(subsets[-1], scene), subsets=images)


@final
class DemoObjects(_DemoData):
    """Scenes of one, two and three objects in turn, for zero-shot classification.

    The class of a scene is the noun of its first object.

    Example:
        >>> objects = DemoObjects(3)
        >>> [len(objects.read(index).regions) for index in range(3)]
        [1, 2, 3]
        >>> sample = objects.read(0)
        >>> objects.classes[sample.label] == sample.regions[0].text
        True
    """

    name = "demo-objects"
    truth = ("counts",)

    def _draw(self, name: str, index: int, scene: int) -> Sample:
        drawn = scenes.draw_scene(scene, count=1 + index % 3)
        label = NOUNS.index(drawn.objects[0].noun)
        return Sample(name, Image.fromarray(drawn.image), _regions(drawn, scene), label=label)


@final
class DemoMosaics(_DemoData):
    """Mosaics of 2 x 2 scenes with one object each; a caption names one to four in turn.

    A mosaic has the 224 x 224 pixels of a scene, and a cell 112 x 112. If a scene were shrunk to a
    cell, its objects would be half as large as any that the models know. So a cell is cut out of a
    scene of side 176 around the object, which keeps 11/14 of its usual size. A caption names cells
    in random order, as "a horse and a dog", in at most 13 of the 16 tokens of the demo's tokenizer.
    Each noun of a caption is a region, whose mask is the whole cell.

    Example:
        >>> mosaics = DemoMosaics(2)
        >>> sample = mosaics.read(1)
        >>> sample.caption, [region.text for region in sample.regions]
        ('an octopus and a football', ['octopus', 'football'])
    """

    name = "demo-mosaics"
    truth = ("captions", "cells")

    def _draw(self, name: str, index: int, scene: int) -> Sample:
        generator = np.random.default_rng(np.random.SeedSequence(scene, spawn_key=(_FURTHER,)))
        nouns = [thing.noun for thing in scenes.pick_things(4, generator)]
        first_seed = _FURTHER + 4 * scene
        cells = []
        for cell, noun in enumerate(nouns):
            cells.append(_cut_cell(noun, first_seed + cell, generator))
        image = np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])])
        cell_of_pixel = np.kron([[0, 1], [2, 3]], np.ones((_CELL_SIDE, _CELL_SIDE), dtype=int))
        named_cells = generator.permutation(4)[: 1 + index % 4].tolist()
        regions = []
        for cell in named_cells:
            label = NOUNS.index(nouns[cell])
            regions.append(NamedRegion(nouns[cell], cell_of_pixel == cell, label=label))
        caption = compose([nouns[cell] for cell in named_cells])
        return Sample(name, Image.fromarray(image), tuple(regions), caption=caption)


class DemoThirds(_DemoData):
    """Three copies of one thing on a texture, each without another third of its pixels.

    All lie on a circle around the center, and have the same area and the same text, as "a horse".
    So nothing but the model says which of them carries the score. Every subset is drawn.

    Example:
        >>> sample = DemoThirds(1).read(0)
        >>> len({int(region.mask.sum()) for region in sample.regions}), len(sample.subsets)
        (1, 8)
    """

    name = "demo-thirds"
    truth = ("thirds",)
    usual = 300

    def _draw(self, name: str, index: int, scene: int) -> Sample:
        # The name is part of the seed, so that both data sets of copies show different things.
        sequence = np.random.SeedSequence(scene, spawn_key=(_FURTHER, *map(ord, self.name)))
        generator = np.random.default_rng(sequence)
        [thing] = scenes.pick_things(1, generator)
        sprite = scenes.draw_object(
            thing, _SCENE_SIDE, generator, split="test", world=_SIZES_OF_COPIES
        )
        copies, background = self._copies(sprite, generator)
        drawn, masks = scenes.draw_subsets(copies, background, generator)
        text = article(thing.noun)
        regions = tuple(NamedRegion(text, mask) for mask in masks)
        subsets = tuple(Image.fromarray(image) for image in drawn)
        return Sample(name, subsets[-1], regions, subsets=subsets)

    def _copies(self, sprite: Any, generator: np.random.Generator) -> tuple[list[Any], Any]:
        """Return three sprites of one area, and the background."""
        texture = BACKGROUNDS[generator.integers(len(BACKGROUNDS))]
        background = scenes.draw_background(texture, _SCENE_SIDE, generator)
        return scenes.without_thirds(sprite, generator), background


@final
class DemoIdentical(DemoThirds):
    """The same copy three times on a plain color: nothing but its place differs.

    Example:
        >>> len({region.mask.tobytes() for region in DemoIdentical(1).read(0).regions})
        3
    """

    name = "demo-identical"
    truth = ("identical",)

    def _copies(self, sprite: Any, generator: np.random.Generator) -> tuple[list[Any], Any]:
        color = generator.integers(256, size=3, dtype=np.uint8)
        background = np.full((_SCENE_SIDE, _SCENE_SIDE, 3), color)
        return [sprite] * 3, background


def _regions(drawn: scenes.Scene, scene: int) -> tuple[NamedRegion, ...]:
    """Return the region of every object; its reference is another scene that shows its noun."""
    regions = []
    for position, thing in enumerate(drawn.objects):
        alone = scenes.draw_scene(_FURTHER + 4 * scene + position, objects=[thing.noun])
        reference = Image.fromarray(alone.image)
        regions.append(NamedRegion(article(thing.noun), thing.mask, reference))
    return tuple(regions)


def _cut_cell(noun: str, seed: int, generator: np.random.Generator) -> Any:
    """Draw one of the windows (112, 112, 3) of a scene that show its whole object."""
    scene = scenes.draw_scene(seed, objects=[noun], size=_UNCUT_SIDE)
    box = Image.fromarray(scene.objects[0].mask).getbbox()
    assert box is not None
    left, top, right, bottom = box
    # The row is drawn before the column; another order would draw other mosaics.
    row = _draw_start(top, bottom, generator)
    column = _draw_start(left, right, generator)
    return scene.image[row : row + _CELL_SIDE, column : column + _CELL_SIDE]


def _draw_start(first: int, end: int, generator: np.random.Generator) -> int:
    """Draw where a window starts that holds the pixels from `first` to before `end` of a side."""
    lowest = max(0, end - _CELL_SIDE)
    highest = min(first, _UNCUT_SIDE - _CELL_SIDE)
    return int(generator.integers(lowest, highest + 1))
