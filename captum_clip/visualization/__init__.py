"""Figures of maps, as matplotlib figures that belong to no window.

Arrays or tensors go in: images (B, 3, H, W) with colours in [0, 1], maps (B, K, h, w) in [0, 1]
from :mod:`captum_clip.maps`. Nothing is computed here but colours.
"""

from .captum_view import captum_image_attr
from .colors import HEAT, NEGATIVE, POSITIVE
from .grid import save_figure
from .overlays import average, contact_sheet, overlay, signs
from .sentences import sentences

__all__ = [
    "HEAT",
    "NEGATIVE",
    "POSITIVE",
    "average",
    "captum_image_attr",
    "contact_sheet",
    "overlay",
    "save_figure",
    "sentences",
    "signs",
]
