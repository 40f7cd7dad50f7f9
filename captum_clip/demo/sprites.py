"""The sprite sheet: drawn once from an emoji font, read at run time without one.

``python -m captum_clip.demo.sprites --font NotoColorEmoji.ttf`` draws the sheet again. The cells
follow the order of :data:`captum_clip.demo.catalogue.THINGS`, drawing by drawing, row by row.
"""

from __future__ import annotations

import argparse
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from captum_clip.demo.catalogue import THINGS

SHEET: Final = Path(__file__).with_name("sprites.png")
CELL: Final = 96
_COLUMNS: Final = 14
_STRIKE: Final = 109  # the one bitmap size of the font
_FAINTEST: Final = 77  # alpha below this is cut, so that a mask is all that a sprite touches


def _characters() -> list[str]:
    return [character for thing in THINGS for character in thing.characters + thing.held_out]


def render(font: Path) -> Image.Image:
    """Draw every character of the catalogue into one RGBA sheet.

    Args:
        font: a colour emoji font with bitmaps of 109 pixels (Noto Color Emoji).

    Returns:
        The sheet, 14 cells of 96 x 96 a row; each drawing trimmed, scaled and centred.

    Raises:
        ValueError: if the font does not draw one of the characters.
    """
    face = ImageFont.truetype(str(font), _STRIKE)
    characters = _characters()
    rows = -(-len(characters) // _COLUMNS)
    sheet = Image.new("RGBA", (_COLUMNS * CELL, rows * CELL))
    for position, character in enumerate(characters):
        canvas = Image.new("RGBA", (2 * _STRIKE, 2 * _STRIKE))
        ImageDraw.Draw(canvas).text((20, 20), character, font=face, embedded_color=True)
        box = canvas.getbbox()
        if box is None:
            raise ValueError(f"{font} does not draw {character!r}")
        drawing = canvas.crop(box)
        scale = CELL / max(drawing.size)
        width, height = (max(1, round(side * scale)) for side in drawing.size)
        drawing = drawing.resize((width, height), Image.Resampling.LANCZOS)
        row, column = divmod(position, _COLUMNS)
        corner = (column * CELL + (CELL - width) // 2, row * CELL + (CELL - height) // 2)
        sheet.paste(drawing, corner)
    return sheet


@lru_cache(maxsize=1)
def load_sprites() -> dict[str, tuple[Image.Image, ...]]:
    """Read the sheet: name of each thing -> its drawings (RGBA, trimmed), held-out ones last."""
    with Image.open(SHEET) as opened:
        sheet = opened.convert("RGBA")
    sprites: dict[str, tuple[Image.Image, ...]] = {}
    position = 0
    for thing in THINGS:
        drawings = []
        for _ in thing.characters + thing.held_out:
            row, column = divmod(position, _COLUMNS)
            left, top = column * CELL, row * CELL
            cell = sheet.crop((left, top, left + CELL, top + CELL))
            drawings.append(cell.crop(cell.getbbox()))
            position += 1
        sprites[thing.name] = tuple(drawings)
    return sprites


def turned(drawing: Image.Image, *, side: int, angle: float, flip: bool) -> npt.NDArray[np.uint8]:
    """Flip, resize and turn one drawing.

    Args:
        drawing: an RGBA sprite.
        side: its longer side in pixels before it is turned.
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
    rows = np.flatnonzero(pixels[..., 3].any(axis=1))
    columns = np.flatnonzero(pixels[..., 3].any(axis=0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def main(arguments: list[str] | None = None) -> None:
    """Draw the sheet from a font and write it beside this module."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--font", type=Path, required=True, help="NotoColorEmoji.ttf")
    parser.add_argument("--output", type=Path, default=SHEET)
    options = parser.parse_args(arguments)
    render(options.font).save(options.output, optimize=True)
    print(f"{len(_characters())} drawings -> {options.output}")


if __name__ == "__main__":
    main()
