"""Texts whose words are colored by what they add, next to the image."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from ..checks import check_interval, expect
from ..errors import InputError, public
from .arrays import ArrayLike, Batch, as_cosines, as_heatmaps, as_images
from .colors import ALPHA, HEAT, NEGATIVE, NOTE, POSITIVE, TEXT, blend, colormap, short_number
from .grid import page, wrap

DPI: Final = 150.0
_SIDE: Final = 1.6  # of an image, in inches
_WIDTH: Final = 4.4  # of a text, in inches
_LINE: Final = 0.42  # between lines of words, in inches
_MARGIN: Final = 0.1
_ROW: Final = _SIDE + 0.45
_LEAST: Final = 0.005  # of the largest value, to be written
_WORD: Final = {**TEXT, "fontsize": 10}
_VALUE: Final = {**NOTE, "fontsize": 6}


@public("sentences")
def sentences(
    images: Batch,
    texts: Sequence[Sequence[tuple[str, float]]],
    *,
    scores: ArrayLike | None = None,
    heatmap: Batch | None = None,
    alpha: float = ALPHA,
    cmap: str | Colormap = HEAT,
    caption: str = "",
) -> Figure:
    """One row per text: the image, or its map, and next to it the words in their colors.

    Orange words support the image and blue ones contradict it, on a scale of its own for each
    text; the value stands under its word.

    Arguments are as in :mod:`captum_clip.visualization`, of one image and K `texts`, each a list of
    (word, value), such as ``Explanation.text_maps``; the map of a text is drawn over its image.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> texts = [[("a", 0.01), ("horse", 0.2), ("and", 0.0), ("a", 0.0), ("dog", -0.1)]]
        >>> figure = visualization.sentences(torch.rand(1, 3, 32, 32), texts)
        >>> len(figure.axes)  # the image and the words
        2
    """
    pictures = as_images(images)
    fits = len(pictures) == 1 and texts and all(texts)
    expect(fits, "one image and texts with words", (len(pictures), texts))
    if not np.isfinite([value for words in texts for _, value in words]).all():
        raise InputError("the values of words hold NaN or infinity.")
    check_interval("alpha", alpha, "[0, 1]")
    [cosines] = as_cosines(scores, (1, len(texts)))
    rows, colors = pictures * len(texts), colormap(cmap)
    if heatmap is not None:
        [maps] = as_heatmaps(heatmap, pictures, len(texts))
        rows = [blend(pictures[0], values, colors, alpha) for values in maps]
    figure = page(DPI)
    width = _SIDE + _WIDTH + 3 * _MARGIN
    below = figure.text(0, 0, caption, va="bottom", ha="left", **NOTE)
    wrap(below, width - 2 * _MARGIN)
    height = len(texts) * _ROW + 0.3 + 0.12 * below.get_text().count("\n")
    figure.set_size_inches(width, height)
    below.set_position((_MARGIN / width, 0.08 / height))
    for index, (picture, cosine, words) in enumerate(zip(rows, cosines, texts, strict=True)):
        bottom = height - index * _ROW - _MARGIN - _SIDE
        left, right = (
            figure.add_axes((x / width, bottom / height, wide / width, _SIDE / height))
            for x, wide in ((_MARGIN, _SIDE), (_SIDE + 2 * _MARGIN, _WIDTH))
        )
        left.imshow(picture)
        left.set_axis_off()
        left.text(0.5, -0.03, cosine, va="top", ha="center", transform=left.transAxes, **NOTE)
        _draw_words(right, words)
    return figure


def colored_words(words: Sequence[tuple[str, float]]) -> list[tuple[tuple[float, ...], str]]:
    """The color (r, g, b) behind each word of a text, and its value as it is written."""
    largest = max(abs(value) for _, value in words) or 1.0
    looks = []
    for _, value in words:
        share = abs(value) / largest
        tint = (POSITIVE if value >= 0 else NEGATIVE)(0.45)[:3]
        # a value that rounding leaves nothing of would be longer than its word
        number = short_number(value) if share >= _LEAST else "0"
        looks.append((tuple(1 - share * (1 - channel) for channel in tint), number))
    return looks


def _draw_words(axes: Axes, words: Sequence[tuple[str, float]]) -> None:
    """The words from left to right, in as many lines as they need, in inches from the top left."""
    # in inches from the top left, so that lines go down as they are written
    axes.set(xlim=(0, _WIDTH), ylim=(_SIDE, 0))
    axes.set_axis_off()
    x, y = 0.0, 0.25
    for (word, _), (color, number) in zip(words, colored_words(words), strict=True):
        box = {"boxstyle": "round,pad=0.2", "linewidth": 0, "facecolor": color}
        drawn = axes.text(0, 0, word, va="center", ha="center", bbox=box, **_WORD)
        note = axes.text(0, 0, number, va="top", ha="center", **_VALUE)
        # extents are in pixels of the page, whose resolution is therefore settled before
        width = max(text.get_window_extent().width for text in (drawn, note)) / DPI + 0.13
        if x > 0 and x + width > _WIDTH:
            x, y = 0.0, y + _LINE
        drawn.set_position((x + width / 2, y))
        note.set_position((x + width / 2, y + 0.14))
        x += width
