"""Broad scenes: small and large objects, partly covered, half of them on unnamed backgrounds.

The embedded models are trained on them, and ``draw_scene(seed, world=BROAD)`` draws one. Importing
this module adds its backgrounds to those that :mod:`captum_clip.demo.scenes` draws.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from captum_clip.demo.catalog import BACKGROUNDS, THINGS
from captum_clip.demo.scenes import PAINTERS, World, load_sprites, noise, rotated

UNNAMED: Final = ("plain", "gradient", "pixel-noise", "smooth-noise", "patchwork")
"""Backgrounds that no caption names, of training scenes too."""

HELD_OUT: Final = ("stripes", "dots", "mosaic", "fractal")
"""Kinds of background that no model was trained on."""

BROAD: Final = World(
    5, (0.12, 0.7), 0.4, BACKGROUNDS * len(UNNAMED) + UNNAMED * len(BACKGROUNDS), HELD_OUT
)
"""Up to five objects; backgrounds with and without a name are equally frequent."""

_Array = npt.NDArray[np.float32]


def _color(generator: np.random.Generator) -> _Array:
    return generator.uniform(0, 255, 3).astype(np.float32)


def _mix(generator: np.random.Generator, amount: _Array) -> _Array:
    """Two random colors, mixed by an amount (H, W) in [0, 1]."""
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
    planes = [noise(generator, size, (cells, cells)) for _ in range(3)]
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
    """Cells of the nearest of some random points, a color each."""
    points = generator.uniform(0, size, (int(generator.integers(12, 60)), 2))
    rows, columns = np.mgrid[:size, :size]
    distances = (rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2
    colors = generator.uniform(0, 255, (len(points), 3)).astype(np.float32)
    return np.asarray(colors[distances.argmin(-1)])


def _fractal(generator: np.random.Generator, size: int) -> _Array:
    """Colored noise whose amplitude falls with its frequency, as in photographs."""
    total = np.zeros((size, size, 3), dtype=np.float32)
    octaves = [2**octave for octave in range(1, 8) if 2**octave <= size]
    for cells in octaves:
        for channel in range(3):
            total[..., channel] += noise(generator, size, (cells + 1, cells + 1)) / cells
    total = (total - total.mean((0, 1))) / total.std((0, 1))
    return np.asarray(_color(generator) + float(generator.uniform(30, 70)) * total)


PAINTERS |= {
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
