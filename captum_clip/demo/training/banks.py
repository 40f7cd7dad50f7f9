"""Pre-drawn objects and backgrounds, from which training batches are pasted quickly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ..backgrounds import draw_background
from ..captions import (
    Caption,
    concept_prompts,
    draw_caption,
    scene_concepts,
    vary,
)
from ..catalogue import BACKGROUNDS, CONCEPTS, THINGS
from ..layout import paste, place
from ..scenes import MAX_OBJECTS, draw_object, pick_things

_TRAIN: Final = 0  # the key of the split "train" in captum_clip.demo.scenes
_POSITION: Final = {concept: i for i, concept in enumerate(CONCEPTS)}


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    Args:
        images: (B, H, W, 3) uint8.
        texts: one caption a scene, then one prompt a concept, T = B + len(CONCEPTS).
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
        objects: name -> variants (h, w, 4), turned, mirrored, resized.
        backgrounds: name -> variants (H, W, 3).
    """

    size: int
    objects: dict[str, tuple[npt.NDArray[np.uint8], ...]]
    backgrounds: dict[str, tuple[npt.NDArray[np.uint8], ...]]


def build_banks(seed: int, *, size: int = 224, variants: int = 48, progress: bool = False) -> Banks:
    """Draw the banks of a seed.

    Args:
        seed: a number from 0 on.
        size: side of the scenes in pixels.
        variants: how many drawings of each thing and of each background.
        progress: show a progress bar.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(_TRAIN, 1))
    generator = np.random.default_rng(sequence)
    objects = {
        thing.name: tuple(draw_object(thing, size, generator) for _ in range(variants))
        for thing in tqdm(THINGS, desc="objects", disable=not progress)
    }
    backgrounds = {
        name: tuple(draw_background(name, size, generator) for _ in range(variants))
        for name in BACKGROUNDS
    }
    return Banks(size, objects, backgrounds)


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
        things = pick_things(int(generator.integers(1, MAX_OBJECTS + 1)), generator)
        background = BACKGROUNDS[generator.integers(len(BACKGROUNDS))]
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


def describe(names: Sequence[str], background: str, generator: np.random.Generator) -> Caption:
    """Write a training caption for some of the named things, at least one."""
    mentioned = generator.permutation(len(names))[: generator.integers(1, len(names) + 1)]
    return vary(draw_caption([names[i] for i in mentioned], background, generator), generator)


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
    variants = banks.backgrounds[background]
    drawn = variants[generator.integers(len(variants))]
    empty = drawn[:, ::-1] if generator.random() < 0.5 else drawn
    image[:] = empty
    sprites = []
    for name in names:
        choices = banks.objects[name]
        sprites.append(choices[generator.integers(len(choices))])
    corners = place([sprite[..., 3] > 0 for sprite in sprites], banks.size, generator)
    owner = np.full(image.shape[:2], -1, dtype=np.int8)
    for number, (sprite, corner) in enumerate(zip(sprites, corners, strict=True)):
        paste(image, sprite, corner, background=empty, owner=owner, number=number)
    return owner
