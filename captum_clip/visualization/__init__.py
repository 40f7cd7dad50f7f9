"""Pictures of maps, as matplotlib figures that belong to no window.

Arrays or tensors go in: images (B, 3, H, W) with colours in [0, 1], maps (B, K, h, w) in [0, 1]
from :mod:`captum_clip.maps`. Nothing is computed here but colours.
"""

from .average import average
from .captum_view import captum_image_attr
from .curves import curves
from .heads import heads
from .layers import layers
from .overlay import contact_sheet, overlay
from .saving import save_figure
from .sentences import sentences
from .signs import signs
from .style import HEAT, NEGATIVE, POSITIVE
from .words import words

__all__ = [
    "HEAT",
    "NEGATIVE",
    "POSITIVE",
    "average",
    "captum_image_attr",
    "contact_sheet",
    "curves",
    "heads",
    "layers",
    "overlay",
    "save_figure",
    "sentences",
    "signs",
    "words",
]
