"""Curves of many methods with their intervals, in one panel or two."""

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, cycle
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from ..checks import check_nonempty
from ..errors import public
from .colors import FONT, NOTE, NOTE_COLOR, NOTE_SIZE, TEXT, TEXT_COLOR
from .grid import fit, page, wrap

Curve = tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]
"""Fractions, mean, lower and upper end, each (F,)."""
Series = Mapping[str, Curve]

_PANEL = (3.1, 2.7)  # inches; taller where the legend is
_LABEL = 2.1  # widest label of a legend, in inches
_DPI = 200
_BAND = (0.03, 0.14)  # opacity, of many bands and of few
# 6 colors and 5 dashes share no factor, so that 30 lines pass before a pair comes again
_COLORS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's, told apart with any kind of color vision; without their yellow, too pale."""
_GRAYS: Final = ("#7a7a7a", "#a8a8a8")
_DASHES: Final[tuple[Any, ...]] = (
    "solid",
    (0, (5, 1.5)),
    (0, (1, 1.2)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (3, 1.2, 1, 1.2, 1, 1.2)),
)


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
        >>> from captum_clip.visualization.curves import curves
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
    wrap(figure.suptitle(title, x=0.01, ha="left", **TEXT), width)
    wrap(figure.supxlabel(caption, x=0.01, ha="left", **NOTE), width)
    plots = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel, head in zip(plots, panels, headers or [""] * len(panels), strict=True):
        _style(axes)
        _draw(axes, panel, pens)
        wrap(axes.set_title(head, loc="left", **TEXT), _PANEL[0])
        axes.set_xlabel(xlabel, **TEXT)
    plots[0].set_ylabel(ylabel, **TEXT)
    legend = plots[-1].legend(
        handles=[Line2D([], [], label=label, **pen) for label, pen in pens.items()],
        loc="upper left",
        bbox_to_anchor=(1.05, 1),
        borderaxespad=0,
        frameon=False,
        prop={"family": FONT, "size": NOTE_SIZE},
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
    groups = ((first, (TEXT_COLOR,), 2.0, 4), (usual, _COLORS, 1.3, 3), (gray, _GRAYS, 1.0, 2))
    return {
        label: {"color": color, "linestyle": dash, "linewidth": width, "zorder": layer}
        for group, colors, width, layer in groups
        for label, color, dash in zip(group, cycle(colors), cycle(_DASHES), strict=False)
    }


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(NOTE_COLOR)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.tick_params(
        labelsize=NOTE_SIZE, labelfontfamily=FONT, labelcolor=TEXT_COLOR, color=NOTE_COLOR
    )


def _draw(axes: Axes, panel: Series, pens: Mapping[str, Mapping[str, Any]]) -> None:
    opacity = float(np.clip(1 / len(pens), *_BAND))
    for label, (fractions, mean, low, high) in panel.items():
        pen = pens[label]
        band = {"color": pen["color"], "alpha": opacity, "zorder": pen["zorder"] - 2}
        axes.fill_between(fractions, low, high, linewidth=0, **band)
        axes.plot(fractions, mean, label=label, **pen)
