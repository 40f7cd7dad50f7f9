"""Figures that are no table of maps: curves, colored words, matching regions, strips of parts."""

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
from ..checks import check_nonempty, current_look, draws, expect
from ..errors import InputError, public
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
from .grid import Legend, Panel, Row, at_resolution, fit, folded, grid, page, paint, wrap

Curve = tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]
"""Fractions, mean, lower and upper end, each (F,)."""
Series = Mapping[str, Curve]

_PANEL = (3.1, 2.7)  # of curves, in inches; taller where the legend is
_LABEL = 2.1  # widest label of a legend, in inches
_DPI = 200
_BAND = (0.03, 0.14)  # opacity, of many bands and of few
# 6 colors and 5 dashes share no factor, so that 30 lines pass before a pair comes again
_LINES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's, told apart with any kind of color vision; without their yellow, too pale."""
_GRAYS: Final = ("#7a7a7a", "#a8a8a8")
_DASHES: Final[tuple[Any, ...]] = (
    "solid",
    (0, (5, 1.5)),
    (0, (1, 1.2)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (3, 1.2, 1, 1.2, 1, 1.2)),
)
_MATCHES: Final = ("blue", "orange", "green", "red")  # of as many matches
_HALF: Final = 0.5  # of a match's largest share, to belong to it
_QUARTER: Final = 0.25  # of the strongest match, to be shown
_WORDS_DPI: Final = 150.0
_PICTURE: Final = 1.6  # side of the image next to a text, in inches
_SENTENCE: Final = 4.4  # width of a text, in inches
_LINE: Final = 0.42  # between lines of words, in inches
_MARGIN: Final = 0.1
_LEAST: Final = 0.005  # of the largest value, to be written
_WORD: Final = 10.0  # points
_VALUE: Final = 6.0


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
    """Curves with light bands and a legend next to them; two panels share their vertical axis.

    Each label has one color and one kind of dash, the same in both panels; thirty methods and ten
    baselines are drawn before a pair of them comes again.

    Args:
        series: label -> (fractions, mean, low, high), each (F,); NaN in `low` and `high` leaves out
            the band.
        other: the same for a second panel, on the right.
        headers: one over each panel.
        title: over all.
        xlabel: below each panel; fractions are written in per cent.
        ylabel: left of the first panel.
        reference: label of the line that is black and thick.
        baselines: labels of the lines that are gray and thin, last in the legend.
        caption: below, in gray.

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
    pens = _pens(list(dict.fromkeys(chain(*panels))), reference, baselines)
    width = len(panels) * (_PANEL[0] + 0.4) + _LABEL

    figure = page(_DPI)
    wrap(figure.suptitle(title, x=0.01, ha="left", **lettering()), width)
    wrap(figure.supxlabel(caption, x=0.01, ha="left", **small_print()), width)
    plots = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel, head in zip(plots, panels, headers or [""] * len(panels), strict=True):
        _draw_curves(axes, panel, pens)
        wrap(axes.set_title(head, loc="left", **lettering()), _PANEL[0])
        axes.set_xlabel(xlabel, **lettering())
    plots[0].set_ylabel(ylabel, **lettering())
    legend = plots[-1].legend(
        handles=[Line2D([], [], label=label, **pen) for label, pen in pens.items()],
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
        # a legend takes no such keyword, and names may hold dollar signs
        text.set_parse_math(False)
        wrap(text, _LABEL)
    height = max(_PANEL[1], legend.get_window_extent().height / _DPI)
    fit(figure, (_PANEL[0], height), (0.1, 0.1))
    return figure


def _pens(
    labels: Sequence[str], reference: str | None, baselines: Collection[str]
) -> dict[str, dict[str, Any]]:
    """The pen of each label's line, in the legend's order."""
    first = [] if reference is None else [reference]
    gray = [label for label in labels if label in baselines and label not in first]
    usual = [label for label in labels if label not in (*first, *gray)]
    groups = ((first, (TEXT_COLOR,), 2.0, 4), (usual, _LINES, 1.3, 3), (gray, _GRAYS, 1.0, 2))
    return {
        label: {"color": color, "linestyle": dash, "linewidth": width, "zorder": layer}
        for group, colors, width, layer in groups
        for label, color, dash in zip(group, cycle(colors), cycle(_DASHES), strict=False)
    }


def _draw_curves(axes: Axes, panel: Series, pens: Mapping[str, Mapping[str, Any]]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(NOTE_COLOR)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    look: Any = {"labelcolor": TEXT_COLOR, "color": NOTE_COLOR}
    axes.tick_params(labelsize=small_print()["fontsize"], **look)
    opacity = float(np.clip(1 / len(pens), *_BAND))
    for label, (fractions, mean, low, high) in panel.items():
        pen = pens[label]
        band = {"color": pen["color"], "alpha": opacity, "zorder": pen["zorder"] - 2}
        axes.fill_between(fractions, low, high, linewidth=0, **band)
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
    """The four strongest matches of two images: one row a pair, each in one color on both.

    A match is around the pair of cells with the largest share: on either image the connected cells
    whose share with the other's cell is half as large or more. The next one is sought among the
    cells that belong to none yet, down to a quarter of the strongest. All colors are on one scale,
    so a weaker match is paler, and the largest share of each is written below. These are the
    strongest pairs, whether or not both images show the same there.

    Args:
        images: (B, 3, H, W), colors in [0, 1].
        references: what each is compared with, (B, 3, H, W).
        shares: (B, h', w', h, w), of each cell of the reference with each of the image; those
            below zero match nothing.
        scores: cosines (B,), under each image.
        caption: below all.

    Example:
        >>> import torch
        >>> from captum_clip import visualization
        >>> images, shares = torch.rand(2, 3, 32, 32), torch.rand(1, 4, 4, 4, 4)
        >>> figure = visualization.matches(images[:1], images[1:], shares)
    """
    pictures, others = as_images(images), as_images(references)
    others = as_values("references", others, len(pictures))
    each = as_array("shares", shares, (len(pictures), "h'", "w'", "h", "w"))
    cosines = None if scores is None else as_array("scores", scores, (len(each),))[..., None]
    rows = []
    for image, other, values, [note] in zip(
        pictures, others, each, as_cosines(cosines, (len(each), 1)), strict=True
    ):
        pairs = list(_strongest_matches(values, len(_MATCHES)))
        peaks = [f"{color} {on.max():.3f}" for color, (_, on) in zip(_MATCHES, pairs, strict=False)]
        listed = f"shares: {', '.join(peaks)}" if peaks else "no cells match each other"
        left = Panel(_painted(image, [on for _, on in pairs]), "image", note)
        rows.append([left, Panel(_painted(other, [on for on, _ in pairs]), "reference", listed)])
    return grid(rows, caption=caption)


def _strongest_matches(shares: Array, count: int) -> Iterator[tuple[Array, Array]]:
    """Yield the shares of each match: of the reference's cells (h', w'), of the image's (h, w)."""
    left, least = shares.clip(0), max(_QUARTER * shares.max(), 0)
    for _ in range(count):
        row, column, y, x = np.unravel_index(left.argmax(), left.shape)
        if left[row, column, y, x] <= 0 or left[row, column, y, x] < least:
            return
        on_other = _connected(left[:, :, y, x], row, column)
        on_image = _connected(left[row, column], y, x)
        yield on_other, on_image
        # without its cells on both sides, so that two matches never share one
        left = left * (on_other == 0)[..., None, None] * (on_image == 0)


def _connected(values: Array, row: np.intp, column: np.intp) -> Array:
    """The values (h, w) of the connected cells around a place that are half as large or more."""
    from scipy import ndimage

    labels, _ = ndimage.label(values >= _HALF * values[row, column])
    return np.asarray(values * (labels == labels[row, column]))


def _painted(image: Array, regions: list[Array]) -> Array:
    """A softened image with each region in a color of its own, the first one the strongest."""
    drawn, (height, width) = soften(image), image.shape[:2]
    for region, color in zip(regions, _MATCHES, strict=False):
        # of the first and strongest, whose largest share is above zero
        share = torch.from_numpy(region / regions[0].max())
        opacity = ALPHA * maps.upsample(share, (height, width)).clamp(max=1).numpy()[..., None]
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
    [cosines] = as_cosines(scores, (1, len(texts)))
    rows, [colors] = [Panel(pictures[0])] * len(texts), sign_colors("positive")
    if heatmap is not None:
        [maps] = as_heatmaps(heatmap, pictures, len(texts))
        rows = [Panel(pictures[0], layers=[(values, colors)]) for values in maps]
    figure, chosen, scale = page(_WORDS_DPI), current_look.get(), magnified()
    width = chosen.inches or _PICTURE + _SENTENCE + 3 * _MARGIN
    sentence = width - _PICTURE - 3 * _MARGIN
    expect(sentence > _PICTURE, f"a width above {2 * _PICTURE + 3 * _MARGIN:.1f} inches", width)
    if not chosen.titles:
        caption, cosines = "", [""] * len(texts)
    below = figure.text(0, 0, caption, va="bottom", ha="left", **small_print())
    wrap(below, width - 2 * _MARGIN)
    row = _PICTURE + 0.45 * scale
    height = len(texts) * row + 0.3 + 0.12 * scale * below.get_text().count("\n")
    figure.set_size_inches(width, height)
    below.set_position((_MARGIN / width, 0.08 / height))
    for index, (picture, cosine, words) in enumerate(zip(rows, cosines, texts, strict=True)):
        bottom = height - index * row - _MARGIN - _PICTURE
        left, right = (
            figure.add_axes((x / width, bottom / height, wide / width, _PICTURE / height))
            for x, wide in ((_MARGIN, _PICTURE), (_PICTURE + 2 * _MARGIN, sentence))
        )
        paint(left, picture)
        left.text(
            0.5, -0.03, cosine, va="top", ha="center", transform=left.transAxes, **small_print()
        )
        _draw_words(right, words, sentence, scale)
    return at_resolution(figure)


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


def _draw_words(
    axes: Axes, words: Sequence[tuple[str, float]], sentence: float, scale: float
) -> None:
    """The words from left to right, in as many lines as they need, in inches from the top left."""
    axes.set(xlim=(0, sentence), ylim=(_PICTURE, 0))
    axes.set_axis_off()
    x, y = 0.0, 0.25 * scale
    for (word, _), (color, number) in zip(words, colored_words(words), strict=True):
        box = {"boxstyle": "round,pad=0.2", "linewidth": 0, "facecolor": color}
        drawn = axes.text(0, 0, word, va="center", ha="center", bbox=box, **lettering(_WORD))
        note = axes.text(0, 0, number, va="top", ha="center", **small_print(_VALUE))
        # extents are in pixels of the page, whose resolution is therefore settled before
        width = max(text.get_window_extent().width for text in (drawn, note)) / _WORDS_DPI + 0.13
        if x > 0 and x + width > sentence:
            x, y = 0.0, y + _LINE * scale
        drawn.set_position((x + width / 2, y))
        note.set_position((x + width / 2, y + 0.14 * scale))
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
    """Draw raw maps (L, h, w) over one image (H, W, 3), such as those of heads, behind a lead.

    They are orange above zero and blue below, on a scale that ends at the largest absolute value,
    of each map or shared by all; or at a `top` or that of the look.
    """
    large = enlarged(raw.float().cpu().numpy(), image.shape[:2])
    largest = np.abs(large).max(axis=None if shared else (-2, -1), keepdims=True)
    if top := top or current_look.get().top:
        largest[:] = top
    # a map of zeros stays one
    signed = (large / np.where(largest > 0, largest, 1)).clip(-1, 1)  # (L, H, W)
    cells = zip(titles, notes, map(signed_layers, signed), strict=True)
    return folded([Panel(image, title, note, "", layers) for title, note, layers in cells], lead)


def strip_legends(above: str, below: str) -> list[Legend]:
    """The legends of signed maps."""
    return [
        Legend(ramp(c), m)
        for c, m in zip(sign_colors("positive", "negative"), (above, below), strict=True)
    ]
