"""Seeded demo scenes: an image, its captions and one exact mask an object."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from ..checks import check_choice, check_integer, expect
from ..errors import public
from .backgrounds import draw_background
from .captions import draw_caption
from .catalog import BACKGROUNDS, THINGS, Thing
from .layout import paste_all, place
from .sprites import load_sprites, rotated

Split = Literal["train", "validation", "test"]
STEEPEST: Final = 15.0  # degrees
_SPLITS: Final = {"train": 0, "validation": 1, "test": 2}
_BY_NAME: Final = {thing.name: thing for thing in THINGS}


@dataclass(frozen=True)
class World:
    """A kind of scenes.

    Args:
        objects: how many there are at most.
        sizes: the longer side of an object, as a share of the image's side, at least and at most.
        visible: the share of each object that others never cover.
        backgrounds: each equally often; captions name those of ``BACKGROUNDS``.
        held_out: further backgrounds, which no training scene has, drawn where they are asked for.
    """

    objects: int
    sizes: tuple[float, float]
    visible: float
    backgrounds: tuple[str, ...]
    held_out: tuple[str, ...] = ()


STANDARD: Final = World(3, (0.28, 0.5), 0.62, BACKGROUNDS)
"""The scenes of the evaluation, and of trainings by default: one to three objects on textures."""

MAX_OBJECTS: Final = STANDARD.objects
"""The most objects that a standard scene shows, and that a caption names."""


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Args:
        noun: such as ``"heart"``.
        adjective: such as ``"red"`` or ``"sad"``, None for things without one.
        name: adjective and noun.
        mask: (H, W) bool, the visible part: what covers it is left out.
    """

    noun: str
    adjective: str | None
    name: str
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    Args:
        image: (H, W, 3) uint8.
        objects: from the back to the front; their masks are disjoint.
        background: its name.
        captions: one for each non-empty subset of up to three objects, all of them true.
        background_mask: (H, W) bool, what no object covers.
    """

    image: npt.NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    background: str
    captions: tuple[str, ...]
    background_mask: npt.NDArray[np.bool_]


def pick_things(
    count: int, generator: np.random.Generator, *, without: Collection[str] = ()
) -> tuple[Thing, ...]:
    """Draw things with different nouns, none of them left out, each thing equally often."""
    chosen: dict[str, Thing] = {}
    while len(chosen) < count:
        thing = THINGS[generator.integers(len(THINGS))]
        if thing.noun not in without:
            chosen.setdefault(thing.noun, thing)
    return tuple(chosen.values())


def draw_object(
    thing: Thing,
    size: int,
    generator: np.random.Generator,
    *,
    split: Split = "train",
    world: World = STANDARD,
) -> npt.NDArray[np.uint8]:
    """Draw a thing for a scene of the given side, at random in drawing, size, angle and mirroring.

    Returns:
        (h, w, 4); its mask is ``alpha > 0``.
    """
    drawings = load_sprites()[thing.name]
    usual, held_out = drawings[: len(thing.characters)], drawings[len(thing.characters) :]
    drawings = held_out if held_out and split == "test" else usual
    drawing = drawings[generator.integers(len(drawings))]
    side = round(size * generator.uniform(*world.sizes))
    angle = generator.uniform(-STEEPEST, STEEPEST)
    return rotated(drawing, side=side, angle=angle, flip=bool(generator.random() < 0.5))


@public("draw_scene")
def draw_scene(
    seed: int,
    *,
    split: Split = "test",
    objects: Sequence[str] | None = None,
    count: int | None = None,
    background: str | None = None,
    size: int = 224,
    without: Collection[int] = (),
    world: World = STANDARD,
) -> Scene:
    """Draw the scene of a seed.

    Args:
        seed: a number from 0 on; different splits give different scenes for the same seed.
        split: ``"train"``, ``"validation"`` or ``"test"``, where faces are the held-out drawings.
        objects: names such as ``"horse"``, ``"red heart"`` or ``"heart"`` (any color), from the
            back to the front, at most three; drawn from the seed if None.
        count: how many objects, 1 to 3, if ``objects`` is None; drawn from the seed if None.
        background: a name of ``BACKGROUNDS``; drawn from the seed if None.
        size: side of the image in pixels.
        without: positions of objects to leave out; all the rest stays as it is, to the pixel.
        world: :data:`STANDARD`, or another kind, such as that of docs/experiments/broad_scenes.py.

    Returns:
        The scene.

    Raises:
        InputError: for an unknown name or a number out of range.
    """
    check_integer("a seed", seed, least=0)
    check_integer("a size", size, least=64)
    check_choice(split, _SPLITS, name="split")
    _check_count(objects, count, world)
    sequence = np.random.SeedSequence(seed, spawn_key=(_SPLITS[split],))
    choice, texture, layout, wording = (np.random.default_rng(s) for s in sequence.spawn(4))
    number = int(choice.integers(1, world.objects + 1)) if count is None else count
    drawn_background = world.backgrounds[choice.integers(len(world.backgrounds))]
    background = drawn_background if background is None else background
    held_out = () if split == "train" else world.held_out
    backgrounds = dict.fromkeys((*world.backgrounds, *held_out))
    check_choice(background, backgrounds, name="background")
    if objects is None:
        things = pick_things(number, choice)
    else:
        things = tuple(_find(name, choice) for name in objects)
    inside = set(without) <= set(range(len(things)))
    expect(inside, f"`without` below {len(things)}, the number of objects", sorted(without))
    sprites, corners = place(
        [draw_object(thing, size, layout, split=split, world=world) for thing in things],
        size,
        layout,
        visible=world.visible,
    )
    image = draw_background(background, size, texture)
    owner = paste_all(sprites, corners, image, left_out=without)
    present = tuple(
        SceneObject(thing.noun, thing.adjective, thing.name, owner == position)
        for position, thing in enumerate(things)
        if position not in without
    )
    captions = _captions([thing.name for thing in present], background, wording)
    return Scene(image, present, background, captions, owner == -1)


def _captions(
    names: Sequence[str], background: str, generator: np.random.Generator
) -> tuple[str, ...]:
    subsets = (
        [name for i, name in enumerate(names) if chosen >> i & 1]
        for chosen in range(1, 2 ** len(names))
    )
    texts = (draw_caption(s, background, generator) for s in subsets if len(s) <= MAX_OBJECTS)
    return tuple(dict.fromkeys(texts))


def _find(name: str, generator: np.random.Generator) -> Thing:
    matches = [thing for thing in THINGS if name in (thing.name, thing.noun)]
    expect(matches, "a name of captum_clip.demo.catalog.THINGS", name)
    return matches[generator.integers(len(matches))]


def _check_count(objects: Sequence[str] | None, count: int | None, world: World) -> None:
    """Refuse objects that are no list, or fewer or more than there may be."""
    if objects is not None:
        expect(not isinstance(objects, str), "objects as a list of names", objects)
        expect(count in (None, len(objects)), f"`count` as many as objects, {len(objects)}", count)
        count = len(objects)
    if count is not None:
        check_integer("a number of objects", count, most=world.objects)
