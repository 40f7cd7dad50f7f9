"""A vision transformer layer by layer: its attention, and the gradient with respect to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

import numpy as np
import torch
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from .. import maps
from ..errors import InputError
from .arrays import Array, ArrayLike, as_images, as_names, as_notes, as_raw, as_references
from .blend import blend, ramp
from .grid import Legend, Panel, Row, folded, grid
from .style import ALPHA, HEAT, NEGATIVE, POSITIVE, colormap, short_number

MASK: Final = "mask"
"""In place of a colour map: multiply the image with the map, as Mamooler does."""
_Draw: TypeAlias = Callable[[Array, Array, bool], Array]
"""An image (H, W, 3) and maps (L, H, W), on one scale or each its own -> pictures (L, H, W, 3)."""
_BLACK_TO_WHITE: Final = LinearSegmentedColormap.from_list("captum_clip.mask", ["black", "white"])


def layers(
    images: ArrayLike,
    attention: ArrayLike,
    gradients: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    scores: ArrayLike | None = None,
    references: Sequence[ArrayLike | None] | None = None,
    shared: bool = False,
    cmap: str | Colormap | None = None,
    caption: str = "",
) -> Figure:
    r"""Attention of every layer, then for each target the gradient with respect to it.

    Attention is upsampled, min-max normalised to [0, 1] and laid over the image. A gradient keeps
    its sign: orange where more attention would raise the cosine, blue where it would lower it, the
    image where it changes nothing, on a scale that ends at the largest absolute value. The smallest
    and largest value of each map are under its picture.

    With ``cmap="mask"`` the picture is Mamooler's: the image :math:`I` is multiplied with each
    map :math:`m`, attention and gradient alike, so that low is dark:

    .. math:: I \cdot \frac{m - \min m}{\max m - \min m}

    Args:
        images: (B, 3, H, W), colours in [0, 1].
        attention: (B, L, h, w), one raw map per layer, such as those of
            :class:`captum_clip.LayerAttention`.
        gradients: (B, K, L, h, w), one raw map per target and layer.
        names: of the K targets, under their pictures.
        scores: (B, K), beside the first picture of each target.
        references: K pictures (3, H, W) of targets that are images, None for the others; each
            stands in place of the image before its gradients.
        shared: one scale for the attention maps of all layers, and one for the gradients of a
            target; by default each map on its own.
        cmap: lay all maps, min-max normalised, over the image in these colours; "mask" multiplies
            the image with them.
        caption: below the pictures.

    Returns:
        A figure; the layers are numbered from 0.

    Raises:
        InputError: shapes that do not fit, NaN or infinity, an unknown colour map.

    Source: CLIP Explainability (Mamooler, EPFL), Figures 2 and 3.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> attention, gradients = torch.rand(1, 3, 4, 4), torch.randn(1, 2, 3, 4, 4)
        >>> figure = visualization.layers(
        ...     torch.rand(1, 3, 32, 32), attention, gradients, names=["a horse", "a dog"]
        ... )
        >>> len(figure.axes)  # three times image and layers
        12
    """
    pictures = as_images("layers", images)
    size = pictures.shape[1:3]
    attended = as_raw("layers", "attention", attention, "(B, L, h, w)", size)  # (B, L, H, W)
    slopes = as_raw("layers", "gradients", gradients, "(B, K, L, h, w)", size)  # (B, K, L, H, W)
    batch, count = slopes.shape[:2]
    if batch != len(pictures) or attended.shape[:2] != (batch, slopes.shape[2]):
        raise InputError(
            f"layers: attention {attended.shape} and gradients {slopes.shape} of "
            f"{len(pictures)} images do not belong together."
        )
    titles = as_names("layers", names, count)
    cosines = as_notes("layers", scores, (batch, count))
    targets = as_references("layers", references, count, size)
    draw_attention, draw_gradients, legends = _look(cmap)
    rows: list[Row] = []
    labels: dict[int, str] = {}

    def add(label: str, lead: Panel, pixels: Array, values: Array) -> None:
        ranges = [f"{short_number(raw.min())} to {short_number(raw.max())}" for raw in values]
        pairs = enumerate(zip(pixels, ranges, strict=True))
        labels[len(rows)] = label
        rows.extend(folded([Panel(drawn, f"layer {n}", note) for n, (drawn, note) in pairs], lead))

    for index, picture in enumerate(pictures):
        drawn = draw_attention(picture, attended[index], shared)
        add("attention", Panel(picture, "image"), drawn, attended[index])
        for column, (title, target) in enumerate(zip(titles, targets, strict=True)):
            lead = Panel(picture if target is None else target, title, cosines[index][column])
            drawn = draw_gradients(picture, slopes[index, column], shared)
            add("gradient", lead, drawn, slopes[index, column])
    return grid(rows, labels=labels, legends=legends, caption=caption)


def _look(cmap: str | Colormap | None) -> tuple[_Draw, _Draw, list[Legend]]:
    """How attention and gradients are drawn, and the legends that say so."""
    if cmap is None:
        legends = [
            Legend(ramp(colormap(HEAT), ALPHA), "attention, low to high"),
            Legend(ramp(POSITIVE, ALPHA), "raises the cosine"),
            Legend(ramp(NEGATIVE, ALPHA), "lowers it"),
        ]
        return partial(draw_overlaid, colormap(HEAT)), draw_signed, legends
    if cmap == MASK:
        return _masked, _masked, [Legend(_BLACK_TO_WHITE, "low to high")]
    colors = colormap(cmap)
    draw = partial(draw_overlaid, colors)
    return draw, draw, [Legend(ramp(colors, ALPHA), "low to high")]


def _min_max(values: Array, shared: bool) -> Array:
    """Maps (L, H, W) to [0, 1], each on its own or as one."""
    flat = torch.from_numpy(values).reshape(1 if shared else len(values), 1, -1)
    return maps.normalize(flat).reshape(values.shape).numpy()


def draw_overlaid(colors: Colormap, picture: Array, values: Array, shared: bool) -> Array:
    """Maps (L, H, W), min-max normalised, over an image in some colours."""
    return np.stack(
        [blend(picture, heatmap, colors, ALPHA) for heatmap in _min_max(values, shared)]
    )


def _masked(picture: Array, values: Array, shared: bool) -> Array:
    return picture * _min_max(values, shared)[..., None]


def draw_signed(picture: Array, values: Array, shared: bool) -> Array:
    """Maps (L, H, W) over an image: orange above zero, blue below it."""
    largest = np.abs(values).max(axis=None if shared else (-2, -1), keepdims=True)
    heatmap = values / np.where(largest > 0, largest, 1)  # (L, H, W) in [-1, 1]
    drawn = [
        np.where(
            signed[..., None] < 0,
            blend(picture, (-signed).clip(0), NEGATIVE, ALPHA),
            blend(picture, signed.clip(0), POSITIVE, ALPHA),
        )
        for signed in heatmap
    ]
    return np.stack(drawn)
