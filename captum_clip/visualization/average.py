"""Mean maps of whole data sets, side by side on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from ..checks import check_nonempty
from ..errors import InputError
from .arrays import Array, ArrayLike, as_array, as_names, enlarged
from .grid import Legend, Panel, Row, folded, grid
from .style import HEAT, colormap, short_number

_SIDE = 224  # pixels of a picture


def average(
    rows: Mapping[str, ArrayLike],
    *,
    names: Sequence[str] | None = None,
    notes: Mapping[str, Sequence[str]] | None = None,
    scale: tuple[float, float] | None = None,
    cmap: str | Colormap = HEAT,
    caption: str = "",
) -> Figure:
    """Mean maps: one row per model or method, one column per target or emotion, all on one scale.

    The darkest colour is the smallest value of all maps and the lightest the largest, so that
    pictures can be compared and weak structure is seen; the legend says both.

    Args:
        rows: label -> maps (K, h, w) of any finite values; grids may differ from row to row.
        names: of the K targets, under the pictures; more than eight go on in a second row.
        notes: label -> K short lines, under the names.
        scale: smallest and largest value, where several figures are to be compared.
        cmap: colour map; should be perceptually uniform.
        caption: below the pictures.

    Raises:
        InputError: no maps, shapes that do not fit, NaN or infinity, an unknown colour map.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> means = {"ViT": torch.rand(2, 7, 7), "ResNet": torch.rand(2, 9, 9)}
        >>> figure = visualization.average(means, names=["awe", "fear"])
        >>> len(figure.axes)  # four maps
        4
    """
    check_nonempty("average", "row of maps", rows)
    means = {label: _as_means(label, given) for label, given in rows.items()}
    counts = {len(given) for given in means.values()}
    if len(counts) > 1:
        raise InputError(f"average: expected as many maps in every row, got {sorted(counts)}.")
    [count] = counts
    titles = as_names("average", names, count)
    colors = colormap(cmap)
    low, high = scale or (
        min(float(given.min()) for given in means.values()),
        max(float(given.max()) for given in means.values()),
    )
    panels: list[Row] = []
    labels: dict[int, str] = {}
    for label, given in means.items():
        lines = as_names("average", None if notes is None else notes[label], count)
        shares = (given - low) / (high - low) if high > low else np.zeros_like(given)
        pixels = np.asarray(colors(shares)[..., :3], dtype=np.float32)
        labels[len(panels)] = label
        panels += folded([Panel(*parts) for parts in zip(pixels, titles, lines, strict=True)])
    legend = Legend(colors, f"{short_number(low)} to {short_number(high)}")
    return grid(panels, labels=labels, legends=[legend], caption=caption)


def _as_means(label: str, given: ArrayLike) -> Array:
    """Maps (K, h, w) -> (K, 224, 224)."""
    array = as_array("average", f"maps (K, h, w) for {label!r}", given)
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(
            f"average: expected maps of shape (K, h, w) for {label!r}, got {array.shape}."
        )
    if not np.isfinite(array).all():
        raise InputError(f"average: the maps of {label!r} hold NaN or infinity.")
    return enlarged(array, (_SIDE, _SIDE))
