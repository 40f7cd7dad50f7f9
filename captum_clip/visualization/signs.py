"""What speaks for a target beside what speaks against it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from operator import itemgetter

from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from ..checks import check_interval
from .arrays import Array, ArrayLike, as_heat, as_images, as_names, as_notes, as_references
from .blend import blend, ramp
from .grid import Legend, Panel, grid, reference_header
from .overlay import note_of
from .style import ALPHA, NEGATIVE, POSITIVE, colormap


def signs(
    images: ArrayLike,
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    scores: ArrayLike | None = None,
    references: Sequence[ArrayLike | None] | None = None,
    labels: Sequence[str] = (),
    alpha: float = ALPHA,
    cmaps: tuple[str | Colormap, str | Colormap] = (POSITIVE, NEGATIVE),
    caption: str = "",
) -> Figure:
    """Positive beside negative saliency: one row per image (or model) and target.

    Both maps of a row should share one scale, so that a weak one looks weak: normalise them as one
    map, or divide both by the larger maximum. The peak of the weaker one is under its picture.

    Args:
        images: (B, 3, H, W), colours in [0, 1].
        positive: (B, K, h, w) in [0, 1], what speaks for each target.
        negative: (B, K, h, w) in [0, 1], what speaks against it.
        names: of the K targets, under the images of their rows.
        scores: (B, K), under the names of the images.
        references: K pictures (3, H, W) of targets that are images, None for the others; each
            stands at the end of its rows.
        labels: B of them, left of the rows, such as the model that each is of; the rows of one
            target then stand together.
        alpha: opacity where a map is 1.
        cmaps: of the positive and of the negative maps; orange and blue by default, which people
            with any kind of colour vision can tell apart.
        caption: below the pictures.

    Raises:
        InputError: shapes or ranges that do not fit, an unknown colour map.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> up, down = torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4)
        >>> figure = visualization.signs(torch.rand(1, 3, 32, 32), up, down, names=["a horse"])
    """
    pictures = as_images("signs", images)
    up = as_heat("signs", positive, pictures)
    batch, count = up.shape[:2]
    down = as_heat("signs", negative, pictures, count=count)
    colors = [colormap(cmap) for cmap in cmaps]
    check_interval("signs", "alpha", alpha, "[0, 1]")
    titles = as_names("signs", names, count)
    cosines = as_notes("signs", scores, (batch, count))
    targets = as_references("signs", references, count, pictures.shape[1:3])
    models = as_names("signs, labels", labels or None, batch)
    order = list(product(range(batch), range(count)))
    if labels:  # models side by side, target by target
        order.sort(key=itemgetter(1))
    rows: list[list[Panel]] = []
    for index, column in order:
        picture, target = pictures[index], targets[column]
        row = [Panel(picture, titles[column], cosines[index][column])]
        pair = (up[index, column], down[index, column])
        for heatmap, other, color in zip(pair, reversed(pair), colors, strict=True):
            row.append(Panel(blend(picture, heatmap, color, alpha), note=_peak(heatmap, other)))
        rows.append(row if target is None else [*row, Panel(target)])
    return grid(
        rows,
        headers=["image", "speaks for it", "speaks against it", *reference_header(targets)],
        labels={row: models[index] for row, (index, _) in enumerate(order)},
        legends=[
            Legend(ramp(color, alpha), label)
            for color, label in zip(colors, ("for", "against"), strict=True)
        ],
        caption=caption,
    )


def _peak(heatmap: Array, other: Array) -> str:
    """Why a picture looks empty: how high the map is, where the other sign's is higher."""
    share = float(heatmap.max()) / (float(other.max()) or 1)
    return note_of(heatmap) or (f"peak {share:.0%} of the other\u2019s" if share < 0.95 else "")
