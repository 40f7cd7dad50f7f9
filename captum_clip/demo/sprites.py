"""The sprite sheet, which ``docs/experiments/training/sheet.py`` draws from an emoji font.

Its cells follow the order of :data:`captum_clip.demo.catalog.THINGS`, drawing by drawing, row by
row.
"""

from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from .catalog import THINGS

SHEET: Final = Path(__file__).with_name("sprites.png")
CELL: Final = 96
COLUMNS: Final = 14
_FAINTEST: Final = 77  # alpha below this is cut, so that a mask is all that a sprite touches


@lru_cache(maxsize=1)
def load_sprites() -> dict[str, tuple[Image.Image, ...]]:
    """Read the sheet: name of each thing -> its drawings (RGBA, trimmed), held-out ones last."""
    with Image.open(SHEET) as opened:
        sheet = opened.convert("RGBA")
    cells = (
        sheet.crop((left, top, left + CELL, top + CELL))
        for top in range(0, sheet.height, CELL)
        for left in range(0, sheet.width, CELL)
    )
    trimmed = (cell.crop(cell.getbbox()) for cell in cells)
    return {
        thing.name: tuple(islice(trimmed, len(thing.characters + thing.held_out)))
        for thing in THINGS
    }


def rotated(drawing: Image.Image, *, side: int, angle: float, flip: bool) -> npt.NDArray[np.uint8]:
    """Flip, resize and rotate one drawing.

    Args:
        drawing: an RGBA sprite.
        side: its longer side in pixels before it is rotated.
        angle: degrees, counter-clockwise.
        flip: mirror it left to right first.

    Returns:
        (h, w, 4), trimmed; the mask of the sprite is exactly ``alpha > 0``.
    """
    if flip:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = side / max(drawing.size)
    size = (max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale)))
    drawing = drawing.resize(size, Image.Resampling.BILINEAR)
    drawing = drawing.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    pixels = np.array(drawing)
    pixels[pixels[..., 3] < _FAINTEST] = 0
    places = np.argwhere(pixels[..., 3])
    (top, left), (bottom, right) = places.min(0), places.max(0) + 1
    return pixels[top:bottom, left:right]
