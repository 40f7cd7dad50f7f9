"""A text, and what each of its words adds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from ..checks import check_interval
from ..errors import InputError
from .arrays import Array, ArrayLike, as_array, as_heat, as_images, as_names, as_notes
from .blend import blend, ramp
from .grid import Legend, Panel, Row, folded, grid
from .style import ALPHA, HEAT, NEGATIVE, POSITIVE, colormap


def words(
    images: ArrayLike,
    heatmap: ArrayLike,
    names: Sequence[str],
    norms: ArrayLike | Sequence[float],
    *,
    negative: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    labels: Sequence[str] = (),
    relative: bool = True,
    alpha: float = ALPHA,
    cmap: str | Colormap | None = None,
    caption: str = "",
) -> Figure:
    r"""The image, the map of the whole text, then one map per word with the word's norm.

    The norm :math:`n_w` is the length of what the text's encoding loses without the word. By
    default the map of each word is weighed with :math:`n_w / \max_v n_v`, so that "a" does not
    look as important as "horse".

    Args:
        images: (B, 3, H, W), colours in [0, 1].
        heatmap: (B, 1 + W, h, w) in [0, 1]: of the whole text, then of each word.
        names: the text, then the words.
        norms: (1 + W,), as in ``Target.norms``; the first is the text's and is not used. Or
            (B, 1 + W), where the rows are of different models.
        negative: maps like `heatmap` of what speaks against; a second row for each image.
        scores: (B, 1 + W); the cosine of the whole text is shown.
        labels: B of them, left of the rows, such as the model that each is of.
        relative: whether the maps of the words are weighed with their norms.
        alpha: opacity where a map is 1.
        cmap: colour map of `heatmap`; by default inferno, or orange beside `negative`.
        caption: below the pictures.

    Raises:
        InputError: shapes or ranges that do not fit, norms that are not positive.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> heatmap, names = torch.rand(1, 3, 4, 4), ["a horse", "a", "horse"]
        >>> figure = visualization.words(torch.rand(1, 3, 32, 32), heatmap, names, [1, 0.1, 0.9])
    """
    pictures = as_images("words", images)
    maps = as_heat("words", heatmap, pictures)
    titles = as_names("words", names, maps.shape[1])
    shape = (len(pictures), len(titles))
    lengths = _norms(norms, shape)
    cosines = as_notes("words", scores, shape)
    check_interval("words", "alpha", alpha, "[0, 1]")
    weights = lengths / lengths[:, 1:].max(1, keepdims=True) if relative else np.ones_like(lengths)
    weights[:, 0] = 1
    models = as_names("words, labels", labels or None, len(pictures))
    default = HEAT if negative is None else POSITIVE
    layers = [(maps, colormap(default if cmap is None else cmap), "")]
    if negative is not None:
        layers.append((as_heat("words", negative, pictures, len(titles)), NEGATIVE, "against: "))
    rows: list[Row] = []
    beside: dict[int, str] = {}
    for index, picture in enumerate(pictures):
        beside[len(rows)] = models[index]
        notes = [cosines[index][0], *(f"norm {length:.2f}" for length in lengths[index, 1:])]
        for values, colors, prefix in layers:
            weighed = weights[index, :, None, None] * values[index]
            shown = [
                Panel(blend(picture, value, colors, alpha), prefix + title, note)
                for value, title, note in zip(weighed, titles, notes, strict=True)
            ]
            rows += folded([Panel(picture, "image"), *shown])
    meanings = ["low to high"] if negative is None else ["for", "against"]
    legends = [
        Legend(ramp(colors, alpha), meaning)
        for (_, colors, _), meaning in zip(layers, meanings, strict=True)
    ]
    return grid(rows, labels=beside, legends=legends, caption=caption)


def _norms(norms: ArrayLike | Sequence[float], shape: tuple[int, int]) -> Array:
    lengths = as_array("words", "norms", norms)
    count = shape[1]
    fitting = lengths.shape in ((count,), shape) and count >= 2
    if not fitting or not (np.isfinite(lengths) & (lengths > 0)).all():
        raise InputError(
            f"words: expected {count} positive norms, of the whole text and of one word or more, "
            f"got {lengths.tolist()}."
        )
    return np.broadcast_to(lengths, shape)
