"""Pre-drawn objects and backgrounds, from which training batches are pasted quickly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from captum_clip.demo.catalog import CONCEPTS, THINGS
from captum_clip.demo.scenes import (
    STANDARD,
    World,
    draw_background,
    draw_object,
    paste_all,
    pick_things,
    place,
)

from .captions import Caption, concept_prompts, describe, scene_concepts

_TRAIN: Final = 0  # the key of the split "train" in captum_clip.demo.scenes
_POSITION: Final = {concept: i for i, concept in enumerate(CONCEPTS)}
_BACKGROUNDS: Final = 8  # times as many as drawings of a thing, lest they be learned by heart


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    Args:
        images: (B, H, W, 3) uint8.
        texts: one caption per scene, then one prompt per concept, T = B + len(CONCEPTS).
        positive: (B, T) bool, whether the text is true of the scene.
        margin: (B, T) of the loss of false pairs, none if None.
    """

    images: npt.NDArray[np.uint8]
    texts: tuple[str, ...]
    positive: npt.NDArray[np.bool_]
    margin: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Banks:
    """Drawings ready to be pasted.

    Args:
        size: side of the scenes in pixels.
        objects: name -> variants (h, w, 4), rotated, mirrored, resized.
        backgrounds: name -> variants (H, W, 3).
        world: what the scenes look like.
    """

    size: int
    objects: dict[str, tuple[npt.NDArray[np.uint8], ...]]
    backgrounds: dict[str, tuple[npt.NDArray[np.uint8], ...]]
    world: World


def build_banks(
    seed: int,
    *,
    size: int = 224,
    variants: int = 48,
    world: World = STANDARD,
    progress: bool = False,
) -> Banks:
    """Draw the banks of a seed.

    Args:
        seed: a number from 0 on.
        size: side of the scenes in pixels.
        variants: how many drawings of each thing; eight times as many of each background.
        world: what the scenes look like.
        progress: show a progress bar.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(_TRAIN, 1))
    generator = np.random.default_rng(sequence)
    objects = {
        thing.name: tuple(draw_object(thing, size, generator, world=world) for _ in range(variants))
        for thing in tqdm(THINGS, desc="objects", disable=not progress)
    }
    backgrounds = {
        name: tuple(draw_background(name, size, generator) for _ in range(_BACKGROUNDS * variants))
        for name in dict.fromkeys(world.backgrounds)
    }
    return Banks(size, objects, backgrounds, world)


def draw_batch(banks: Banks, seed: int, step: int, *, size: int) -> Batch:
    """Paste the batch of a training step, the same for the same seed and step.

    Args:
        banks: what to paste.
        seed: the training's.
        step: number of the step, from 0.
        size: number of scenes B.
    """
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_TRAIN, 2, step)))

    def draw(image: npt.NDArray[np.uint8]) -> tuple[frozenset[str], Caption]:
        things = pick_things(int(generator.integers(1, banks.world.objects + 1)), generator)
        background = pick_background(banks.world, generator)
        names = [thing.name for thing in things]
        draw_image(image, banks, names, background, generator)
        return scene_concepts(names, background), describe(names, background, generator)

    return make_batch(banks.size, size, draw, generator)


def make_batch(
    side: int,
    size: int,
    draw: Callable[[npt.NDArray[np.uint8]], tuple[frozenset[str], Caption]],
    generator: np.random.Generator,
) -> Batch:
    """Draw scenes, put prompts beside their captions, and say which text is true of which scene.

    Args:
        side: of the scenes in pixels.
        size: number of scenes B.
        draw: draws a scene into an image (H, W, 3) -> all its concepts, a caption.
        generator: the source of the prompts' wording.
    """
    images = np.empty((size, side, side, 3), dtype=np.uint8)
    shown, captions = zip(*map(draw, images), strict=True)
    concepts = _rows(shown)
    named = _rows([caption.concepts for caption in captions])
    by_caption = concepts @ named.T >= named.sum(axis=1)
    positive = np.concatenate([by_caption, concepts > 0], axis=1)
    texts = (caption.text for caption in captions)
    return Batch(images, (*texts, *concept_prompts(generator)), positive)


def _rows(scenes: Sequence[frozenset[str]]) -> npt.NDArray[np.float32]:
    rows = np.zeros((len(scenes), len(CONCEPTS)), dtype=np.float32)
    for row, concepts in zip(rows, scenes, strict=True):
        row[[_POSITION[concept] for concept in concepts]] = 1
    return rows


def draw_image(
    image: npt.NDArray[np.uint8],
    banks: Banks,
    names: Sequence[str],
    background: str,
    generator: np.random.Generator,
) -> npt.NDArray[np.int8]:
    """Paste a scene, in place.

    Args:
        image: (H, W, 3), what is there does not matter.
        banks: what to paste.
        names: of the things, from the back to the front.
        background: its name.
        generator: the source of drawings and positions.

    Returns:
        (H, W), the position in ``names`` of what each pixel shows, -1 for the background.
    """
    drawn = _pick(banks.backgrounds[background], generator)
    image[:] = drawn[:, ::-1] if generator.random() < 0.5 else drawn
    drawings = [_pick(banks.objects[name], generator) for name in names]
    visible = banks.world.visible
    sprites, corners = place(drawings, banks.size, generator, visible=visible)
    return paste_all(sprites, corners, image)


def pick_background(world: World, generator: np.random.Generator) -> str:
    """Draw a name."""
    return world.backgrounds[generator.integers(len(world.backgrounds))]


def _pick(
    variants: Sequence[npt.NDArray[np.uint8]], generator: np.random.Generator
) -> npt.NDArray[np.uint8]:
    return variants[int(generator.integers(len(variants)))]
