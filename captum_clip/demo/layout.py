"""Where the objects of a scene go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

VISIBLE: Final = 0.62  # the share of each object that stays visible
_TRIES: Final = 40
_ROUNDS: Final = 25

_Mask = npt.NDArray[np.bool_]
Corner = tuple[int, int]


def place(masks: Sequence[_Mask], size: int, generator: np.random.Generator) -> tuple[Corner, ...]:
    """Draw positions at which every object is inside the image and mostly visible.

    Args:
        masks: what each object covers, (h, w) each, from the back to the front.
        size: side of the image in pixels.
        generator: the source of the positions.

    Returns:
        The top left corner (row, column) of each object.
    """
    for _ in range(_ROUNDS):
        corners = _attempt(masks, size, generator)
        if corners is not None:
            return corners
    return _apart(masks, size)


def paste(
    image: npt.NDArray[np.uint8],
    sprite: npt.NDArray[np.uint8],
    corner: Corner,
    *,
    background: npt.NDArray[np.uint8],
    owner: npt.NDArray[np.int8] | None = None,
    number: int = 0,
) -> None:
    """Put a sprite into an image, in place.

    Its soft edge is blended with the background, not with objects below it: what a pixel of one
    object shows never depends on another object.

    Args:
        image: (H, W, 3), changed where the sprite's alpha is above 0.
        sprite: (h, w, 4).
        corner: its top left corner (row, column), such that it fits.
        background: (H, W, 3), the image before any object.
        owner: (H, W), which gets ``number`` at the same pixels.
        number: the object's number.
    """
    area = _area(corner, sprite.shape)
    alpha = sprite[..., 3:].astype(np.uint16)
    under = background[area].astype(np.uint16)
    blended = ((sprite[..., :3] * alpha + under * (255 - alpha) + 127) // 255).astype(np.uint8)
    mask = sprite[..., 3] > 0
    np.copyto(image[area], blended, where=mask[..., None])
    if owner is not None:
        owner[area][mask] = number


def _area(corner: Corner, shape: tuple[int, ...]) -> tuple[slice, slice]:
    (row, column), (height, width) = corner, shape[:2]
    return slice(row, row + height), slice(column, column + width)


def _attempt(
    masks: Sequence[_Mask], size: int, generator: np.random.Generator
) -> tuple[Corner, ...] | None:
    owner = np.full((size, size), -1, dtype=np.int8)
    least: list[float] = []  # pixels of each placed object that must stay visible
    seen: list[int] = []
    corners: list[Corner] = []
    for number, mask in enumerate(masks):
        height, width = mask.shape
        for _ in range(_TRIES):
            row = int(generator.integers(size - height + 1))
            column = int(generator.integers(size - width + 1))
            area = owner[_area((row, column), mask.shape)]
            covered = [int(np.count_nonzero(mask & (area == i))) for i in range(number)]
            if all(seen[i] - covered[i] >= least[i] for i in range(number)):
                break
        else:
            return None
        area[mask] = number
        seen = [seen[i] - covered[i] for i in range(number)] + [int(np.count_nonzero(mask))]
        least.append(VISIBLE * seen[-1])
        corners.append((row, column))
    return tuple(corners)


def _apart(masks: Sequence[_Mask], size: int) -> tuple[Corner, ...]:
    """Put objects into different corners of the image, where three of half its side fit."""
    return tuple(
        (bottom * (size - mask.shape[0]), right * (size - mask.shape[1]))
        for mask, (bottom, right) in zip(masks, ((0, 0), (0, 1), (1, 0)), strict=False)
    )
