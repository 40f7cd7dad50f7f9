"""A map laid over an image."""

from __future__ import annotations

from typing import Final

import numpy as np
from matplotlib.colors import Colormap, ListedColormap

from .arrays import Array

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_COLOR, _LIGHT = 0.4, 0.2  # what stays of the colours, what is added of white
RISE: Final = 0.8  # opacity is heat to this power: faint heat is seen, none is clear


def soften(image: Array) -> Array:
    """An image (H, W, 3) paler and lighter, so that the colours of a map stand out."""
    grey = (image @ _LUMA)[..., None]
    pale = _COLOR * image + (1 - _COLOR) * grey
    return np.asarray(_LIGHT + (1 - _LIGHT) * pale, dtype=np.float32)


def blend(image: Array, heatmap: Array, cmap: Colormap, alpha: float) -> Array:
    """A map (H, W) over a softened image (H, W, 3), both in [0, 1], `alpha` opaque where it is 1.

    Where the map is zero the image shows through.
    """
    opacity = alpha * heatmap[..., None] ** RISE
    mixed = (1 - opacity) * soften(image) + opacity * cmap(heatmap)[..., :3]
    return np.asarray(mixed, dtype=np.float32).clip(0, 1)


def ramp(cmap: Colormap, alpha: float) -> Colormap:
    """What a map's colours look like over an image, from no heat, a pale image, to the strongest.

    Legends show it, since the darkest colours of a map are never seen on a picture.
    """
    heatmap = np.linspace(0, 1, 256, dtype=np.float32)[None]
    grey = np.full((*heatmap.shape, 3), 0.5, dtype=np.float32)
    return ListedColormap(blend(grey, heatmap, cmap, alpha)[0])
