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

_PER_SEED: Final = 100_000  # scenes of one seed, so that those of two seeds never meet
_FURTHER: Final = 10**12  # seeds of reference images and cells of mosaics, which meet none of both
_CELL_SIDE: Final = 112
_UNCUT: Final = 176  # the largest object of a scene of this side, rotated, just fits a cell
_SCENE_SIDE: Final = 224
_SIZES_OF_COPIES: Final = replace(scenes.STANDARD, sizes=scenes.SIDES)


class _DemoData(DataSet):
    """Scenes of the split "test", so none that a demo model was trained on.

    Args:
        number: how many, at most 100,000.
        seed: another seed gives other scenes; 0 gives those that the demo's own figures stand on.

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
        """Sample number `index`, from the seed of its scene."""

    def identity(self) -> dict[str, Any]:
        return {"data": self.name, "number": self.number, "seed": self.seed}


@final
class DemoScenes(_DemoData):
    """Scenes of two and three objects in turn, each with all its subsets.

    Every object is a region named by its noun, "a horse", with its visible pixels; no noun comes
    twice in a scene. Its reference is another test scene that shows this noun alone.

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
        absent = [
            [place for place in range(count) if not chosen >> place & 1]
            for chosen in range(2**count)
        ]
        subsets = [scenes.draw_scene(scene, count=count, without=without) for without in absent]
        images = tuple(Image.fromarray(subset.image) for subset in subsets)
        return Sample(name, images[-1], _regions(subsets[-1], scene), subsets=images)


@final
class DemoObjects(_DemoData):
    """Scenes of one, two and three objects in turn, for zero-shot classification.

    Their class is the noun of their first object.

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

    A mosaic has the 224 x 224 pixels of a scene, so that a cell has 112. If a scene were shrunk to
    that, its objects would be half as large as any that the models know. So a cell is cut out of a
    scene of side 176, around the object, which stays at 11/14 of its usual size. Captions name
    cells in no order, "a horse and a dog", in at most 13 of the 16 tokens of the demo's tokenizer.
    Regions are the named nouns as words of the caption, each with its whole cell.

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
        seeds = range(_FURTHER + 4 * scene, _FURTHER + 4 * scene + 4)
        cells = [_cut_cell(noun, seed, generator) for noun, seed in zip(nouns, seeds, strict=True)]
        image = np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])])
        owners = np.kron([[0, 1], [2, 3]], np.ones(cells[0].shape[:2], dtype=int))
        named = generator.permutation(4)[: 1 + index % 4].tolist()
        regions = tuple(
            NamedRegion(nouns[cell], owners == cell, label=NOUNS.index(nouns[cell]))
            for cell in named
        )
        caption = compose([nouns[cell] for cell in named])
        return Sample(name, Image.fromarray(image), regions, caption=caption)


class DemoThirds(_DemoData):
    """Three copies of one thing on a texture, each without another third of its pixels.

    They lie on one circle round the center and have one area, and their text is one, "a horse": so
    nothing but the model says which of them carries the score. Each subset is drawn.

    Example:
        >>> sample = DemoThirds(1).read(0)
        >>> len({int(region.mask.sum()) for region in sample.regions}), len(sample.subsets)
        (1, 8)
    """

    name = "demo-thirds"
    truth = ("thirds",)
    usual = 300

    def _draw(self, name: str, index: int, scene: int) -> Sample:
        sequence = np.random.SeedSequence(scene, spawn_key=(_FURTHER, *map(ord, self.name)))
        generator = np.random.default_rng(sequence)
        [thing] = scenes.pick_things(1, generator)
        sprite = scenes.draw_object(
            thing, _SCENE_SIDE, generator, split="test", world=_SIZES_OF_COPIES
        )
        copies, background = self._copies(sprite, generator)
        drawn, masks = scenes.draw_subsets(copies, background, generator)
        regions = tuple(NamedRegion(article(thing.noun), mask) for mask in masks)
        subsets = tuple(map(Image.fromarray, drawn))
        return Sample(name, subsets[-1], regions, subsets=subsets)

    def _copies(self, sprite: Any, generator: np.random.Generator) -> tuple[list[Any], Any]:
        """Three sprites of one area, and the background."""
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
        return [sprite] * 3, np.full((_SCENE_SIDE, _SCENE_SIDE, 3), color)


def _regions(drawn: scenes.Scene, scene: int) -> tuple[NamedRegion, ...]:
    """Every object, with another scene that shows nothing but its noun."""
    regions = []
    for position, thing in enumerate(drawn.objects):
        alone = scenes.draw_scene(_FURTHER + 4 * scene + position, objects=[thing.noun])
        regions.append(NamedRegion(article(thing.noun), thing.mask, Image.fromarray(alone.image)))
    return tuple(regions)


def _cut_cell(noun: str, seed: int, generator: np.random.Generator) -> Any:
    """A window (112, 112, 3) of a scene, drawn from all that show the whole object."""
    scene = scenes.draw_scene(seed, objects=[noun], size=_UNCUT)
    box = Image.fromarray(scene.objects[0].mask).getbbox()
    assert box is not None
    top, left = (
        int(generator.integers(max(0, end - _CELL_SIDE), min(start, _UNCUT - _CELL_SIDE) + 1))
        for start, end in ((box[1], box[3]), (box[0], box[2]))
    )
    return scene.image[top : top + _CELL_SIDE, left : left + _CELL_SIDE]
