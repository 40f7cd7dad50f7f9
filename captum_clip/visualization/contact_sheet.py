"""Many methods on many images at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from ..checks import check_interval, check_nonempty
from .arrays import ArrayLike, as_heat, as_images, as_names, as_notes, as_references
from .blend import blend, ramp
from .grid import Legend, Panel, grid, reference_header
from .overlay import note_of
from .style import ALPHA, HEAT, colormap


def contact_sheet(
    images: ArrayLike,
    columns: Mapping[str, ArrayLike],
    *,
    names: Sequence[str] | None = None,
    scores: ArrayLike | None = None,
    references: Sequence[ArrayLike | None] | None = None,
    alpha: float = ALPHA,
    cmap: str | Colormap = HEAT,
    caption: str = "",
) -> Figure:
    """Methods beside each other: one row per image and its target, one column per method.

    Args:
        images: (N, 3, H, W), colours in [0, 1]; an image may come several times.
        columns: heading -> maps (N, 1, h, w) in [0, 1].
        names: of the N targets, under the images.
        scores: (N, M), one per row and column, under the maps.
        references: N pictures (3, H, W) of targets that are images, None for the others; each
            stands at the end of its row.
        alpha: opacity where a map is 1.
        cmap: colour map.
        caption: below the pictures.

    Raises:
        InputError: shapes or ranges that do not fit, no column.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> maps = {"Grad-CAM": torch.rand(2, 1, 4, 4)}
        >>> figure = visualization.contact_sheet(torch.rand(2, 3, 32, 32), maps, names=["a", "b"])
    """
    pictures = as_images("contact_sheet", images)
    count = len(pictures)
    check_nonempty("contact_sheet", "column of maps", columns)
    maps = [as_heat("contact_sheet", heat, pictures, count=1)[:, 0] for heat in columns.values()]
    colors = colormap(cmap)
    check_interval("contact_sheet", "alpha", alpha, "[0, 1]")
    titles = as_names("contact_sheet", names, count)
    cosines = as_notes("contact_sheet", scores, (count, len(maps)))
    targets = as_references("contact_sheet", references, count, pictures.shape[1:3])
    rows = []
    for picture, title, row_cosines, target, *row_maps in zip(
        pictures, titles, cosines, targets, *maps, strict=True
    ):
        row = [Panel(picture, title)]
        for heat, cosine in zip(row_maps, row_cosines, strict=True):
            row.append(Panel(blend(picture, heat, colors, alpha), note=note_of(heat, cosine)))
        rows.append(row if target is None else [*row, Panel(target)])
    return grid(
        rows,
        headers=["image", *columns, *reference_header(targets)],
        legends=[Legend(ramp(colors, alpha), "low to high")],
        caption=caption,
    )
