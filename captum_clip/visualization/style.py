"""How every picture looks: colours and type sizes."""

from __future__ import annotations

from typing import Any, Final

from matplotlib import colormaps
from matplotlib.colors import Colormap, LinearSegmentedColormap

from ..errors import InputError

FONT: Final = "DejaVu Sans"  # comes with matplotlib
TEXT_SIZE: Final = 8.0  # points
NOTE_SIZE: Final = 7.0
TEXT_COLOR: Final = "#222222"
NOTE_COLOR: Final = "#6b6b6b"
ALPHA: Final = 0.9

# Names of targets may hold dollar signs, which are no formulas.
TEXT: Final[dict[str, Any]] = {
    "fontsize": TEXT_SIZE,
    "family": FONT,
    "color": TEXT_COLOR,
    "parse_math": False,
}
"""How text is drawn."""
NOTE: Final = {**TEXT, "fontsize": NOTE_SIZE, "color": NOTE_COLOR}
"""How what is said about it is drawn."""

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
    """A colour map, by name or as it is."""
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


def score_note(score: float) -> str:
    """How a cosine similarity is written under a picture."""
    return f"cosine {score:.3f}".replace("-", "\N{MINUS SIGN}")
