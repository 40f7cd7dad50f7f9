"""Curves, colored words, matching regions, and strips of maps of a model's parts."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, cycle
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from .. import maps
from ..checks import check_nonempty, expect
from ..errors import InputError, public
from ..look import current_look, draws
from .arrays import (
    ArrayLike,
    Batch,
    as_array,
    as_cosines,
    as_heatmaps,
    as_images,
    as_values,
    enlarged,
)
from .colors import (
    ALPHA,
    NEGATIVE,
    NOTE_COLOR,
    POSITIVE,
    TEXT_COLOR,
    Array,
    lettering,
    magnified,
    ramp,
    short_number,
    sign_colors,
    signed_layers,
    small_print,
    soften,
)
from .fonts import make_legible
from .grid import Legend, Panel, Row, at_resolution, fit, folded, grid, page, paint, wrap

Curve = tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]
"""Fractions, mean, lower and upper end, each (F,)."""
Series = Mapping[str, Curve]

_PLOT_WIDTH: Final = 3.1  # of a panel of curves, in inches
_LEAST_PLOT_HEIGHT: Final = 2.7  # so that a short legend does not make a panel flat
_LABEL_WIDTH: Final = 2.1  # of the widest label of a legend, in inches
_CURVES_DPI: Final = 200
_BAND_OPACITY: Final = (0.03, 0.14)  # of the bands where they are many, and where they are few
# 6 colors and 5 dashes share no factor, so 30 lines pass before a pair of them comes again.
_LINES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""The palette of Okabe and Ito, for any kind of color vision, without its yellow, which is pale."""
_GRAYS: Final = ("#7a7a7a", "#a8a8a8")
_DASHES: Final[tuple[Any, ...]] = (
    "solid",
    (0, (5, 1.5)),
    (0, (1, 1.2)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (3, 1.2, 1, 1.2, 1, 1.2)),
)
_MATCHES: Final = ("blue", "orange", "green", "red")  # one color for each match
_LEAST_CELL: Final = 0.5
"""A cell belongs to a match from this part of the match's largest share on."""
_LEAST_MATCH: Final = 0.25
"""A match is shown if its largest share is at least this part of the strongest one's."""
_WORDS_DPI: Final = 150.0
# Lengths in inches.
_PICTURE_SIDE: Final = 1.6  # of the image next to a text
_SENTENCE_WIDTH: Final = 4.4
_LINE_DISTANCE: Final = 0.42  # of two lines of words
_MARGIN: Final = 0.1
# Type sizes in points.
_WORD_SIZE: Final = 10.0
_VALUE_SIZE: Final = 6.0
_LEAST_WRITTEN: Final = 0.005
"""A value is written as 0 below this part of the largest one."""


@public("curves")
def curves(
    series: Series,
    other: Series | None = None,
    *,
    headers: Sequence[str] = (),
    title: str = "",
    xlabel: str = "removed",
    ylabel: str = "score",
    reference: str | None = None,
    baselines: Collection[str] = (),
    caption: str = "",
) -> Figure:
    """Draw curves with light bands and a legend; two panels share their vertical axis.

    Each label has one color and one kind of dash, the same in both panels; thirty methods and ten
    baselines are drawn before a pair of them comes again.

    Args:
        series: label -> (fractions, mean, low, high), each (F,). NaN in `low` and `high` leaves out
            the band.
        other: the curves of a second panel, on the right.
        headers: one over each panel.
        title: over the figure.
        xlabel: below each panel; fractions are written in per cent.
        ylabel: left of the first panel.
        reference: label of the line that is black and thick.
        baselines: labels of the lines that are gray and thin, last in the legend.
        caption: below the figure, in gray.

    Raises:
        InputError: no curve in a panel.

    Example:
        >>> from captum_clip.visualization.charts import curves
        >>> most = {"ours": ([0, 0.5, 1], [0.9, 0.4, 0.1], [0.8, 0.3, 0.0], [1.0, 0.5, 0.2])}
        >>> least = {"ours": ([0, 0.5, 1], [0.9, 0.8, 0.1], [0.8, 0.7, 0.0], [1.0, 0.9, 0.2])}
        >>> figure = curves(most, least, ylabel="top-1 accuracy")
        >>> len(figure.axes)
        2
    """
    panels = [series] if other is None else [series, other]
    for panel in panels:
        check_nonempty("curve in every panel", panel)
    labels = list(dict.fromkeys(chain(*panels)))
    pens = _pens(labels, reference, baselines)
    width = len(panels) * (_PLOT_WIDTH + 0.4) + _LABEL_WIDTH

    figure = page(_CURVES_DPI)
    wrap(figure.suptitle(title, x=0.01, ha="left", **lettering()), width)
    wrap(figure.supxlabel(caption, x=0.01, ha="left", **small_print()), width)
    plots = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    headers = headers or [""] * len(panels)
    for axes, panel, header in zip(plots, panels, headers, strict=True):
        _draw_curves(axes, panel, pens)
        wrap(axes.set_title(header, loc="left", **lettering()), _PLOT_WIDTH)
        axes.set_xlabel(xlabel, **lettering())
    plots[0].set_ylabel(ylabel, **lettering())
    lines = [Line2D([], [], label=label, **pen) for label, pen in pens.items()]
    legend = plots[-1].legend(
        handles=lines,
        loc="upper left",
        bbox_to_anchor=(1.05, 1),
        borderaxespad=0,
        frameon=False,
        prop={"size": small_print()["fontsize"]},
        labelcolor=TEXT_COLOR,
        handlelength=4,
        labelspacing=0.8,
    )
    for text in legend.get_texts():
        # A label may hold dollar signs that are no formula, and a legend has no option for that.
        text.set_parse_math(False)
        wrap(text, _LABEL_WIDTH)
    # A panel is at least as high as the legend next to it.
    legend_height = legend.get_window_extent().height / _CURVES_DPI
    fit(figure, (_PLOT_WIDTH, max(_LEAST_PLOT_HEIGHT, legend_height)), (0.1, 0.1))
    return figure


def _pens(
    labels: Sequence[str], reference: str | None, baselines: Collection[str]
) -> dict[str, dict[str, Any]]:
    """How the line of each label is drawn, in the order of the legend."""
    pens: dict[str, dict[str, Any]] = {}

    # Lines of a higher layer hide those of a lower one where they cross.
    def add(group: Sequence[str], colors: Sequence[str], width: float, layer: int) -> None:
        for label, color, dash in zip(group, cycle(colors), cycle(_DASHES), strict=False):
            pens[label] = {"color": color, "linestyle": dash, "linewidth": width, "zorder": layer}

    if reference is not None:
        add([reference], [TEXT_COLOR], 2.0, 4)
    others = [label for label in labels if label != reference]
    add([label for label in others if label not in baselines], _LINES, 1.3, 3)
    add([label for label in others if label in baselines], _GRAYS, 1.0, 2)
    return pens


def _draw_curves(axes: Axes, panel: Series, pens: Mapping[str, Mapping[str, Any]]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(NOTE_COLOR)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    label_size = small_print()["fontsize"]
    axes.tick_params(labelsize=label_size, labelcolor=TEXT_COLOR, color=NOTE_COLOR)
    opacity = float(np.clip(1 / len(pens), *_BAND_OPACITY))
    for label, (fractions, mean, low, high) in panel.items():
        pen = pens[label]
        # A band lies below the lines of all methods, so it hides none of them.
        band_layer = pen["zorder"] - 2
        axes.fill_between(
            fractions, low, high, linewidth=0, color=pen["color"], alpha=opacity, zorder=band_layer
        )
        axes.plot(fractions, mean, label=label, **pen)


@public("matches")
@draws
def matches(
    images: Batch,
    references: Batch,
    shares: ArrayLike,
    *,
    scores: ArrayLike | None = None,
    caption: str = "",
    **_: Any,
) -> Figure:
    """Draw the four strongest matches of two images, in one row per pair of images.

    A match has one color on both images. It surrounds the pair of cells with the largest share: on
    either image it has the connected cells whose share with the other image's cell is half as large
    or more. The next match is found among the cells that belong to none yet, down to a quarter of
    the strongest. All colors are on one scale, so a weaker match is paler. The largest share of
    each match is written below. These are the strongest pairs, whether or not both images show the
    same there.

    Args:
        images: (B, 3, H, W), colors in [0, 1].
        references: the image that each is compared with, (B, 3, H, W).
        shares: (B, h', w', h, w), of each cell of the reference with each cell of the image; a
            share below zero is no match.
        scores: cosines (B,), written under each image.
        caption: below the figure.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> images, shares = torch.rand(2, 3, 32, 32), torch.rand(1, 4, 4, 4, 4)
        >>> figure = visualization.matches(images[:1], images[1:], shares)
    """
    pictures, others = as_images(images), as_images(references)
    others = as_values("references", others, len(pictures))
    count = len(pictures)
    share_arrays = as_array("shares", shares, (count, "h'", "w'", "h", "w"))
    if scores is not None:
        scores = as_array("scores", scores, (count,))[:, None]
    cosines = as_cosines(scores, (count, 1))
    rows = []
    for image, other, array, [cosine] in zip(pictures, others, share_arrays, cosines, strict=True):
        on_other: list[Array] = []
        on_image: list[Array] = []
        peaks = []
        # The colors end the search, so there are at most as many matches.
        found = zip(_MATCHES, _strongest_matches(array), strict=False)
        for color, (of_other, of_image) in found:
            on_other.append(of_other)
            on_image.append(of_image)
            # The strongest pair of cells is in both, so either has the largest share.
            peaks.append(f"{color} {of_image.max():.3f}")
        note = "shares: " + ", ".join(peaks)
        if not peaks:
            note = "no cells match each other"
        left = Panel(_painted(image, on_image), "image", cosine)
        right = Panel(_painted(other, on_other), "reference", note)
        rows.append([left, right])
    return grid(rows, caption=caption)


def _strongest_matches(shares: Array) -> Iterator[tuple[Array, Array]]:
    """Yield the shares of each match: of the reference's cells (h', w'), of the image's (h, w)."""
    # The shares of cells that belong to no match yet; all others become zero.
    free = shares.clip(0)
    least = _LEAST_MATCH * free.max()
    while free.max() > 0 and free.max() >= least:
        row, column, y, x = np.unravel_index(free.argmax(), free.shape)
        on_other = _connected(free[:, :, y, x], row, column)
        on_image = _connected(free[row, column], y, x)
        yield on_other, on_image
        # The cells of a match are taken on both images, so no two matches have one in common.
        free = free * (on_other == 0)[..., None, None] * (on_image == 0)


def _connected(values: Array, row: np.intp, column: np.intp) -> Array:
    """Keep the values (h, w) of the connected cells around one that are half as large or more."""
    from scipy import ndimage

    labels, _ = ndimage.label(values >= _LEAST_CELL * values[row, column])
    return np.asarray(values * (labels == labels[row, column]))


def _painted(image: Array, regions: list[Array]) -> Array:
    """Paint each region in its color over a softened image, the first region the strongest."""
    drawn = soften(image)
    height, width = image.shape[:2]
    for region, color in zip(regions, _MATCHES, strict=False):
        # The first region has the largest share of all, and that is above zero.
        relative = torch.from_numpy(region / regions[0].max())
        large = maps.upsample(relative, (height, width)).clamp(max=1)
        opacity = ALPHA * large.numpy()[..., None]
        mixed = (1 - opacity) * drawn + opacity * np.array(to_rgb(f"tab:{color}"))
        drawn = np.asarray(mixed, dtype=np.float32)
    return drawn.clip(0, 1)


@public("sentences")
@draws
def sentences(
    images: Batch,
    texts: Sequence[Sequence[tuple[str, float]]],
    *,
    scores: ArrayLike | None = None,
    heatmap: Batch | None = None,
    caption: str = "",
    **_: Any,
) -> Figure:
    """Draw one row per text: the image or its map, and next to it the words in their colors.

    Orange words support the image and blue ones contradict it. Each text has its own scale, and the
    value stands under its word.

    Arguments are as in :mod:`captum_clip.visualization`, of one image and K `texts`. Each text is a
    list of (word, value), such as ``Explanation.text_maps`` has them; its map is drawn over the
    image.

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
    values = [value for words in texts for _, value in words]
    if not np.isfinite(values).all():
        raise InputError("the values of words hold NaN or infinity.")
    [image] = pictures
    [cosines] = as_cosines(scores, (1, len(texts)))
    [colors] = sign_colors("positive")
    panels = [Panel(image)] * len(texts)
    if heatmap is not None:
        [text_maps] = as_heatmaps(heatmap, pictures, len(texts))
        panels = [Panel(image, layers=[(text_map, colors)]) for text_map in text_maps]

    look = current_look.get()
    figure = page(_WORDS_DPI)
    # Lengths that depend on the size of letters grow with it.
    magnification = magnified()
    # The margins are left of the image, between it and the text, and right of that.
    width = look.inches or _PICTURE_SIDE + _SENTENCE_WIDTH + 3 * _MARGIN
    text_width = width - _PICTURE_SIDE - 3 * _MARGIN
    least_width = 2 * _PICTURE_SIDE + 3 * _MARGIN
    expect(text_width > _PICTURE_SIDE, f"a width above {least_width:.1f} inches", width)
    if not look.titles:
        caption = ""
        cosines = [""] * len(texts)
    below = figure.text(0, 0, caption, va="bottom", ha="left", **small_print())
    wrap(below, width - 2 * _MARGIN)
    # A row has room for the cosine under its image.
    row_height = _PICTURE_SIDE + 0.45 * magnification
    caption_height = 0.3 + 0.12 * magnification * below.get_text().count("\n")
    height = len(texts) * row_height + caption_height
    figure.set_size_inches(width, height)
    below.set_position((_MARGIN / width, 0.08 / height))

    def add_axes(x: float, y: float, axes_width: float) -> Axes:
        # matplotlib takes positions and sizes in shares of the figure.
        position = (x / width, y / height, axes_width / width, _PICTURE_SIDE / height)
        return figure.add_axes(position)

    for index, (panel, cosine, words) in enumerate(zip(panels, cosines, texts, strict=True)):
        bottom = height - index * row_height - _MARGIN - _PICTURE_SIDE
        left = add_axes(_MARGIN, bottom, _PICTURE_SIDE)
        right = add_axes(_PICTURE_SIDE + 2 * _MARGIN, bottom, text_width)
        paint(left, panel)
        left.text(
            0.5, -0.03, cosine, va="top", ha="center", transform=left.transAxes, **small_print()
        )
        _draw_words(right, words, text_width, magnification)
    return at_resolution(figure)


def colored_words(words: Sequence[tuple[str, float]]) -> list[tuple[tuple[float, ...], str]]:
    """Return the color (r, g, b) behind each word of a text, and its value as it is written."""
    largest = max(abs(value) for _, value in words) or 1.0
    colored = []
    for _, value in words:
        share = abs(value) / largest
        cmap = POSITIVE if value >= 0 else NEGATIVE
        # The weaker a word, the more white there is in its color.
        color = tuple(1 - share * (1 - channel) for channel in cmap(0.45)[:3])
        # The digits of a value close to zero would be wider than its word.
        number = short_number(value) if share >= _LEAST_WRITTEN else "0"
        colored.append((color, number))
    return colored


def _draw_words(
    axes: Axes, words: Sequence[tuple[str, float]], text_width: float, magnification: float
) -> None:
    """Write words from left to right in as many lines as they need, in inches from the top left."""
    axes.set(xlim=(0, text_width), ylim=(_PICTURE_SIDE, 0))
    axes.set_axis_off()
    x = 0.0
    y = 0.25 * magnification
    for (word, _), (color, number) in zip(words, colored_words(words), strict=True):
        box = {"boxstyle": "round,pad=0.2", "linewidth": 0, "facecolor": color}
        drawn = axes.text(0, 0, word, va="center", ha="center", bbox=box, **lettering(_WORD_SIZE))
        make_legible(drawn)
        note = axes.text(0, 0, number, va="top", ha="center", **small_print(_VALUE_SIZE))
        # Extents are in pixels of the page, which keeps this resolution until all words are set.
        pixels = max(drawn.get_window_extent().width, note.get_window_extent().width)
        width = pixels / _WORDS_DPI + 0.13
        if x > 0 and x + width > text_width:
            x = 0.0
            y += _LINE_DISTANCE * magnification
        drawn.set_position((x + width / 2, y))
        note.set_position((x + width / 2, y + 0.14 * magnification))
        x += width


def strip(
    image: Array,
    raw: Tensor,
    lead: Panel,
    titles: Sequence[str],
    *,
    notes: Sequence[str],
    shared: bool = False,
    top: float | None = None,
) -> list[Row]:
    """Draw raw maps (L, h, w) over one image (H, W, 3), such as those of heads, after a lead.

    A map is orange above zero and blue below. Its scale ends at its largest absolute value, or with
    `shared` at the largest value of all maps. A `top`, given here or by the look, sets it.
    """
    large = enlarged(raw.float().cpu().numpy(), image.shape[:2])
    largest = np.abs(large).max(axis=None if shared else (-2, -1), keepdims=True)
    top = top or current_look.get().top
    if top:
        largest[:] = top
    # A map of zeros is not divided by its largest value, and stays zero.
    signed = (large / np.where(largest > 0, largest, 1)).clip(-1, 1)  # (L, H, W)
    panels = []
    for title, note, signed_map in zip(titles, notes, signed, strict=True):
        panels.append(Panel(image, title, note, layers=signed_layers(signed_map)))
    return folded(panels, lead)


def strip_legends(above: str, below: str) -> list[Legend]:
    """Return the legends of signed maps: the meaning `above` zero, and the one `below`."""
    positive, negative = sign_colors("positive", "negative")
    return [Legend(ramp(positive), above), Legend(ramp(negative), below)]
