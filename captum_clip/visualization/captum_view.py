"""Captum's own figure of a map, without its pitfalls."""

from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from captum.attr import visualization as captum_visualization
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from .. import maps
from ..checks import check_choice
from ..errors import InputError, public
from .arrays import ArrayLike, as_array, as_images
from .colors import HEAT, NEGATIVE, POSITIVE, TEXT_SIZE, Array, colormap

Sign = Literal["all", "positive", "negative", "absolute_value"]
Method = Literal["heat_map", "blended_heat_map", "masked_image", "alpha_scaling"]

_SIGNED: Final = LinearSegmentedColormap.from_list(
    "captum_clip.signed", ["#00407c", "#2f86c5", "#f7f7f7", "#e8812a", "#b03a00"]
)
_COLORS: Final[dict[str, str | Colormap]] = {
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
    cmap: str | Colormap | None = None,
    title: str = "",
    outlier_perc: float = 2,
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
        sign: which values; "all" does not go with "masked_image" and "alpha_scaling".
        cmap: colour map; by default orange above zero and blue below.
        title: over the image.
        outlier_perc: share of the total, in percent, whose largest values are cut.

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
        raise InputError(
            f"{method} shows no sign; take `sign='positive'`, 'negative' or 'absolute_value'."
        )
    seen = as_images(image)[0]
    values = _as_signed(attribution, seen.shape[:2])  # (H, W)
    colors = colormap(_COLORS[sign] if cmap is None else cmap)
    shown: str = method
    present = {"positive": values > 0, "negative": values < 0}.get(sign, values != 0)
    if not present.any():
        values, shown = np.ones_like(values), "original_image"
        what = "saliency" if sign in ("all", "absolute_value") else f"{sign} saliency"
        title = f"{title} (no {what})".strip()
    figure = Figure(figsize=(3, 3.2), dpi=200)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.9))
    options: dict[str, Any] = {"cmap": colors, "outlier_perc": outlier_perc, "use_pyplot": False}
    captum_visualization.visualize_image_attr(
        values[..., None],
        np.round(255 * seen).astype(np.uint8),
        shown,
        sign if shown == method else "positive",
        plt_fig_axis=(figure, axes),
        **options,
    )
    axes.set_axis_off()
    axes.set_title(title, fontsize=TEXT_SIZE, parse_math=False)
    return figure


def _as_signed(attribution: ArrayLike, size: tuple[int, ...]) -> Array:
    """One raw map (1, 1, h, w) -> (H, W), its largest absolute value 1 unless all are zero."""
    array = as_array("an attribution", attribution)
    if array.ndim != 4 or array.shape[:2] != (1, 1):
        raise InputError(f"expected one attribution of shape (1, 1, h, w), got {array.shape}.")
    resized = maps.upsample(torch.from_numpy(array), (size[0], size[1]))[0, 0].numpy()
    return np.asarray(resized / (float(np.abs(resized).max()) or 1), dtype=np.float32)
