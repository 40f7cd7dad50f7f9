"""Colors and type sizes of figures, and maps laid over images in these colors."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps, rcParams
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap

from ..checks import show
from ..errors import InputError, argument
from ..look import Look, current_look

Array = npt.NDArray[np.float32]
Layer = tuple[Array, Colormap]
"""A map (H, W) in [0, 1] and its colors."""

# Points of type, as long as matplotlib's own size is its default, 10.
TEXT_SIZE: Final = 8.0
NOTE_SIZE: Final = 7.0
TEXT_COLOR: Final = "#222222"
NOTE_COLOR: Final = "#6b6b6b"

# Lightness rises evenly with the value, also in gray print and for the color-blind.
HEAT: Final = "inferno"
POSITIVE: Final = LinearSegmentedColormap.from_list(
    "captum_clip.positive", ["#fbd3a4", "#e8812a", "#b03a00"]
)
"""Light to dark orange, which people with any kind of color vision can tell from blue."""
NEGATIVE: Final = LinearSegmentedColormap.from_list(
    "captum_clip.negative", ["#b5d8f0", "#2f86c5", "#00407c"]
)
"""Light to dark blue."""
ALPHA: Final = Look.alpha
# Opacity is the map's value to this power, so that low values can be seen.
RISE: Final = 0.8
# The weights of red, green and blue in gray (ITU-R BT.601).
_LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_KEPT_COLOR: Final = 0.4
"""The share of its colors that a softened image keeps."""
_ADDED_WHITE: Final = 0.2
"""The share of white that a softened image gets."""


def magnified() -> float:
    """Return the size of texts as a multiple of the usual one."""
    # By this factor matplotlib's default size, 10, becomes the usual size of ours.
    font_size = current_look.get().font_size or 0.8 * rcParams["font.size"]
    return float(font_size / TEXT_SIZE)


def lettering(size: float = TEXT_SIZE, color: str = TEXT_COLOR) -> dict[str, Any]:
    """Return matplotlib's options for a text that usually has `size` points, in its own font."""
    # A style for dark slides sets another color than black, and then all texts have it.
    style_color = rcParams["text.color"]
    if style_color != "black":
        color = style_color
    # Names of targets may hold dollar signs that are no formula.
    return {"fontsize": size * magnified(), "color": color, "parse_math": False}


def small_print(size: float = NOTE_SIZE) -> dict[str, Any]:
    """Return matplotlib's options for a score or a caption."""
    return lettering(size, NOTE_COLOR)


def sign_colors(*signs: str) -> list[Colormap]:
    """Return a color map for each sign that is drawn: the look's, parted for two signs, or ours."""
    if not signs:
        # An explanation of the text side has no maps, and so no sign.
        return []
    cmap = current_look.get().cmap
    if len(signs) == 1:
        if cmap is None:
            cmap = HEAT if signs[0] == "positive" else NEGATIVE
        return [colormap(cmap)]
    if cmap is None:
        return [POSITIVE, NEGATIVE]
    whole = colormap(cmap)
    # Both halves begin at the middle, since zero is there in a map of both signs.
    upper = whole(np.linspace(0.5, 1, 256))
    lower = whole(np.linspace(0.5, 0, 256))
    return [ListedColormap(upper), ListedColormap(lower)]


def signed_layers(signed: Array) -> list[Layer]:
    """Part a map (H, W) in [-1, 1] in two, one for each sign, in colors that tell them apart."""
    positive_colors, negative_colors = sign_colors("positive", "negative")
    return [(signed.clip(0), positive_colors), ((-signed).clip(0), negative_colors)]


def colormap(cmap: str | Colormap) -> Colormap:
    """Return a color map, given by name or as it is; InputError for an unknown name."""
    try:
        # The registry is asked, since pyplot would load a backend and keep global state.
        return colormaps.get_cmap(cmap)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{argument('cmap')}: matplotlib knows no color map {show(cmap)}; "
            "good ones are inferno, viridis, magma, cividis."
        ) from error


def soften(image: Array) -> Array:
    """Make an image (H, W, 3) paler and lighter, so that the colors of a map stand out."""
    gray = (image @ _LUMA)[..., None]
    pale = _KEPT_COLOR * image + (1 - _KEPT_COLOR) * gray
    return np.asarray(_ADDED_WHITE + (1 - _ADDED_WHITE) * pale, dtype=np.float32)


def blend(image: Array, heatmap: Array, cmap: Colormap, alpha: float | None = None) -> Array:
    """Lay a map (H, W) over a softened image (H, W, 3), both in [0, 1].

    The map is `alpha` opaque where it is 1, by default the look's, and shows the image where it
    is 0.
    """
    return cover(soften(image), [(heatmap, cmap)], alpha)


def cover(base: Array, layers: Sequence[Layer], alpha: float | None = None) -> Array:
    """Lay maps over a softened image; those of two signs share no pixel, so no colors mix."""
    for heatmap, cmap in layers:
        shades = tinted(heatmap, cmap, alpha)
        colors = shades[..., :3]
        opacity = shades[..., 3:]
        base = (1 - opacity) * base + opacity * colors
    return np.asarray(base, dtype=np.float32).clip(0, 1)


def tinted(heatmap: Array, cmap: Colormap, alpha: float | None = None) -> npt.NDArray[Any]:
    """Return the colors and opacities (..., 4) of the values of a map."""
    if alpha is None:
        alpha = current_look.get().alpha
    # The image shows where a map is low, so inferno's black does not hide it.
    opacity = alpha * heatmap[..., None] ** RISE
    # A color map takes floats for shares and integers for indices. Its own alpha is left out.
    colors = cmap(heatmap)[..., :3]
    return np.concatenate([colors, opacity], -1)


def ramp(cmap: Colormap, alpha: float | None = None) -> Colormap:
    """Return the colors of a map as they look over an image, from 0, a pale image, to 1.

    Legends show them, since the darkest colors of a map are never seen in a figure.
    """
    heatmap = np.linspace(0, 1, 256, dtype=np.float32)[None]
    # A legend has no photo to lie on, so its colors lie over the middle gray.
    gray = np.full((*heatmap.shape, 3), 0.5, dtype=np.float32)
    return ListedColormap(blend(gray, heatmap, cmap, alpha)[0])


def short_number(value: float) -> str:
    """Write a value with two digits and a true minus sign, for a figure."""
    # Adding zero makes a plain zero of minus zero.
    return f"{value + 0.0:.2g}".replace("-", "\N{MINUS SIGN}")


def signed_number(value: float) -> str:
    """Write a share or a difference of cosines for a figure, always with its sign."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def score_note(score: float) -> str:
    """Write a cosine similarity for a figure."""
    return f"cosine {score:.3f}".replace("-", "\N{MINUS SIGN}")
