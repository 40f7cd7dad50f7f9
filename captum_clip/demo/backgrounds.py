"""The procedural backgrounds of demo scenes, which captions name."""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from .catalog import BACKGROUNDS

_Colors = npt.NDArray[np.float32]
Painter = Callable[[np.random.Generator, int], _Colors]
"""(generator, side in pixels) -> (H, W, 3), to be cut to [0, 255]."""


def draw_background(name: str, size: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw one background, different with every draw of the generator.

    Args:
        name: a key of :data:`PAINTERS`.
        size: side in pixels.
        generator: the source of its variation, brightness included.

    Returns:
        (size, size, 3).
    """
    pixels = PAINTERS[name](generator, size)
    varies = name in BACKGROUNDS and name != "snow"
    brightness = generator.uniform(0.88, 1.06, size=3) if varies else 1.0
    return np.asarray(np.clip(pixels * brightness, 0, 255).astype(np.uint8))


def noise(generator: np.random.Generator, size: int, cells: tuple[int, int]) -> _Colors:
    """Noise in [0, 1] of ``cells`` (rows, columns) blobs, resized to (size, size)."""
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
    ripples = 0.5 + 0.5 * np.sin(2 * np.pi * (generator.uniform(8, 13) * rows + 3 * bend))
    grain = generator.random((size, size), dtype=np.float32)
    return _blend((192, 158, 104), (240, 216, 164), 0.55 * ripples + 0.45 * grain)


def _sky(generator: np.random.Generator, size: int) -> _Colors:
    rows = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    sky = _blend((84, 152, 232), (176, 218, 250), np.broadcast_to(rows, (size, size)))
    puffs = 0.7 * noise(generator, size, (5, 4)) + 0.3 * noise(generator, size, (16, 12))
    clouds = np.clip((puffs - generator.uniform(0.5, 0.6)) * 6, 0, 0.9)[..., None]
    return np.asarray(sky * (1 - clouds) + 252 * clouds, dtype=np.float32)


def _snow(generator: np.random.Generator, size: int) -> _Colors:
    drifts = noise(generator, size, (4, 3))
    snow = _blend((206, 218, 236), (250, 251, 253), drifts)
    flakes = generator.random((size, size), dtype=np.float32) > 0.985
    return np.where(flakes[..., None], np.array([178, 196, 226], np.float32), snow)


def _water(generator: np.random.Generator, size: int) -> _Colors:
    rows = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    bend = noise(generator, size, (7, 6))
    waves = 0.5 + 0.5 * np.sin(2 * np.pi * (generator.uniform(11, 16) * rows + 1.6 * bend))
    return _blend((8, 62, 104), (62, 164, 188), 0.7 * waves**2 + 0.3 * bend)


def _brick(generator: np.random.Generator, size: int) -> _Colors:
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
    return np.where(mortar[..., None], np.array([196, 184, 170], np.float32), wall)


PAINTERS: Final[dict[str, Painter]] = {
    "grass": _grass,
    "sand": _sand,
    "sky": _sky,
    "snow": _snow,
    "water": _water,
    "brick": _brick,
}
"""The painters by name; further ones may be added, as docs/experiments/broad_scenes.py does."""
