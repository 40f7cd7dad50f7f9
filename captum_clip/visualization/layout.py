"""Texts that are as wide as their place, and figures as large as what is in them."""

from __future__ import annotations

import textwrap
from typing import Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

_MARGIN: Final = 0.08  # inches around everything, besides the padding
_LINE: Final = 0.2  # more than a line of text is high, in inches
_LETTER: Final = 0.4  # width over type size, of narrow letters


def page(dpi: float) -> Figure:
    """An empty figure that belongs to no window."""
    figure = Figure(dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)  # keeps one renderer, where a plain canvas makes one for each text
    return figure


def wrap(text: Text, width: float) -> None:
    """Break a text of a figure into lines of at most `width` inches, at spaces where it can be."""
    words, figure = text.get_text(), text.figure
    assert figure is not None
    letters = int(72 * width / (_LETTER * float(text.get_fontsize())))
    for count in range(max(1, letters), 0, -1):
        text.set_text(textwrap.fill(words, count, break_on_hyphens=False))
        if text.get_window_extent().width <= width * figure.dpi:
            break


def fit(
    figure: Figure, shape: tuple[int, int], size: tuple[float, float], pad: tuple[float, float]
) -> None:
    """Give a figure the size at which constrained layout makes every plot as large as wanted.

    Its plots, in a `shape` of rows and columns, get a `size` (width, height) in inches, with a
    `pad` beside, and over and under, each with its texts. The layout is not made again when the
    figure is drawn.
    """
    rows, columns = shape
    # not by findobj, which would make the ticks of every picture
    texts = [text for axes in figure.axes for text in axes.texts] + figure.texts
    texts += [legend.get_title() for legend in figure.legends]
    room = _LINE * (4 + max((text.get_text().count("\n") for text in texts), default=0))
    width, height = columns * (size[0] + 3), rows * (size[1] + room) + room
    layout = ConstrainedLayoutEngine(w_pad=pad[0], h_pad=pad[1], wspace=0, hspace=0)
    # What stands around the plots takes as much room in a figure of any size, so that it is
    # measured in one that is large enough, and then fits.
    for _ in range(2):
        figure.set_size_inches(width, height)
        x, y = _MARGIN / width, _MARGIN / height
        layout.set(rect=(x, y, 1 - 2 * x, 1 - 2 * y))
        layout.execute(figure)
        plot = figure.axes[0].get_position(original=True)
        width += columns * (size[0] - plot.width * width)
        height += rows * (size[1] - plot.height * height)
    # A picture that is not on whole pixels would be resampled, which blurs it.
    pixels = [round(side * figure.dpi) for side in (width, height)]
    width, height = (side / figure.dpi for side in pixels)
    figure.set_size_inches(width, height)
    for axes in figure.axes:
        corner = axes.get_position(original=True).p0
        left, bottom = (round(at * side) / side for at, side in zip(corner, pixels, strict=True))
        axes.set_position((left, bottom, size[0] / width, size[1] / height))
