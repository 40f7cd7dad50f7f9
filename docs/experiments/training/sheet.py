"""Drawing the sprite sheet from an emoji font."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from captum_clip.demo.catalog import THINGS
from captum_clip.demo.scenes import CELL, SHEET_COLUMNS

_STRIKE: Final = 109  # the one bitmap size of the font


def draw_sheet(font: Path) -> Image.Image:
    """Draw every character of the catalog into one RGBA sheet.

    Args:
        font: a color emoji font with bitmaps of 109 pixels (Noto Color Emoji).

    Returns:
        The sheet, 14 cells of 96 x 96 per row; each drawing trimmed, scaled and centered.

    Raises:
        ValueError: if the font does not draw one of the characters.
    """
    face = ImageFont.truetype(str(font), _STRIKE)
    characters = [character for thing in THINGS for character in thing.characters + thing.held_out]
    rows = -(-len(characters) // SHEET_COLUMNS)
    sheet = Image.new("RGBA", (SHEET_COLUMNS * CELL, rows * CELL))
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
        row, column = divmod(position, SHEET_COLUMNS)
        corner = (column * CELL + (CELL - width) // 2, row * CELL + (CELL - height) // 2)
        sheet.paste(drawing, corner)
    return sheet
