"""Where the objects of a scene go."""

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

_TRIES: Final = 40
_ROUNDS: Final = 25
_CORNERS: Final = 0.64  # of the image's side: three such objects overlap little in three corners

_Mask = npt.NDArray[np.bool_]
_Sprite = npt.NDArray[np.uint8]
Corner = tuple[int, int]


def place(
    sprites: Sequence[_Sprite], size: int, generator: np.random.Generator, *, visible: float
) -> tuple[Sequence[_Sprite], tuple[Corner, ...]]:
    """Draw positions at which every object is inside the image and mostly visible.

    Args:
        sprites: (h, w, 4) each, from the back to the front.
        size: side of the image in pixels.
        generator: the source of the positions.
        visible: the share of each object that others may not cover.

    Returns:
        The sprites, of half the size where there is no room for them, and the top left corner
        (row, column) of each.
    """
    while True:
        masks = [sprite[..., 3] > 0 for sprite in sprites]
        for _ in range(_ROUNDS):
            corners = _attempt(masks, size, generator, visible)
            if corners is not None:
                return sprites, corners
        if len(masks) <= 3 and max(max(mask.shape) for mask in masks) <= _CORNERS * size:
            return sprites, _apart(masks, size)
        sprites = [sprite[::2, ::2] for sprite in sprites]


def paste_all(
    sprites: Sequence[_Sprite],
    corners: Sequence[Corner],
    image: npt.NDArray[np.uint8],
    *,
    left_out: Collection[int] = (),
) -> npt.NDArray[np.int8]:
    """Put sprites into an image, in place.

    Args:
        sprites: from the back to the front.
        corners: of each.
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
        # a soft edge never shows an object below it, so that leaving one out changes no other
        under = background[area].astype(np.uint16)
        blended = ((sprite[..., :3] * alpha + under * (255 - alpha) + 127) // 255).astype(np.uint8)
        mask = sprite[..., 3] > 0
        np.copyto(image[area], blended, where=mask[..., None])
        owner[area][mask] = position
    return owner


def _area(corner: Corner, shape: tuple[int, ...]) -> tuple[slice, slice]:
    (row, column), (height, width) = corner, shape[:2]
    return slice(row, row + height), slice(column, column + width)


def _attempt(
    masks: Sequence[_Mask], size: int, generator: np.random.Generator, visible: float
) -> tuple[Corner, ...] | None:
    owner = np.full((size, size), -1, dtype=np.int8)
    least: list[float] = []  # pixels of each placed object that must stay visible
    pixels: list[int] = []  # of each placed object that are visible
    corners: list[Corner] = []
    for number, mask in enumerate(masks):
        height, width = mask.shape
        for _ in range(_TRIES):
            row = int(generator.integers(size - height + 1))
            column = int(generator.integers(size - width + 1))
            area = owner[_area((row, column), mask.shape)]
            covered = [int(np.count_nonzero(mask & (area == i))) for i in range(number)]
            if all(pixels[i] - covered[i] >= least[i] for i in range(number)):
                break
        else:
            return None
        area[mask] = number
        pixels = [pixels[i] - covered[i] for i in range(number)] + [int(np.count_nonzero(mask))]
        least.append(visible * pixels[-1])
        corners.append((row, column))
    return tuple(corners)


def _apart(masks: Sequence[_Mask], size: int) -> tuple[Corner, ...]:
    """Put objects into different corners of the image, where three of half its side fit."""
    return tuple(
        (bottom * (size - mask.shape[0]), right * (size - mask.shape[1]))
        for mask, (bottom, right) in zip(masks, ((0, 0), (0, 1), (1, 0)), strict=False)
    )
