"""What speaks for a target beside what speaks against it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from .arrays import ArrayLike, as_heat, as_images, as_names, as_scores
from .blend import blend, check_alpha
from .grid import Legend, Panel, grid
from .overlay import note_of, score_note
from .style import ALPHA, NEGATIVE, POSITIVE, colormap


def signs(
    images: ArrayLike,
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    scores: ArrayLike | None = None,
    alpha: float = ALPHA,
    cmaps: tuple[str | Colormap, str | Colormap] = (POSITIVE, NEGATIVE),
    caption: str = "",
) -> Figure:
    """Positive beside negative saliency: one row an image and target.

    Both maps of a row should share one scale, so that a weak one looks weak: normalise them as one
    map, or divide both by the larger maximum.

    Args:
        images: (B, 3, H, W), colours in [0, 1].
        positive: (B, K, h, w) in [0, 1], what speaks for each target.
        negative: (B, K, h, w) in [0, 1], what speaks against it.
        names: of the K targets, over the images.
        scores: (B, K), under the names.
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
    down = as_heat("signs", negative, pictures, count=up.shape[1])
    colors = [colormap(cmap) for cmap in cmaps]
    check_alpha("signs", alpha)
    titles = as_names("signs", names, up.shape[1])
    numbers = as_scores("signs", scores, up.shape[:2])
    rows = []
    for index, picture in enumerate(pictures):
        for column, title in enumerate(titles):
            note = "" if numbers is None else score_note(numbers[index, column])
            pair = (up[index, column], down[index, column])
            rows.append(
                [
                    Panel(picture, title, note),
                    Panel(
                        blend(picture, pair[0], colors[0], alpha), "speaks for it", note_of(pair[0])
                    ),
                    Panel(
                        blend(picture, pair[1], colors[1], alpha),
                        "speaks against it",
                        note_of(pair[1]),
                    ),
                ]
            )
    legends = [Legend(colors[0], "", "for"), Legend(colors[1], "", "against")]
    return grid(rows, legends=legends, caption=caption)
