"""Colors and type sizes of figures, and maps laid over images in these colors."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap

from ..checks import show
from ..errors import InputError

Array = npt.NDArray[np.float32]

FONT: Final = "DejaVu Sans"  # comes with matplotlib
TEXT_SIZE: Final = 8.0  # points
NOTE_SIZE: Final = 7.0
TEXT_COLOR: Final = "#222222"
NOTE_COLOR: Final = "#6b6b6b"
# Names of targets may hold dollar signs, which are no formulas.
TEXT: Final[dict[str, Any]] = {
    "fontsize": TEXT_SIZE,
    "family": FONT,
    "color": TEXT_COLOR,
    "parse_math": False,
}
NOTE: Final = {**TEXT, "fontsize": NOTE_SIZE, "color": NOTE_COLOR}

# lightness rises evenly with the value, also in gray print and for the color-blind
HEAT: Final = "inferno"
POSITIVE: Final = LinearSegmentedColormap.from_list(
    "captum_clip.positive", ["#fbd3a4", "#e8812a", "#b03a00"]
)
"""Light to dark orange, which people with any kind of color vision can tell from blue."""
NEGATIVE: Final = LinearSegmentedColormap.from_list(
    "captum_clip.negative", ["#b5d8f0", "#2f86c5", "#00407c"]
)
"""Light to dark blue."""
ALPHA: Final = 0.9
RISE: Final = 0.8  # opacity is the map's value to this power, so that low values can be seen
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_COLOR, _LIGHT = 0.4, 0.2  # what stays of the colors, what is added of white


def colormap(cmap: str | Colormap) -> Colormap:
    """A color map, by name or as it is; InputError for an unknown name."""
    try:
        # of the registry: pyplot would bring a backend and global state along
        return colormaps.get_cmap(cmap)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"cmap: matplotlib knows no color map {show(cmap)}; "
            "good ones are inferno, viridis, magma, cividis."
        ) from error


def soften(image: Array) -> Array:
    """An image (H, W, 3) paler and lighter, so that the colors of a map stand out."""
    gray = (image @ _LUMA)[..., None]
    pale = _COLOR * image + (1 - _COLOR) * gray
    return np.asarray(_LIGHT + (1 - _LIGHT) * pale, dtype=np.float32)


def blend(image: Array, heatmap: Array, cmap: Colormap, alpha: float = ALPHA) -> Array:
    """Lay a map (H, W) over a softened image (H, W, 3), both in [0, 1].

    The map is `alpha` opaque where it is 1, and shows the image where it is 0.
    """
    # the image shows where a map is low, so that inferno's black does not hide it
    opacity = alpha * heatmap[..., None] ** RISE
    # A color map takes floats for shares and integers for indices. Its own alpha is left out.
    mixed = (1 - opacity) * soften(image) + opacity * cmap(heatmap)[..., :3]
    return np.asarray(mixed, dtype=np.float32).clip(0, 1)


def blend_signed(image: Array, signed: Array, alpha: float = ALPHA) -> Array:
    """Lay a map (H, W) in [-1, 1] over an image: orange above zero, blue below it."""
    below = blend(image, (-signed).clip(0), NEGATIVE, alpha)
    above = blend(image, signed.clip(0), POSITIVE, alpha)
    # one color a pixel: orange over blue would mix to a gray that means neither
    return np.where(signed[..., None] < 0, below, above)


def ramp(cmap: Colormap, alpha: float = ALPHA) -> Colormap:
    """The colors of a map as they look over an image, from 0, a pale image, to 1.

    Legends show them, since the darkest colors of a map are never seen in a figure.
    """
    heatmap = np.linspace(0, 1, 256, dtype=np.float32)[None]
    # over the middle gray, since a legend has no photo to lie on
    gray = np.full((*heatmap.shape, 3), 0.5, dtype=np.float32)
    return ListedColormap(blend(gray, heatmap, cmap, alpha)[0])


def short_number(value: float) -> str:
    """A value with two digits and a true minus sign, for a figure."""
    return f"{value + 0.0:.2g}".replace("-", "\N{MINUS SIGN}")  # + 0.0: no minus zero


def signed_number(value: float) -> str:
    """A share or a difference of cosines as it is written in a figure, always with its sign."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def score_note(score: float) -> str:
    """A cosine similarity as it is written in a figure."""
    return f"cosine {score:.3f}".replace("-", "\N{MINUS SIGN}")
