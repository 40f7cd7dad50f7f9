"""What speaks for a target beside what speaks against it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from .arrays import ArrayLike, as_heat, as_images, as_labels, as_names, as_scores
from .blend import blend, check_alpha
from .grid import Legend, Panel, grid
from .letterbox import REFERENCE, as_references
from .overlay import note_of, score_note
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
    """Positive beside negative saliency: one row an image (or a model) and target.

    Both maps of a row should share one scale, so that a weak one looks weak: normalise them as one
    map, or divide both by the larger maximum.

    Args:
        images: (B, 3, H, W), colours in [0, 1].
        positive: (B, K, h, w) in [0, 1], what speaks for each target.
        negative: (B, K, h, w) in [0, 1], what speaks against it.
        names: of the K targets, under every picture of their rows.
        scores: (B, K), under the names of the images.
        references: K pictures (3, H, W) of targets that are images, None for the others; each
            stands at the end of its rows.
        labels: B of them, left of the rows, such as the model that each is of; the rows of one
            target then stand together.
        alpha: opacity where a map is 1.
        cmaps: of the positive and of the negative maps; orange and blue by default, which people
            with any kind of colour vision can tell apart.
        caption: below the pictures.

    Returns:
        A figure.

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
    count = up.shape[1]
    down = as_heat("signs", negative, pictures, count=count)
    colors = [colormap(cmap) for cmap in cmaps]
    check_alpha("signs", alpha)
    titles = as_names("signs", names, count)
    numbers = as_scores("signs", scores, up.shape[:2])
    others = as_references("signs", references, count, pictures.shape[1:3])
    marks = as_labels("signs", labels, len(pictures))
    order = list(product(range(len(pictures)), range(count)))
    if marks:  # models side by side, target by target
        order.sort(key=lambda place: place[1])
    rows = []
    for index, column in order:
        picture, title, other = pictures[index], titles[column], others[column]
        note = "" if numbers is None else score_note(numbers[index, column])
        row = [Panel(picture, title, note)]
        for heat, color in zip((up[index, column], down[index, column]), colors, strict=True):
            row.append(Panel(blend(picture, heat, color, alpha), title, note_of(heat)))
        rows.append(row if other is None else [*row, Panel(other, title)])
    last = [] if all(other is None for other in others) else [REFERENCE]
    return grid(
        rows,
        headers=["image", "speaks for it", "speaks against it", *last],
        labels=[marks[index] for index, _ in order] if marks else [],
        legends=[Legend(colors[0], "for"), Legend(colors[1], "against")],
        caption=caption,
    )
