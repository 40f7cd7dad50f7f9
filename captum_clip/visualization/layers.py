"""A vision transformer layer by layer: its attention, and the gradient with respect to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from .. import maps
from ..errors import InputError
from .arrays import Array, ArrayLike, as_array, as_images, as_names, as_references, as_scores
from .blend import blend, ramp
from .grid import Legend, Panel, folded, grid
from .overlay import score_note
from .style import ALPHA, colormap, short_number

MASK: Final = LinearSegmentedColormap.from_list("captum_clip.mask", ["#000000", "#ffffff"])
"""How much of the image a mask leaves: nothing where the map is low, all where it is high."""


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

    A map :math:`m` is upsampled and stretched to [0, 1], and the image is multiplied with it, so
    that low is dark:

    .. math:: I \cdot \frac{m - \min m}{\max m - \min m}

    A gradient keeps its sign: its darkest places speak against the target most. The smallest and
    largest value of each map are under its picture.

    Args:
        images: (B, 3, H, W), colours in [0, 1].
        attention: (B, L, h, w), one raw map a layer, such as those of
            :class:`captum_clip.LayerAttention`.
        gradients: (B, K, L, h, w), one raw map a target and layer.
        names: of the K targets, under their pictures.
        scores: (B, K), beside the first picture of each target.
        references: K pictures (3, H, W) of targets that are images, None for the others; each
            stands in place of the image before its gradients.
        shared: stretch the attention maps of all layers as one, and the gradients of a target;
            by default each map on its own.
        cmap: lay the maps over the image in these colours, instead of masking it.
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
    first = _raw("attention", attention, 4, size)
    second = _raw("gradients", gradients, 5, size)
    batch, count = second.shape[:2]
    if batch != len(pictures) or first.shape[:2] != (batch, second.shape[2]):
        raise InputError(
            f"layers: attention {first.shape} and gradients {second.shape} of "
            f"{len(pictures)} images do not belong together."
        )
    titles = as_names("layers", names, count)
    numbers = as_scores("layers", scores, (batch, count))
    others = as_references("layers", references, count, size)
    colors = None if cmap is None else colormap(cmap)
    rows: list[list[Panel | None]] = []
    labels: list[str] = []

    def add(label: str, lead: Panel, picture: Array, planes: Array, title: str) -> None:
        shown = _drawn(picture, planes, shared, colors, title)
        parts = folded(shown)
        rows.extend([None if row else lead, *part] for row, part in enumerate(parts))
        labels.extend([label, *[""] * (len(rows) - len(labels) - 1)])

    for index, picture in enumerate(pictures):
        add("attention", Panel(picture, "image"), picture, first[index], "")
        for column, (title, other) in enumerate(zip(titles, others, strict=True)):
            note = "" if numbers is None else score_note(numbers[index, column])
            lead = Panel(picture if other is None else other, title, note)
            add("gradient", lead, picture, second[index, column], title)
    legend = Legend(MASK if colors is None else ramp(colors, ALPHA), "low to high")
    return grid(rows, labels=labels, legends=[legend], caption=caption)


def _raw(what: str, given: ArrayLike, dimensions: int, size: tuple[int, int]) -> Array:
    """Raw maps (..., h, w) -> (..., H, W)."""
    array = as_array("layers", what, given)
    if array.ndim != dimensions or 0 in array.shape:
        shape = {4: "(B, L, h, w)", 5: "(B, K, L, h, w)"}[dimensions]
        raise InputError(f"layers: expected {what} {shape}, got {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError(f"layers: {what} holds NaN or infinity.")
    large: Array = maps.upsample(torch.from_numpy(array), size, mode="bicubic", clamp=True).numpy()
    return large


def _drawn(
    picture: Array, planes: Array, shared: bool, colors: Colormap | None, title: str
) -> list[Panel]:
    """Maps (L, H, W) of one kind, one picture each."""
    tensor = torch.from_numpy(planes)
    flat = tensor.reshape(1, -1) if shared else tensor.flatten(1)
    shares = maps.normalize(flat[:, None]).reshape(planes.shape).numpy()
    panels = []
    for number, (plane, share) in enumerate(zip(planes, shares, strict=True)):
        masked = (
            picture * share[..., None] if colors is None else blend(picture, share, colors, ALPHA)
        )
        note = f"{short_number(plane.min())} to {short_number(plane.max())}"
        layer = f"layer {number}"
        if title:
            panels.append(Panel(masked, title, f"{layer}: {note}"))
        else:
            panels.append(Panel(masked, layer, note))
    return panels
