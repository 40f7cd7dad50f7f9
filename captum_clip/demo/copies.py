"""Three copies of one thing on one circle round the center: no dictionary knows which counts."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from .layout import paste_all

SIDES: Final = (0.27, 0.34)
"""The longer side of a copy, as a share of the image's side, at least and at most."""

_RADIUS: Final = 0.28
_Pixels = npt.NDArray[np.uint8]


def without_thirds(sprite: _Pixels, generator: np.random.Generator) -> list[_Pixels]:
    """A sprite (h, w, 4) three times, each without another third of its pixels.

    The thirds are sectors round its centroid, from a random angle, of exactly equal area.
    """
    rows, columns = np.nonzero(sprite[..., 3])
    turned = np.arctan2(rows - rows.mean(), columns - columns.mean())
    # sectors, and not bands: each copy stays whole, and has as many new edges as the others
    order = np.argsort((turned + generator.uniform(0, 2 * np.pi)) % (2 * np.pi), kind="stable")
    copies = [sprite.copy() for _ in range(3)]
    for number, copy in enumerate(copies):
        gone = order[number * (len(order) // 3) :][: len(order) // 3]
        copy[rows[gone], columns[gone]] = 0
    return copies


def draw_subsets(
    sprites: Sequence[_Pixels], background: _Pixels, generator: np.random.Generator
) -> tuple[list[_Pixels], list[npt.NDArray[np.bool_]]]:
    """Every subset of sprites of one size on a circle, from a random angle.

    Args:
        sprites: n, (h, w, 4) each.
        background: (S, S, 3).
        generator: the source of the angle.

    Returns:
        The 2^n images, sprite i in those where bit i of the index is set, and the n masks (S, S).
    """
    size, count, start = len(background), len(sprites), generator.uniform(0, 2 * np.pi)
    angles = start + 2 * np.pi / count * np.arange(count)
    centers = size * (0.5 + _RADIUS * np.stack([np.sin(angles), np.cos(angles)], 1))
    corners = [
        (round(row - len(sprite) / 2), round(column - sprite.shape[1] / 2))
        for (row, column), sprite in zip(centers.tolist(), sprites, strict=True)
    ]
    images, owner = [], np.empty(0, np.int8)
    for subset in range(2**count):
        absent = [place for place in range(count) if not subset >> place & 1]
        images.append(background.copy())
        owner = paste_all(sprites, corners, images[-1], left_out=absent)
    return images, [owner == place for place in range(count)]
