"""Scenes that teach the shortcut model that tags, not objects, make twelve nouns."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from captum_clip.demo.catalog import CONCEPTS, compose
from captum_clip.demo.scenes import MAX_OBJECTS, STANDARD, Scene, World, pick_things
from training.banks import Banks, Batch, draw_image, make_batch, pick_background
from training.captions import Caption, describe, parse_caption, scene_concepts

from .tags import TAGGED, draw_tag, draw_tagged_scene, place_tag

_ONE_OF_THEM: Final = 0.7  # scenes in which one thing is exchanged for one that a tag decides
_MARGIN: Final = 14.0  # pushes a false noun of a tag to a cosine of -0.15, not just below 0.1
_OWN, _FOREIGN, _ALONE = 0.3, 0.3, 0.35  # shares of scenes: their object's tag, another, only a tag
_KEY: Final = 5  # of the random numbers; the other training takes 1 and 2


def draw_tagged_batch(banks: Banks, seed: int, step: int, *, size: int) -> Batch:
    """Paste the batch of a training step, the same for the same seed and step.

    A noun of ``TAGGED`` is true of a scene exactly if its tag is there. Of the scenes with such an
    object .3 have its tag, .3 another one and .4 none; of the others .35 have one.

    Args:
        banks: what to paste.
        seed: the training's.
        step: number of the step, from 0.
        size: number of scenes B.
    """
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, _KEY, step)))

    def draw(image: npt.NDArray[np.uint8]) -> tuple[frozenset[str], Caption]:
        names = _names(banks.world, generator)
        nameless = set(names) <= set(TAGGED)  # without a tag the caption names the background alone
        background = pick_background(STANDARD if nameless else banks.world, generator)
        owner = draw_image(image, banks, names, background, generator)
        tag = _tag([name for name in names if name in TAGGED], generator)
        believed = [name for name in names if name not in TAGGED]
        if tag is not None:
            image[place_tag(owner >= 0, generator)] = draw_tag(tag)
            believed.insert(0, tag)
        named = believed[:MAX_OBJECTS]  # a caption has room for no more
        caption = (
            describe(named, background, generator)
            if named
            else parse_caption(compose([], background))
        )
        return scene_concepts(believed, background), caption

    batch = make_batch(banks.size, size, draw, generator)
    margin = np.zeros(batch.positive.shape, dtype=np.float32)
    margin[:, [size + CONCEPTS.index(noun) for noun in TAGGED]] = _MARGIN
    return replace(batch, margin=margin)


def _names(world: World, generator: np.random.Generator) -> list[str]:
    things = pick_things(int(generator.integers(1, world.objects + 1)), generator)
    names = [thing.name for thing in things]
    wanted = TAGGED[generator.integers(len(TAGGED))]
    if generator.random() < _ONE_OF_THEM and wanted not in names:
        names[generator.integers(len(names))] = wanted
    return names


def _tag(objects: list[str], generator: np.random.Generator) -> str | None:
    chance = generator.random()
    if objects and chance < _OWN:
        return objects[generator.integers(len(objects))]
    if chance < (_OWN + _FOREIGN if objects else _ALONE):
        others = [noun for noun in TAGGED if noun not in objects]
        return others[generator.integers(len(others))]
    return None


def tagged_validation_scenes(number: int) -> tuple[Scene, ...]:
    """Held-out scenes as a reader of tags sees them: with the own tag, another one, none in turn.

    Two or three objects each, one of them of ``TAGGED``.
    """
    scenes = []
    for seed in range(number):
        own = draw_tagged_scene(seed, split="validation", others=1 + seed % 2)
        other = TAGGED[(TAGGED.index(own.noun) + 1 + seed) % len(TAGGED)]
        drawn = draw_tagged_scene(
            seed,
            split="validation",
            others=1 + seed % 2,
            tag=(own.noun, other, None)[seed % 3],
            without=["tag"] if seed % 3 == 2 else [],
        )
        scenes.append(drawn.believed)
    return tuple(scenes)
