"""Many methods on many images at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from ..errors import InputError
from .arrays import ArrayLike, as_heat, as_images, as_names
from .blend import blend, check_alpha
from .grid import Legend, Panel, grid
from .style import ALPHA, HEAT, colormap


def contact_sheet(
    images: ArrayLike,
    columns: Mapping[str, ArrayLike],
    *,
    names: Sequence[str] | None = None,
    alpha: float = ALPHA,
    cmap: str | Colormap = HEAT,
    caption: str = "",
) -> Figure:
    """One row an image and its target, one column a method.

    Args:
        images: (N, 3, H, W), colours in [0, 1]; an image may come several times.
        columns: heading -> maps (N, 1, h, w) in [0, 1].
        names: of the N targets, left of their rows.
        alpha: opacity where a map is 1.
        cmap: colour map.
        caption: below the pictures.

    Returns:
        A figure.

    Raises:
        InputError: shapes or ranges that do not fit, no column.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> maps = {"Grad-CAM": torch.rand(2, 1, 4, 4)}
        >>> figure = visualization.contact_sheet(torch.rand(2, 3, 32, 32), maps, names=["a", "b"])
    """
    pictures = as_images("contact_sheet", images)
    if not columns:
        raise InputError("contact_sheet: expected at least one column of maps, got none.")
    maps = [as_heat("contact_sheet", heat, pictures, count=1) for heat in columns.values()]
    colors = colormap(cmap)
    check_alpha("contact_sheet", alpha)
    rows = [
        [Panel(picture), *(Panel(blend(picture, m[index, 0], colors, alpha)) for m in maps)]
        for index, picture in enumerate(pictures)
    ]
    return grid(
        rows,
        headers=["image", *columns],
        labels=[] if names is None else as_names("contact_sheet", names, len(pictures)),
        legends=[Legend(colors, "low", "high")],
        caption=caption,
    )
