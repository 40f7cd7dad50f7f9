"""Maps over the images that the model saw: of many targets, or of many methods at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from ..checks import check_interval, check_nonempty
from ..errors import InputError
from .arrays import Array, ArrayLike, as_heat, as_images, as_names, as_notes, as_references
from .blend import blend, ramp
from .grid import Legend, Panel, grid, reference_header
from .style import ALPHA, HEAT, colormap


def overlay(
    images: ArrayLike,
    heatmap: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    scores: ArrayLike | None = None,
    notes: Sequence[Sequence[str]] | None = None,
    labels: Sequence[str] = (),
    alpha: float = ALPHA,
    cmap: str | Colormap = HEAT,
    original: bool = True,
    caption: str = "",
) -> Figure:
    """Heat maps over images: one row per image (or model), one column per target or emotion.

    Args:
        images: (B, 3, H, W), colours in [0, 1].
        heatmap: (B, K, h, w) in [0, 1]; upsampled to (H, W) where it is coarser. Of these images,
            not of a crop: :meth:`captum_clip.Explanation.plot` lays that on the whole photo.
        names: of the K targets, under their pictures.
        scores: (B, K), under the names.
        notes: B times K short lines, after the scores.
        labels: of the B rows, left of them, such as the model that each is of.
        alpha: opacity where the heat is 1; where it is 0 the image shows through.
        cmap: colour map, by name or as it is.
        original: whether the image without a map comes first.
        caption: below the pictures.

    Returns:
        A figure; ``figure.savefig(path)`` writes it, :func:`save_figure` safely so.

    Raises:
        InputError: shapes, aspect ratios or ranges that do not fit, an unknown colour map.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> images, heatmap = torch.rand(1, 3, 32, 32), torch.rand(1, 2, 4, 4)
        >>> figure = visualization.overlay(images, heatmap, names=["a horse", "a dog"])
        >>> len(figure.axes)  # the image and two maps
        3
    """
    pictures = as_images("overlay", images)
    maps = as_heat("overlay", heatmap, pictures)
    colors = colormap(cmap)
    check_interval("overlay", "alpha", alpha, "[0, 1]")
    shape = maps.shape[:2]
    titles = as_names("overlay", names, shape[1])
    cosines = as_notes("overlay", scores, shape)
    remarks = [[""] * shape[1]] * shape[0] if notes is None else list(notes)
    if len(remarks) != shape[0]:
        raise InputError(f"overlay: expected notes for {shape[0]} images, got {len(remarks)}.")
    rows = []
    for picture, row_maps, row_cosines, given in zip(pictures, maps, cosines, remarks, strict=True):
        row = [Panel(picture, "image")] if original else []
        own = as_names("overlay, notes", given, shape[1])
        for value, title, cosine, remark in zip(row_maps, titles, row_cosines, own, strict=True):
            note = note_of(value, cosine, remark)
            row.append(Panel(blend(picture, value, colors, alpha), title, note))
        rows.append(row)
    return grid(
        rows,
        labels=dict(enumerate(as_names("overlay, labels", labels or None, len(rows)))),
        legends=[Legend(ramp(colors, alpha), "low to high")],
        caption=caption,
    )


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
    maps = [
        as_heat("contact_sheet", heatmap, pictures, count=1)[:, 0] for heatmap in columns.values()
    ]
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
        for heatmap, cosine in zip(row_maps, row_cosines, strict=True):
            row.append(Panel(blend(picture, heatmap, colors, alpha), note=note_of(heatmap, cosine)))
        rows.append(row if target is None else [*row, Panel(target)])
    return grid(
        rows,
        headers=["image", *columns, *reference_header(targets)],
        legends=[Legend(ramp(colors, alpha), "low to high")],
        caption=caption,
    )


def note_of(heatmap: Array, cosine: str = "", remark: str = "") -> str:
    """What stands under a map; a word where there is no heat at all: an answer, not a failure."""
    return ", ".join(filter(None, (cosine, "" if heatmap.any() else "no heat", remark)))
