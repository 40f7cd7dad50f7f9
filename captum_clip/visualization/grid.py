"""Figures: images in rows and columns with their names below them, their size and their files."""

import io
import math
import re
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text

from ..checks import check_destination, check_interval, expect
from ..errors import InputError, argument, public
from ..files import MARK, replace_file
from ..look import current_look
from .colors import Array, Layer, cover, lettering, magnified, small_print, soften, tinted

_ROW_LENGTH = 8  # images in a row, where a longer row is folded
ROWS: Final = 24  # under each other; more become a contact sheet, about as wide as it is high
_MOST_PANELS = 1000  # images and maps of a figure, whose layout takes half a minute
_PANEL_SIDE = 2.0  # of a square image, in inches
_SMALL_SIDE = 1.4  # the same from six columns on: letters stay legible where the figure is shrunk
_LABEL_WIDTH = 1.3  # widest label, in inches
_TEXT_HEIGHT = 0.5  # usual height of what is written under an image, in inches
_GAP, _ROW_GAP = 0.1, 0.16  # inches between columns and between rows
_SHADES = 48  # patches that make the color bar of a legend
_FINE = 400  # pixels that an image's side has at least
_LARGE_FIGURE = 2400  # pixels of a figure's side from which the images' own resolution will do
_SCREEN = 1920  # pixels of a figure's side, of which finer images are drawn with fewer
_READABLE = 150  # pixels an inch that letters need at least
_LIMIT = 2**15  # pixels of a figure's side
_EDGE: Final = 0.08  # inches around everything, on top of the padding
_LINE_HEIGHT: Final = 0.2  # more than a line of text is high, in inches
_PASSES: Final = 4  # until a figure is as wide as it is asked to be
_NARROWEST: Final = 0.2  # of an image, in inches
_LEVELS: Final = np.linspace(0, 1, 17)  # of contours, each in the color between two
_MIDDLES: Final = (_LEVELS[1:] - _LEVELS[1] / 2).astype(np.float32)
_LETTER: Final = 0.4  # width over type size, of narrow letters
_JPEG: Final = {"quality": 90, "subsampling": 0, "comment": MARK}  # letters stay crisp
# without the time of day, the same figure is the same file
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    ".png": {"metadata": {"Comment": MARK}},
    ".jpg": {"pil_kwargs": _JPEG},
    ".jpeg": {"pil_kwargs": _JPEG},
    ".pdf": {"metadata": {"CreationDate": None}},
    ".svg": {"metadata": {"Date": None}},
}
FORMATS: Final = tuple(_OPTIONS)
# words that can be searched, and edited in Illustrator or Inkscape, where the usual are outlines
_AS_TEXT: Final = {"pdf.fonttype": 42, "svg.fonttype": "none"}
# characters that no XML may hold, of which a text is free to have some
_NOT_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, eq=False)
class Panel:
    """One image of a figure.

    Args:
        pixels: (H, W, 3) in [0, 1].
        title: under it, wrapped to its width.
        note: under the title, in gray; in its place where there is none.
        label: left of it, at the beginning of a row.
        layers: maps over it, (H, W) in [0, 1], each with its colors.
    """

    pixels: Array
    title: str = ""
    note: str = ""
    label: str = ""
    layers: Sequence[Layer] = ()

    def drawn(self) -> Array:
        """The image under its maps, (H, W, 3) in [0, 1]."""
        return cover(soften(self.pixels), self.layers) if self.layers else self.pixels


class ShownFigure(Figure):
    """A figure that shows itself where it ends the cell of a notebook, with or without pyplot."""

    def savefig(self, fname: Any, *, transparent: bool | None = None, **options: Any) -> None:
        """Write it at its resolution, where matplotlib takes the one that it was made with."""
        super().savefig(fname, transparent=transparent, **{"dpi": self.dpi, **options})

    def _ipython_display_(self) -> None:
        # not a PNG, since photos make megabytes of it; this goes before matplotlib's inline backend
        shown = import_module("IPython.display")
        shown.display(shown.Image(jpeg(self)))


Row = list[Panel | None]


@dataclass(frozen=True)
class Legend:
    """A bar of colors from low to high, and what they stand for."""

    cmap: Colormap
    label: str


def folded(panels: Sequence[Panel], lead: Panel | None = None) -> list[Row]:
    """Spread panels over as few rows as there must be, about as many in each, behind a `lead`.

    Example:
        >>> import numpy as np
        >>> from captum_clip.visualization.grid import Panel, folded
        >>> [len(row) for row in folded(13 * [Panel(np.zeros((2, 2, 3)))])]
        [7, 6]
    """
    high, wide = panels[0].pixels.shape[:2]
    most = max(1, math.floor(_ROW_LENGTH / max(1, math.sqrt(wide / high))))  # of wide images fewer
    rows = math.ceil(len(panels) / most)
    columns = math.ceil(len(panels) / rows)
    starts = range(0, len(panels), columns)
    folded_rows: list[Row] = [list(panels[start : start + columns]) for start in starts]
    if lead is not None:
        folded_rows = [[None if n else lead, *row] for n, row in enumerate(folded_rows)]
    return folded_rows


def grid(
    rows: Sequence[Sequence[Panel | None]],
    *,
    headers: Sequence[str] = (),
    legends: Sequence[Legend] = (),
    caption: str = "",
    together: int = 1,
) -> Figure:
    """Set images in rows; the first one gives the shape of all.

    More than 24 rows without labels become a contact sheet: several stand side by side, to be read
    from left to right.

    Args:
        rows: of panels, None for an empty place; a row may be shorter than others.
        headers: one over each column.
        legends: bars of colors, below.
        caption: below the images, over the legends.
        together: rows that a contact sheet keeps under each other, such as those of an image.

    Returns:
        A figure that no window system and no `pyplot` knows. Each image has at least its own
        pixels, or where the figure would not fit a screen a whole fraction of them: `dpi` of
        :func:`save_figure` brings them back.
    """
    chosen = current_look.get()
    if not chosen.titles:
        rows = [[panel and Panel(panel.pixels, layers=panel.layers) for panel in r] for r in rows]
        headers, caption = (), ""
    panels = [panel for row in rows for panel in row if panel is not None]
    if len(panels) > _MOST_PANELS:
        raise InputError(
            f"a figure of {len(panels):,} images and maps is too large; draw fewer images or "
            "targets at a time, or a figure for each image, as captum-clip explain FOLDER does."
        )
    high, wide = panels[0].pixels.shape[:2]
    columns = max(len(headers), *map(len, rows))
    if len(rows) > ROWS and not any(panel.label for panel in panels):
        beside = math.ceil(math.sqrt(len(rows) * high / (columns * wide)))
        rows = _side_by_side(rows, together, columns, beside)
        headers = beside * [*headers, *[""] * (columns - len(headers))]
        columns *= beside
    width = (_PANEL_SIDE if columns < 6 else _SMALL_SIDE) * math.sqrt(wide / high)
    for _ in range(_PASSES):
        figure = _lay_out(rows, headers, width)
        _explain(figure, legends if chosen.colorbar else (), caption, columns * width)
        fit(figure, (width, width * high / wide), (_GAP / 2, _ROW_GAP / 2))
        missing = 0.0 if chosen.inches is None else chosen.inches - figure.get_size_inches()[0]
        if abs(missing) <= 1 / figure.dpi:
            break
        # what stands around the images is as wide beside images of any width, but for rounding
        width += float(missing) / columns
        expect(width > _NARROWEST, f"a width with room for {columns} images", chosen.width)
    return at_resolution(figure)


def _lay_out(
    rows: Sequence[Sequence[Panel | None]], headers: Sequence[str], width: float
) -> Figure:
    """Images of a width in inches with what is written next to each."""
    panels = [panel for row in rows for panel in row if panel is not None]
    high, wide = panels[0].pixels.shape[:2]
    columns = max(len(headers), *map(len, rows))
    tall = len(rows) * (width * high / wide + _TEXT_HEIGHT)
    labels = _LABEL_WIDTH * any(panel.label for panel in panels)
    finest = max(panel.pixels.shape[1] for panel in panels)
    figure = page(_dpi(finest / width, columns * (width + _GAP) + labels, tall))
    cells = figure.add_gridspec(len(rows), columns)
    for number, row in enumerate(rows):
        for column, (panel, header) in enumerate(zip_longest(row, headers if not number else ())):
            if panel is None and not header:
                continue
            axes = figure.add_subplot(cells[number, column])
            axes.set_axis_off()
            if panel is not None:
                _draw_panel(axes, panel, width)
            _write_text(axes, header or "", width, (0, 1), (0, 4), va="bottom")
    return figure


def _side_by_side(
    rows: Sequence[Sequence[Panel | None]], together: int, columns: int, beside: int
) -> list[Row]:
    """So many blocks of rows next to each other, then the next ones below them."""
    padded = [[*row, *[None] * (columns - len(row))] for row in rows]
    blocks = [padded[start : start + together] for start in range(0, len(rows), together)]
    lines = (blocks[start : start + beside] for start in range(0, len(blocks), beside))
    return [list(chain(*rows)) for line in lines for rows in zip(*line, strict=True)]


def _dpi(resolution: float, width: float, height: float) -> float:
    """Pixels an inch: a whole multiple or fraction of the images' own, by a figure's size."""
    side = max(width, height) * resolution  # in pixels, at this resolution
    if side > _LIMIT:
        raise InputError(
            f"a figure of {width:.0f} x {height:.0f} inches is too large to draw with the images' "
            "own resolution; draw fewer images or targets at a time."
        )
    enlargement = math.ceil(_FINE / _PANEL_SIDE / resolution)
    share = max(1, min(math.ceil(side / _SCREEN), math.floor(resolution / _READABLE)))
    return max(1, min(enlargement, math.floor(_LARGE_FIGURE / side))) * resolution / share


def _draw_panel(axes: Axes, panel: Panel, width: float) -> None:
    paint(axes, panel)
    title = _write_text(axes, panel.title, width, (0, 0), (0, -4), va="top")
    below = axes.annotate(
        panel.note, (0, 0), (0, -1), title, "offset points", va="top", **small_print()
    )
    wrap(below, width)
    if panel.label:
        _write_text(axes, panel.label, _LABEL_WIDTH, (0, 0.5), (-6, 0), ha="right", va="center")


def paint(axes: Axes, panel: Panel) -> None:
    """Draw an image under its maps, whose shape is that of the axes."""
    axes.set_axis_off()
    if not (current_look.get().vector and panel.layers):
        axes.imshow(panel.drawn(), aspect="auto")
        return
    axes.imshow(soften(panel.pixels), aspect="auto")
    axes.autoscale(False)
    for heatmap, cmap in panel.layers:
        colors = tinted(_MIDDLES, cmap)
        # from edge to edge, where contours would end in the middle of the outermost pixels
        padded, (high, wide) = np.pad(heatmap, 1, "edge"), heatmap.shape
        axes.contourf(padded, _LEVELS, colors=colors, antialiased=True, extent=(-1, wide, -1, high))


def _write_text(
    axes: Axes, words: str, width: float, at: tuple[float, float], by: tuple[int, int], **align: Any
) -> Annotation:
    """A text next to an image, `by` points from `at`, of at most `width` inches."""
    text = axes.annotate(words, at, by, "axes fraction", "offset points", **align, **lettering())
    wrap(text, width)
    return text


def _explain(figure: Figure, legends: Sequence[Legend], caption: str, width: float) -> None:
    """Legends below the images, under the caption."""
    if not (legends or caption):
        return
    shades = np.linspace(0, 1, _SHADES)
    bars: list[Any] = [tuple(Patch(color=c) for c in legend.cmap(shades)) for legend in legends]
    style, length = small_print(), min(9, 3 * width / magnified())
    below = figure.legend(
        bars,
        [legend.label for legend in legends],
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        loc="outside lower left",
        ncols=max(1, len(legends)),
        labelcolor=style["color"],
        handlelength=length,
        handleheight=0.9,
        alignment="left",
        prop={"size": style["fontsize"]},
        frameon=False,
        borderpad=0,
        borderaxespad=1.3,
        title=caption,
    )
    below.get_title().set(**style)
    wrap(below.get_title(), width)
    if below.get_window_extent().width > width * figure.dpi:  # as that of two long texts
        bar = (length + 3) * style["fontsize"] / 72  # with the room around it
        for text in below.get_texts():
            wrap(text, width / len(legends) - bar)


def page(dpi: float) -> Figure:
    """An empty figure that belongs to no window."""
    # pyplot keeps every figure until it is closed, and its state is shared by all threads
    color = "none" if current_look.get().transparent else rcParams["figure.facecolor"]
    figure = ShownFigure(dpi=dpi, facecolor=color)
    FigureCanvasAgg(figure)  # keeps one renderer, where a plain canvas makes one for each text
    return figure


def at_resolution(figure: Figure) -> Figure:
    """A figure with the look's resolution, after a layout on the pixels of its images."""
    if (dpi := current_look.get().dpi) is not None:
        figure.set_dpi(dpi)
    return figure


def jpeg(figure: Figure) -> bytes:
    """The file of a figure at its own resolution, in which each image lies on whole pixels."""
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", dpi=figure.dpi, **_OPTIONS[".jpeg"])
    return file.getvalue()


def wrap(text: Text, width: float) -> None:
    """Break a text of a figure into lines of at most `width` inches, at spaces where it can be."""
    words, figure = text.get_text(), text.figure
    assert figure is not None
    letters = int(72 * width / (_LETTER * float(text.get_fontsize())))
    # letters differ in width, so that only the drawn text tells whether a line fits
    for count in range(max(1, letters), 0, -1):
        text.set_text(textwrap.fill(words, count, break_on_hyphens=False))
        if text.get_window_extent().width <= width * figure.dpi:
            break


def fit(figure: Figure, size: tuple[float, float], pad: tuple[float, float]) -> None:
    """Give a figure the size at which constrained layout makes every plot as large as wanted.

    Its plots, in rows and columns, get a `size` (width, height) in inches, with a `pad` around,
    each with its texts. The layout is not made again when the figure is drawn.
    """
    cells: Any = figure.axes[0].get_gridspec()
    shape, plot_size = np.array([cells.ncols, cells.nrows]), np.array(size)
    # not by findobj, which would make the ticks of every image
    texts = [text for axes in figure.axes for text in axes.texts] + figure.texts
    texts += [t for legend in figure.legends for t in (legend.get_title(), *legend.get_texts())]
    room = (
        _LINE_HEIGHT
        * magnified()
        * (4 + max((text.get_text().count("\n") for text in texts), default=0))
    )
    sides = shape * (plot_size + np.array([3, room])) + np.array([0, room])
    layout = ConstrainedLayoutEngine(w_pad=pad[0], h_pad=pad[1], wspace=0, hspace=0)
    # What stands around the plots takes as much room in a figure of any size, so that it is
    # measured in one that is large enough, and then fits.
    for _ in range(2):
        figure.set_size_inches(sides)
        x, y = _EDGE / sides
        layout.set(rect=(x, y, 1 - 2 * x, 1 - 2 * y))
        layout.execute(figure)
        plot = figure.axes[0].get_position(original=True)
        sides = sides + shape * (plot_size - plot.size * sides)
    # An image that is not on whole pixels would be resampled, which blurs it.
    pixels = np.round(sides * figure.dpi)
    sides = pixels / figure.dpi
    figure.set_size_inches(sides)
    for axes in figure.axes:
        corner = np.round(axes.get_position(original=True).p0 * pixels) / pixels
        axes.set_position((*corner, *(plot_size / sides)))


@public("save_figure")
def save_figure(figure: Figure, path: str | Path, *, dpi: float | None = None) -> Path:
    """Write a figure as PNG, JPEG, PDF or SVG, by the ending of the name.

    The file appears under its name only when it is complete.

    Args:
        figure: any matplotlib figure.
        path: in an existing folder; an existing file is replaced.
        dpi: pixels an inch, such as 300 for print; by default the figure's own.

    Returns:
        The path.

    Raises:
        InputError: no figure, another ending, more than 32,768 pixels a side, or a folder that
            cannot be written to.
    """
    path = check_destination(path, FORMATS)
    expect(isinstance(figure, Figure), "a figure, such as of plot()", figure)
    kind = path.suffix.lower()
    if dpi is not None:
        check_interval("dpi", dpi, "[10, inf)")  # else no letter has a pixel
    if kind in (".jpg", ".jpeg") and figure.patch.get_facecolor()[3] == 0:
        raise InputError(f"{path.name} cannot be transparent; write .png, .pdf or .svg.")
    density = dpi or figure.dpi
    if (side := density * max(figure.get_size_inches())) > _LIMIT:
        raise InputError(
            f"with {argument('dpi', density)} it would be {side:,.0f} pixels wide or high."
        )

    def write(file: BinaryIO) -> None:
        drawn: Any = io.StringIO() if kind == ".svg" else file
        # rcParams may name others, and another dpi blurs images that lie on whole pixels
        options: Any = {"dpi": density, "facecolor": "auto", **_OPTIONS[kind]}
        with rc_context(_AS_TEXT) if kind in (".pdf", ".svg") else nullcontext():
            figure.savefig(drawn, format=kind[1:], **options)
        if kind == ".svg":
            file.write(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", drawn.getvalue()).encode())

    replace_file(path, write)
    return path
