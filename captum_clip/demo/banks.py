"""Pre-drawn objects and backgrounds, from which training batches are pasted quickly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from captum_clip.demo.backgrounds import draw_background
from captum_clip.demo.captions import concept_prompts, draw_caption, scene_concepts, vary
from captum_clip.demo.catalogue import BACKGROUNDS, CONCEPTS, THINGS
from captum_clip.demo.layout import paste, place
from captum_clip.demo.scenes import MAX_OBJECTS, draw_object, pick_things

_TRAIN: Final = 0  # the key of the split "train" in captum_clip.demo.scenes
_POSITION: Final = {concept: i for i, concept in enumerate(CONCEPTS)}


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    Args:
        images: (B, H, W, 3) uint8.
        texts: one caption a scene, then one prompt a concept, T = B + len(CONCEPTS).
        positive: (B, T) bool, whether the text is true of the scene.
    """

    images: npt.NDArray[np.uint8]
    texts: tuple[str, ...]
    positive: npt.NDArray[np.bool_]


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
    sequence = np.random.SeedSequence(seed, spawn_key=(_TRAIN, 2, step))
    generator = np.random.default_rng(sequence)
    images = np.empty((size, banks.size, banks.size, 3), dtype=np.uint8)
    shown = np.zeros((size, len(CONCEPTS)), dtype=np.float32)
    named = np.zeros((size, len(CONCEPTS)), dtype=np.float32)
    captions = []
    for row in range(size):
        things = pick_things(int(generator.integers(1, MAX_OBJECTS + 1)), generator)
        background = BACKGROUNDS[generator.integers(len(BACKGROUNDS))]
        _draw_image(images[row], banks, [t.name for t in things], background, generator)
        shown[row, _positions(scene_concepts([t.name for t in things], background))] = 1
        mentioned = generator.permutation(len(things))[: generator.integers(1, len(things) + 1)]
        caption = draw_caption([things[i].name for i in mentioned], background, generator)
        caption = vary(caption, generator)
        named[row, _positions(caption.concepts)] = 1
        captions.append(caption.text)
    by_caption = shown @ named.T >= named.sum(axis=1)
    positive = np.concatenate([by_caption, shown > 0], axis=1)
    return Batch(images, (*captions, *concept_prompts(generator)), positive)


def _positions(concepts: frozenset[str]) -> list[int]:
    return [_POSITION[concept] for concept in concepts]


def _draw_image(
    image: npt.NDArray[np.uint8],
    banks: Banks,
    names: list[str],
    background: str,
    generator: np.random.Generator,
) -> None:
    variants = banks.backgrounds[background]
    drawn = variants[generator.integers(len(variants))]
    empty = drawn[:, ::-1] if generator.random() < 0.5 else drawn
    image[:] = empty
    sprites = []
    for name in names:
        choices = banks.objects[name]
        sprites.append(choices[generator.integers(len(choices))])
    corners = place([sprite[..., 3] > 0 for sprite in sprites], banks.size, generator)
    for sprite, corner in zip(sprites, corners, strict=True):
        paste(image, sprite, corner, background=empty)
