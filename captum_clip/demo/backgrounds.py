"""The procedural backgrounds of demo scenes; captions name some of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from .catalogue import THINGS
from .sprites import load_sprites, rotated

_Array = npt.NDArray[np.float32]
_Draw = Callable[[np.random.Generator, int], _Array]
"""(generator, side in pixels) -> (H, W, 3), to be cut to [0, 255]."""


def draw_background(name: str, size: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw one background, different with every draw of the generator.

    Args:
        name: one of ``BACKGROUNDS``, ``UNNAMED`` or ``HELD_OUT`` of
            :mod:`captum_clip.demo.catalogue`.
        size: side in pixels.
        generator: the source of its variation, brightness included.

    Returns:
        (size, size, 3).
    """
    if name in _UNNAMED:
        return np.clip(_UNNAMED[name](generator, size), 0, 255).astype(np.uint8)
    pixels = _NAMED[name](generator, size)
    brightness = generator.uniform(0.88, 1.06, size=3) if name != "snow" else 1.0
    return np.asarray(np.clip(pixels * brightness, 0, 255).astype(np.uint8))


def _noise(generator: np.random.Generator, size: int, cells: tuple[int, int]) -> _Array:
    """Noise in [0, 1] of ``cells`` (rows, columns) blobs, resized to (size, size)."""
    coarse = generator.random(cells, dtype=np.float32)
    resized = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(resized, dtype=np.float32), 0, 1)


# With a name


def _rgb(red: int, green: int, blue: int) -> _Array:
    return np.array([red, green, blue], dtype=np.float32)


def _blend(low: tuple[int, int, int], high: tuple[int, int, int], amount: _Array) -> _Array:
    """Mix two colours; amount (H, W) in [0, 1] -> (H, W, 3) in [0, 255]."""
    first, second = _rgb(*low), _rgb(*high)
    return np.asarray(first + amount[..., None] * (second - first), dtype=np.float32)


def _grass(generator: np.random.Generator, size: int) -> _Array:
    blades = 0.6 * _noise(generator, size, (size // 6, size // 2))
    patches = 0.4 * _noise(generator, size, (5, 5))
    return _blend((28, 82, 22), (128, 190, 62), blades + patches)


def _sand(generator: np.random.Generator, size: int) -> _Array:
    rows = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    bend = _noise(generator, size, (4, 3))
    ripples = 0.5 + 0.5 * np.sin(2 * np.pi * (generator.uniform(8, 13) * rows + 3 * bend))
    grain = generator.random((size, size), dtype=np.float32)
    return _blend((192, 158, 104), (240, 216, 164), 0.55 * ripples + 0.45 * grain)


def _sky(generator: np.random.Generator, size: int) -> _Array:
    rows = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    sky = _blend((84, 152, 232), (176, 218, 250), np.broadcast_to(rows, (size, size)))
    puffs = 0.7 * _noise(generator, size, (5, 4)) + 0.3 * _noise(generator, size, (16, 12))
    clouds = np.clip((puffs - generator.uniform(0.5, 0.6)) * 6, 0, 0.9)[..., None]
    return np.asarray(sky * (1 - clouds) + 252 * clouds, dtype=np.float32)


def _snow(generator: np.random.Generator, size: int) -> _Array:
    drifts = _noise(generator, size, (4, 3))
    snow = _blend((206, 218, 236), (250, 251, 253), drifts)
    flakes = generator.random((size, size), dtype=np.float32) > 0.985
    return np.where(flakes[..., None], _rgb(178, 196, 226), snow)


def _water(generator: np.random.Generator, size: int) -> _Array:
    rows = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    bend = _noise(generator, size, (7, 6))
    waves = 0.5 + 0.5 * np.sin(2 * np.pi * (generator.uniform(11, 16) * rows + 1.6 * bend))
    return _blend((8, 62, 104), (62, 164, 188), 0.7 * waves**2 + 0.3 * bend)


def _brick(generator: np.random.Generator, size: int) -> _Array:
    height, width = size / generator.uniform(9, 12), size / generator.uniform(4.5, 6)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    rows += float(generator.uniform(0, height))
    course = np.floor(rows / height)
    columns += float(generator.uniform(0, width)) + (course % 2) * width / 2
    brick = np.floor(columns / width)
    shades = generator.random((32, 16), dtype=np.float32)
    shade = shades[course.astype(int) % 32, brick.astype(int) % 16]
    grain = generator.random((size, size), dtype=np.float32)
    wall = _blend((122, 52, 38), (186, 98, 72), 0.7 * shade + 0.3 * grain)
    joint = size / 110
    mortar = (rows - course * height < joint) | (columns - brick * width < joint)
    return np.where(mortar[..., None], _rgb(196, 184, 170), wall)


_NAMED: Final[dict[str, _Draw]] = {
    "grass": _grass,
    "sand": _sand,
    "sky": _sky,
    "snow": _snow,
    "water": _water,
    "brick": _brick,
}


# Without one


def _color(generator: np.random.Generator) -> _Array:
    return generator.uniform(0, 255, 3).astype(np.float32)


def _mix(generator: np.random.Generator, amount: _Array) -> _Array:
    """Two random colours, mixed by an amount (H, W) in [0, 1]."""
    first, second = _color(generator), _color(generator)
    return np.asarray(first + amount[..., None] * (second - first), dtype=np.float32)


def _ramp(generator: np.random.Generator, size: int) -> _Array:
    """(H, W) from -1 to 1 along a random direction."""
    angle = generator.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    ramp = np.cos(angle) * rows + np.sin(angle) * columns
    return np.asarray(ramp / np.abs(ramp).max(), dtype=np.float32)


def _plain(generator: np.random.Generator, size: int) -> _Array:
    return np.broadcast_to(_color(generator), (size, size, 3))


def _gradient(generator: np.random.Generator, size: int) -> _Array:
    return _mix(generator, 0.5 * _ramp(generator, size) + np.float32(0.5))


def _pixel_noise(generator: np.random.Generator, size: int) -> _Array:
    channels = 1 if generator.random() < 0.3 else 3
    noise = generator.random((size, size, channels), dtype=np.float32) - 0.5
    return _color(generator) + float(generator.uniform(30, 255)) * noise


def _smooth_noise(generator: np.random.Generator, size: int) -> _Array:
    cells = int(generator.integers(3, size // 6))
    planes = [_noise(generator, size, (cells, cells)) for _ in range(3)]
    return _color(generator) + float(generator.uniform(60, 255)) * (np.stack(planes, -1) - 0.5)


def _patchwork(generator: np.random.Generator, size: int) -> _Array:
    """Tiles cut out of blurred drawings and shuffled, so that no object is left."""
    canvas = Image.fromarray(np.asarray(_plain(generator, size), dtype=np.uint8))
    for _ in range(12):
        drawings = load_sprites()[THINGS[generator.integers(len(THINGS))].name]
        sprite = rotated(
            drawings[0],
            side=round(size * generator.uniform(0.3, 0.8)),
            angle=generator.uniform(0, 360),
            flip=bool(generator.random() < 0.5),
        )
        corner = tuple(int(x) for x in generator.integers(-size // 4, size, 2))
        drawing = Image.fromarray(sprite)
        canvas.paste(drawing, (corner[0], corner[1]), drawing)
    blurred = canvas.filter(ImageFilter.GaussianBlur(size * generator.uniform(0.02, 0.05)))
    pixels = np.asarray(blurred, dtype=np.float32)
    tiles = int(generator.integers(4, 8))
    edge = -(-size // tiles)
    starts = np.minimum(np.arange(tiles) * edge, size - edge)
    places = [(row, column) for row in starts for column in starts]
    result = pixels.copy()
    for (row, column), source in zip(places, generator.permutation(len(places)), strict=True):
        top, left = places[source]
        result[row : row + edge, column : column + edge] = pixels[
            top : top + edge, left : left + edge
        ]
    return result


def _stripes(generator: np.random.Generator, size: int) -> _Array:
    waves = np.sin(np.pi * generator.uniform(6, 20) * _ramp(generator, size))
    return _mix(generator, np.asarray(waves > 0, dtype=np.float32))


def _dots(generator: np.random.Generator, size: int) -> _Array:
    period = size / generator.uniform(6, 14)
    rows, columns = np.mgrid[:size, :size] % period - period / 2
    inside = np.hypot(rows, columns) < period * generator.uniform(0.2, 0.4)
    return _mix(generator, np.asarray(inside, dtype=np.float32))


def _mosaic(generator: np.random.Generator, size: int) -> _Array:
    """Cells of the nearest of some random points, a colour each."""
    points = generator.uniform(0, size, (int(generator.integers(12, 60)), 2))
    rows, columns = np.mgrid[:size, :size]
    distances = (rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2
    colors = generator.uniform(0, 255, (len(points), 3)).astype(np.float32)
    return np.asarray(colors[distances.argmin(-1)])


def _fractal(generator: np.random.Generator, size: int) -> _Array:
    """Coloured noise whose amplitude falls with its frequency, as in photographs."""
    total = np.zeros((size, size, 3), dtype=np.float32)
    octaves = [2**octave for octave in range(1, 8) if 2**octave <= size]
    for cells in octaves:
        for channel in range(3):
            total[..., channel] += _noise(generator, size, (cells + 1, cells + 1)) / cells
    total = (total - total.mean((0, 1))) / total.std((0, 1))
    return np.asarray(_color(generator) + float(generator.uniform(30, 70)) * total)


_UNNAMED: Final[dict[str, _Draw]] = {
    "plain": _plain,
    "gradient": _gradient,
    "pixel-noise": _pixel_noise,
    "smooth-noise": _smooth_noise,
    "patchwork": _patchwork,
    "stripes": _stripes,
    "dots": _dots,
    "mosaic": _mosaic,
    "fractal": _fractal,
}
