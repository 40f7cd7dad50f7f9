"""How every picture looks: colours, type sizes, and lines broken to fit."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from matplotlib import colormaps
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.font_manager import FontProperties, findfont, get_font

from ..errors import InputError

FONT: Final = "DejaVu Sans"  # comes with matplotlib
TEXT_SIZE: Final = 8.0  # points
NOTE_SIZE: Final = 7.0
LINE: Final = 1.3  # line height over type size
TEXT_COLOR: Final = "#222222"
NOTE_COLOR: Final = "#6b6b6b"
ALPHA: Final = 0.9

HEAT: Final = "inferno"
POSITIVE: Final = LinearSegmentedColormap.from_list(
    "captum_clip.positive", ["#fbd3a4", "#e8812a", "#b03a00"]
)
"""Light to dark orange; told from :data:`NEGATIVE` with any kind of colour vision."""
NEGATIVE: Final = LinearSegmentedColormap.from_list(
    "captum_clip.negative", ["#b5d8f0", "#2f86c5", "#00407c"]
)
"""Light to dark blue."""


def colormap(cmap: str | Colormap) -> Colormap:
    """A colour map, by name or as it is.

    Raises:
        InputError: matplotlib has none of this name.
    """
    if isinstance(cmap, Colormap):
        return cmap
    try:
        return colormaps[cmap]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"cmap: matplotlib knows no colour map {cmap!r}; "
            "good ones are inferno, viridis, magma, cividis."
        ) from error


def short_number(value: float) -> str:
    """How a value is written in a picture: two digits, with a true minus sign."""
    return f"{value + 0.0:.2g}".replace("-", "\N{MINUS SIGN}")  # + 0.0: no minus zero


def wrap(text: str, width: float, size: float) -> list[str]:
    """Break a text into lines, at spaces where it can be.

    Args:
        text: any text; white space counts as one space.
        width: of a line, in points.
        size: type size in points.

    Returns:
        The lines, none wider than `width` except a single wide character.

    Example:
        >>> from captum_clip.visualization.style import wrap
        >>> wrap("a horse and a dog on the grass", width=72, size=8)
        ['a horse and a', 'dog on the grass']
    """
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size) <= width:
            lines[-1] = joined
            continue
        first, *rest = _pieces(word, width, size)
        lines += [first, *rest]
    return lines


def _pieces(word: str, width: float, size: float) -> list[str]:
    pieces = [""]
    for character in word:
        if pieces[-1] and text_width(pieces[-1] + character, size) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces


def text_width(text: str, size: float) -> float:
    """Width of a line in points, without kerning."""
    return sum(map(_advance, text)) * size


@lru_cache(maxsize=4096)
def _advance(character: str) -> float:
    """Width of a character over the type size."""
    font = get_font(findfont(FontProperties(family=FONT)))
    font.set_size(100, 72)
    glyph = font.load_glyph(font.get_char_index(ord(character)))
    return float(glyph.linearHoriAdvance) / 65536 / 100
