"""Seeded demo scenes: an image, its captions and one exact mask per object.

The sprites are cells of a sheet that ``docs/experiments/training/sheet.py`` draws from an emoji
font, in the order of :data:`captum_clip.demo.catalog.THINGS`, drawing by drawing, row by row.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..checks import check_choice, check_integer, expect
from ..errors import public
from .catalog import BACKGROUNDS, THINGS, Thing, draw_caption

__all__ = ["MAX_OBJECTS", "STANDARD", "STEEPEST", "Scene", "SceneObject", "Split", "World"]
__all__ += ["draw_object", "draw_scene", "pick_things"]

_Colors: TypeAlias = npt.NDArray[np.float32]
Painter = Callable[[np.random.Generator, int], _Colors]
"""(generator, side in pixels) -> (H, W, 3); values outside [0, 255] are clipped later."""
ImageArray: TypeAlias = npt.NDArray[np.uint8]
MaskArray: TypeAlias = npt.NDArray[np.bool_]
Corner: TypeAlias = tuple[int, int]
Split = Literal["train", "validation", "test"]
STEEPEST: Final = 15.0  # degrees
SHEET: Final = Path(__file__).with_name("sprites.png")
CELL: Final = 96
SHEET_COLUMNS: Final = 14
SIDES: Final = (0.27, 0.34)
"""The longer side of a copy, as a share of the image's side, at least and at most."""
_FAINTEST: Final = 77
"""The least alpha that is drawn. Fainter pixels are cut, so that a mask is all of a sprite."""
_CORNER_TRIES: Final = 40
_PLACEMENTS: Final = 25
_LONGEST_IN_CORNERS: Final = 0.64
"""The longest side of three objects that overlap little in three corners of the image, as a share
of the image's side."""
_CIRCLE: Final = 0.28
"""The radius of the circle of copies, as a share of the image's side."""
_SPLIT_KEYS: Final = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class World:
    """A kind of scenes.

    Args:
        objects: the largest number of objects.
        sizes: the longer side of an object, as a share of the image's side, at least and at most.
        visible: the share of each object that others never cover.
        backgrounds: names, each drawn equally often; captions name those of ``BACKGROUNDS``.
        held_out: further backgrounds that no training scene has, drawn only if they are named.
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
        mask: (H, W) bool, the visible part, without the pixels that other objects cover.
    """

    noun: str
    adjective: str | None
    name: str
    mask: MaskArray


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    Args:
        image: (H, W, 3) uint8.
        objects: from the back to the front; their masks are disjoint.
        background: the background's name.
        captions: one for each non-empty subset of up to three objects, all of them true.
        background_mask: (H, W) bool, the pixels that no object covers.
    """

    image: ImageArray
    objects: tuple[SceneObject, ...]
    background: str
    captions: tuple[str, ...]
    background_mask: MaskArray


def pick_things(
    count: int, generator: np.random.Generator, *, without: Collection[str] = ()
) -> tuple[Thing, ...]:
    """Draw things with different nouns, none of them in `without`, each thing equally often."""
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
) -> ImageArray:
    """Draw a thing for a scene of the given side, at random in drawing, size, angle and mirroring.

    Returns:
        (h, w, 4); its mask is ``alpha > 0``.
    """
    drawings = load_sprites()[thing.name]
    usual_count = len(thing.characters)
    if split == "test" and thing.held_out:
        drawings = drawings[usual_count:]
    else:
        drawings = drawings[:usual_count]
    # The order of the draws decides every scene, so it must not change.
    drawing = drawings[generator.integers(len(drawings))]
    side = round(size * generator.uniform(*world.sizes))
    angle = generator.uniform(-STEEPEST, STEEPEST)
    flip = bool(generator.random() < 0.5)
    return rotated(drawing, side=side, angle=angle, flip=flip)


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
        without: positions of objects to leave out; all other pixels stay as they are.
        world: :data:`STANDARD`, or another kind, such as that of
            docs/experiments/training/broad_scenes.py.

    Returns:
        The scene.

    Raises:
        InputError: for an unknown name or a number out of range.
    """
    check_integer("a seed", seed, least=0)
    check_integer("a size", size, least=64)
    check_choice(split, _SPLIT_KEYS, name="split")
    _check_count(objects, count, world)
    sequence = np.random.SeedSequence(seed, spawn_key=(_SPLIT_KEYS[split],))
    # Each aspect of a scene has a generator of its own, so that options change only their aspect.
    choice, texture, layout, wording = map(np.random.default_rng, sequence.spawn(4))
    if count is None:
        count = int(choice.integers(1, world.objects + 1))
    # The background is drawn even if one is given, so that the draws after it are the same.
    drawn_background = world.backgrounds[choice.integers(len(world.backgrounds))]
    if background is None:
        background = drawn_background
    allowed = world.backgrounds
    if split != "train":
        allowed = (*world.backgrounds, *world.held_out)
    check_choice(background, dict.fromkeys(allowed), name="background")
    if objects is None:
        things = pick_things(count, choice)
    else:
        things = tuple(_find_thing(name, choice) for name in objects)
    are_inside = set(without) <= set(range(len(things)))
    expect(are_inside, f"`without` below {len(things)}, the number of objects", sorted(without))

    drawn = [draw_object(thing, size, layout, split=split, world=world) for thing in things]
    sprites, corners = place(drawn, size, layout, visible=world.visible)
    image = draw_background(background, size, texture)
    owner = paste_all(sprites, corners, image, left_out=without)
    present = []
    for position, thing in enumerate(things):
        if position not in without:
            mask = owner == position
            present.append(SceneObject(thing.noun, thing.adjective, thing.name, mask))
    captions = _captions([thing.name for thing in present], background, wording)
    return Scene(image, tuple(present), background, captions, owner == -1)


def _captions(
    names: Sequence[str], background: str, generator: np.random.Generator
) -> tuple[str, ...]:
    """Draw a caption for each subset of up to three names; captions that are equal count once."""
    captions: dict[str, None] = {}
    # Bit i of the number is set if the subset contains name i.
    for bits in range(1, 2 ** len(names)):
        subset = [name for index, name in enumerate(names) if (bits >> index) & 1]
        if len(subset) <= MAX_OBJECTS:
            captions[draw_caption(subset, background, generator)] = None
    return tuple(captions)


def _find_thing(name: str, generator: np.random.Generator) -> Thing:
    """Find the thing of a name, or draw one of the things that share a noun."""
    matches = [thing for thing in THINGS if name in (thing.name, thing.noun)]
    advice = "'captum-clip models --vocabulary' lists the words of their names"
    expect(matches, "things such as horse or red heart", name, advice)
    return matches[generator.integers(len(matches))]


def _check_count(objects: Sequence[str] | None, count: int | None, world: World) -> None:
    """Refuse objects that are no list, and a number of them that a world does not allow."""
    if objects is not None:
        expect(not isinstance(objects, str), "objects as a list of names", objects)
        expect(count in (None, len(objects)), f"`count` as many as objects, {len(objects)}", count)
        count = len(objects)
    if count is not None:
        check_integer("a number of objects", count, most=world.objects)


@lru_cache(maxsize=1)
def load_sprites() -> dict[str, tuple[Image.Image, ...]]:
    """Read the sheet: name of each thing -> its drawings (RGBA, trimmed), held-out ones last."""
    with Image.open(SHEET) as opened:
        sheet = opened.convert("RGBA")
    sprites = {}
    position = 0
    for thing in THINGS:
        drawings = []
        for _ in thing.characters + thing.held_out:
            row, column = divmod(position, SHEET_COLUMNS)
            left = column * CELL
            top = row * CELL
            cell = sheet.crop((left, top, left + CELL, top + CELL))
            drawings.append(cell.crop(cell.getbbox()))
            position += 1
        sprites[thing.name] = tuple(drawings)
    return sprites


def rotated(drawing: Image.Image, *, side: int, angle: float, flip: bool) -> ImageArray:
    """Flip, resize and rotate one drawing.

    Args:
        drawing: an RGBA sprite.
        side: the sprite's longer side in pixels before it is rotated.
        angle: degrees, counter-clockwise.
        flip: mirror the sprite left to right first.

    Returns:
        (h, w, 4), trimmed; the mask of the sprite is exactly ``alpha > 0``.
    """
    if flip:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = side / max(drawing.size)
    width = max(1, round(drawing.width * scale))
    height = max(1, round(drawing.height * scale))
    drawing = drawing.resize((width, height), Image.Resampling.BILINEAR)
    drawing = drawing.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    pixels = np.array(drawing)
    pixels[pixels[..., 3] < _FAINTEST] = 0
    # Rotation leaves empty margins, which are trimmed.
    visible = np.argwhere(pixels[..., 3])
    top, left = visible.min(0)
    bottom, right = visible.max(0) + 1
    return pixels[top:bottom, left:right]


def place(
    sprites: Sequence[ImageArray], size: int, generator: np.random.Generator, *, visible: float
) -> tuple[Sequence[ImageArray], tuple[Corner, ...]]:
    """Draw positions at which every object is inside the image and mostly visible.

    Args:
        sprites: (h, w, 4) each, from the back to the front.
        size: side of the image in pixels.
        generator: the source of the positions.
        visible: the share of each object that others may not cover.

    Returns:
        The sprites, halved in size as often as they found no room, and the top left corner
        (row, column) of each.
    """
    while True:
        masks = [sprite[..., 3] > 0 for sprite in sprites]
        for _ in range(_PLACEMENTS):
            corners = _draw_corners(masks, size, generator, visible)
            if corners is not None:
                return sprites, corners
        # Chance may miss the few places that large objects have, but the corners are such places.
        longest = max(max(mask.shape) for mask in masks)
        if len(masks) <= 3 and longest <= _LONGEST_IN_CORNERS * size:
            return sprites, _corners_of_image(masks, size)
        # Ever smaller objects find room in the end.
        sprites = [sprite[::2, ::2] for sprite in sprites]


def _corners_of_image(masks: Sequence[MaskArray], size: int) -> tuple[Corner, ...]:
    """Put up to three objects into different corners of the image."""
    corners = []
    is_at_end = ((False, False), (False, True), (True, False))  # bottom, right
    for mask, (bottom, right) in zip(masks, is_at_end, strict=False):
        height, width = mask.shape
        row = size - height if bottom else 0
        column = size - width if right else 0
        corners.append((row, column))
    return tuple(corners)


def paste_all(
    sprites: Sequence[ImageArray],
    corners: Sequence[Corner],
    image: ImageArray,
    *,
    left_out: Collection[int] = (),
) -> npt.NDArray[np.int8]:
    """Put sprites into an image, in place.

    Args:
        sprites: from the back to the front.
        corners: the top left corner of each sprite.
        image: (H, W, 3), the background.
        left_out: positions of sprites that are not pasted.

    Returns:
        (H, W), the position of the sprite that each pixel shows, -1 for the background.
    """
    background = image.copy()
    owner = np.full(image.shape[:2], -1, dtype=np.int8)
    for position, (sprite, corner) in enumerate(zip(sprites, corners, strict=True)):
        if position in left_out:
            continue
        area = _area(corner, sprite.shape)
        alpha = sprite[..., 3:].astype(np.uint16)
        # A soft edge never shows an object below it, so that leaving one out changes no other.
        under = background[area].astype(np.uint16)
        blended = ((sprite[..., :3] * alpha + under * (255 - alpha) + 127) // 255).astype(np.uint8)
        mask = sprite[..., 3] > 0
        np.copyto(image[area], blended, where=mask[..., None])
        owner[area][mask] = position
    return owner


def _area(corner: Corner, shape: tuple[int, ...]) -> tuple[slice, slice]:
    row, column = corner
    height, width = shape[:2]
    return slice(row, row + height), slice(column, column + width)


@dataclass
class _Placed:
    """How many pixels of a placed object are visible, and how many must stay so."""

    pixels: int
    least: float


def _draw_corners(
    masks: Sequence[MaskArray], size: int, generator: np.random.Generator, visible: float
) -> tuple[Corner, ...] | None:
    """Draw the corners of one object after the other; None if an object finds no place."""
    owner = np.full((size, size), -1, dtype=np.int8)
    placed: list[_Placed] = []
    corners: list[Corner] = []
    for mask in masks:
        height, width = mask.shape
        for _ in range(_CORNER_TRIES):
            row = int(generator.integers(size - height + 1))
            column = int(generator.integers(size - width + 1))
            area = owner[_area((row, column), mask.shape)]
            # The placed objects lie below the new one, and these pixels of each stay visible.
            remaining = []
            for number, below in enumerate(placed):
                covered = int(np.count_nonzero(mask & (area == number)))
                remaining.append(below.pixels - covered)
            if all(pixels >= below.least for pixels, below in zip(remaining, placed, strict=True)):
                break
        else:
            # Every try covered too much of an object.
            return None
        for below, pixels in zip(placed, remaining, strict=True):
            below.pixels = pixels
        area[mask] = len(placed)
        pixels = int(np.count_nonzero(mask))
        placed.append(_Placed(pixels, least=visible * pixels))
        corners.append((row, column))
    return tuple(corners)


def without_thirds(sprite: ImageArray, generator: np.random.Generator) -> list[ImageArray]:
    """Copy a sprite (h, w, 4) three times, each time without another third of its pixels.

    The thirds are sectors round its centroid, from a random angle, of exactly equal area.
    """
    rows, columns = np.nonzero(sprite[..., 3])
    # Without a sector, unlike a band, a copy stays whole and has as many new edges as the others.
    angles = np.arctan2(rows - rows.mean(), columns - columns.mean())
    turned = (angles + generator.uniform(0, 2 * np.pi)) % (2 * np.pi)
    order = np.argsort(turned, kind="stable")
    third = len(order) // 3
    copies = []
    for start in (0, third, 2 * third):
        removed = order[start : start + third]
        copy = sprite.copy()
        copy[rows[removed], columns[removed]] = 0
        copies.append(copy)
    return copies


def draw_subsets(
    sprites: Sequence[ImageArray], background: ImageArray, generator: np.random.Generator
) -> tuple[list[ImageArray], list[MaskArray]]:
    """Draw every subset of sprites of one size on a circle, from a random angle.

    Args:
        sprites: n, (h, w, 4) each.
        background: (S, S, 3).
        generator: the source of the angle.

    Returns:
        The 2^n images, sprite i in those where bit i of the index is set, and the n masks (S, S).
    """
    size = len(background)
    count = len(sprites)
    start = generator.uniform(0, 2 * np.pi)
    angles = start + 2 * np.pi / count * np.arange(count)
    centers = size * (0.5 + _CIRCLE * np.stack([np.sin(angles), np.cos(angles)], 1))
    corners = []
    for (row, column), sprite in zip(centers.tolist(), sprites, strict=True):
        height, width = sprite.shape[:2]
        corners.append((round(row - height / 2), round(column - width / 2)))
    images = []
    for bits in range(2**count):
        absent = [position for position in range(count) if not (bits >> position) & 1]
        image = background.copy()
        owner = paste_all(sprites, corners, image, left_out=absent)
        images.append(image)
    # The last subset has all sprites, so their masks are those of the last image.
    return images, [owner == position for position in range(count)]


def draw_background(name: str, size: int, generator: np.random.Generator) -> ImageArray:
    """Draw one background, different with every draw of the generator.

    Args:
        name: a key of :data:`PAINTERS`.
        size: side in pixels.
        generator: the source of the variation, brightness included.

    Returns:
        (size, size, 3).
    """
    pixels: npt.NDArray[Any] = PAINTERS[name](generator, size)
    # Snow stays as white as it is painted, and further painters vary the brightness themselves.
    if name in BACKGROUNDS and name != "snow":
        pixels = pixels * generator.uniform(0.88, 1.06, size=3)
    return np.asarray(np.clip(pixels, 0, 255).astype(np.uint8))


def noise(generator: np.random.Generator, size: int, cells: tuple[int, int]) -> _Colors:
    """Draw noise in [0, 1] of ``cells`` (rows, columns) blobs, resized to (size, size)."""
    coarse = generator.random(cells, dtype=np.float32)
    resized = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(resized, dtype=np.float32), 0, 1)


def _blend(low: tuple[int, int, int], high: tuple[int, int, int], amount: _Colors) -> _Colors:
    """Mix two colors; amount (H, W) in [0, 1] -> (H, W, 3) in [0, 255]."""
    first, second = np.array([low, high], dtype=np.float32)
    return np.asarray(first + amount[..., None] * (second - first), dtype=np.float32)


def _grass(generator: np.random.Generator, size: int) -> _Colors:
    blades = 0.6 * noise(generator, size, (size // 6, size // 2))
    patches = 0.4 * noise(generator, size, (5, 5))
    return _blend((28, 82, 22), (128, 190, 62), blades + patches)


def _sand(generator: np.random.Generator, size: int) -> _Colors:
    rows = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    bend = noise(generator, size, (4, 3))
    periods = generator.uniform(8, 13)
    ripples = 0.5 + 0.5 * np.sin(2 * np.pi * (periods * rows + 3 * bend))
    grain = generator.random((size, size), dtype=np.float32)
    return _blend((192, 158, 104), (240, 216, 164), 0.55 * ripples + 0.45 * grain)


def _sky(generator: np.random.Generator, size: int) -> _Colors:
    rows = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    sky = _blend((84, 152, 232), (176, 218, 250), np.broadcast_to(rows, (size, size)))
    puffs = 0.7 * noise(generator, size, (5, 4)) + 0.3 * noise(generator, size, (16, 12))
    threshold = generator.uniform(0.5, 0.6)
    clouds = np.clip((puffs - threshold) * 6, 0, 0.9)[..., None]
    return np.asarray(sky * (1 - clouds) + 252 * clouds, dtype=np.float32)


def _snow(generator: np.random.Generator, size: int) -> _Colors:
    drifts = noise(generator, size, (4, 3))
    snow = _blend((206, 218, 236), (250, 251, 253), drifts)
    flakes = generator.random((size, size), dtype=np.float32) > 0.985
    return np.where(flakes[..., None], np.array([178, 196, 226], np.float32), snow)


def _water(generator: np.random.Generator, size: int) -> _Colors:
    rows = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    bend = noise(generator, size, (7, 6))
    periods = generator.uniform(11, 16)
    waves = 0.5 + 0.5 * np.sin(2 * np.pi * (periods * rows + 1.6 * bend))
    return _blend((8, 62, 104), (62, 164, 188), 0.7 * waves**2 + 0.3 * bend)


def _brick(generator: np.random.Generator, size: int) -> _Colors:
    height = size / generator.uniform(9, 12)
    width = size / generator.uniform(4.5, 6)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    rows += float(generator.uniform(0, height))
    course = np.floor(rows / height)
    # Every other course of bricks is moved by half a brick.
    columns += float(generator.uniform(0, width)) + (course % 2) * width / 2
    brick = np.floor(columns / width)
    shades = generator.random((32, 16), dtype=np.float32)
    shade = shades[course.astype(int) % 32, brick.astype(int) % 16]
    grain = generator.random((size, size), dtype=np.float32)
    wall = _blend((122, 52, 38), (186, 98, 72), 0.7 * shade + 0.3 * grain)
    joint = size / 110
    mortar = (rows - course * height < joint) | (columns - brick * width < joint)
    return np.where(mortar[..., None], np.array([196, 184, 170], np.float32), wall)


PAINTERS: Final[dict[str, Painter]] = {
    "grass": _grass,
    "sand": _sand,
    "sky": _sky,
    "snow": _snow,
    "water": _water,
    "brick": _brick,
}
"""The painters by name; docs/experiments/training/broad_scenes.py adds further ones."""
