"""Fonts for texts of any script: matplotlib's own, then installed ones with the letters it lacks.

CLIPs take Chinese, Hindi or emoji, and matplotlib's usual font has none of their letters.
"""

from functools import cache
from typing import Final

from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from ..errors import warn

_BOX: Final = "\N{WHITE SQUARE}"
_LAST_RESORT: Final = "Last Resort"
"""The beginning of the names of fonts that have a box for every letter, and no letter."""


def make_legible(text: Text) -> None:
    """Add to the fonts of a text what its letters need.

    A letter that no installed font has becomes a box, after a warning that names it.
    """
    families = list(text.get_fontfamily())
    missing = {letter for letter in text.get_text() if not letter.isspace()}
    for family in families:
        properties = FontProperties(family=[family])
        missing -= _letters(findfont(properties))
    if not missing:
        return
    for font in fontManager.ttflist:
        if not missing or font.name.startswith(_LAST_RESORT):
            continue
        found = missing & _letters(font.fname)
        if found:
            families.append(font.name)
            missing -= found
    text.set_fontfamily(families)
    if missing:
        text.set_text(text.get_text().translate(dict.fromkeys(map(ord, missing), _BOX)))
        warn(
            f"no font of this machine has {' '.join(sorted(missing))}, so the figure has {_BOX} "
            "in their place; install one that does, such as Noto Sans CJK or Noto Emoji (the one "
            "without colors), and delete matplotlib's list of fonts, fontlist*.json in the folder "
            "that matplotlib.get_cachedir() names."
        )


@cache
def _letters(file: str) -> frozenset[str]:
    """The letters that a font has; none if it was removed after matplotlib listed it."""
    try:
        font = get_font(file)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(map(chr, font.get_charmap()))
