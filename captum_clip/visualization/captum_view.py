"""Captum's own figure of a map, without its pitfalls."""

from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from captum.attr import visualization as captum_visualization
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from .. import maps
from ..checks import check_choice
from ..errors import InputError, public
from .arrays import ArrayLike, as_array, as_images, as_values
from .colors import HEAT, NEGATIVE, POSITIVE, TEXT_SIZE

Sign = Literal["all", "positive", "negative", "absolute_value"]
Method = Literal["heat_map", "blended_heat_map", "masked_image", "alpha_scaling"]

_SIGNED: Final = LinearSegmentedColormap.from_list(
    "captum_clip.signed", ["#00407c", "#2f86c5", "#f7f7f7", "#e8812a", "#b03a00"]
)
_COLORS: Final[dict[str, Any]] = {
    "all": _SIGNED,
    "positive": POSITIVE,
    "negative": NEGATIVE,
    "absolute_value": HEAT,
}


@public("captum_image_attr")
def captum_image_attr(
    image: ArrayLike,
    attribution: ArrayLike,
    *,
    method: Method = "blended_heat_map",
    sign: Sign = "all",
    title: str = "",
) -> Figure:
    """One image and its signed map through `captum.attr.visualization.visualize_image_attr`.

    For what :func:`overlay` does not do: a signed map in one figure, masked images, and figures
    next to those of other Captum methods. The map is raw: Captum scales it, and cuts outliers off.
    Captum fails on a map that is zero everywhere or has nothing of the sign; here the plain image
    is shown, and the title gives the reason.

    Args:
        image: (1, 3, H, W), colours in [0, 1].
        attribution: (1, 1, h, w), a raw map, signed or not; upsampled to (H, W).
        method: how map and image are shown.
        sign: which values, orange above zero and blue below; "all" does not go with
            "masked_image" and "alpha_scaling".
        title: over the image.

    Raises:
        InputError: shapes that do not fit, an unknown method or sign, or two that do not combine.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> image, signed = torch.rand(1, 3, 32, 32), torch.randn(1, 1, 4, 4)
        >>> figure = visualization.captum_image_attr(image, signed, method="heat_map")
    """
    check_choice(method, get_args(Method), name="method to be one")
    check_choice(sign, get_args(Sign), name="sign to be one")
    if sign == "all" and method in ("masked_image", "alpha_scaling"):
        raise InputError(f"{method} has no sign; take 'positive', 'negative' or 'absolute_value'.")
    [pixels] = as_values("image", as_images(image), 1)
    array = as_array("attribution", attribution, (1, 1, "h", "w"))
    height, width = pixels.shape[:2]
    values = maps.upsample(torch.from_numpy(array), (height, width))[0, 0].numpy()
    values = values / (np.abs(values).max() or 1)  # Captum takes tiny values for zero
    present = {"positive": values > 0, "negative": values < 0}.get(sign, values != 0)
    look: tuple[str, str] = (method, sign)
    if not present.any():
        values, look = np.ones_like(values), ("original_image", "positive")
        what = "saliency" if sign in ("all", "absolute_value") else f"{sign} saliency"
        title = f"{title} (no {what})".strip()
    figure = Figure(figsize=(3, 3.2), dpi=200)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.9))
    captum_visualization.visualize_image_attr(
        values[..., None],
        np.round(255 * pixels).astype(np.uint8),
        *look,
        plt_fig_axis=(figure, axes),
        cmap=_COLORS[sign],
        use_pyplot=False,
    )
    axes.set_axis_off()
    axes.set_title(title, fontsize=TEXT_SIZE, parse_math=False)
    return figure
