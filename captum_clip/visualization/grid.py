"""Figures: images in rows and columns with their names below them, their size and their files."""

import io
import math
import re
import textwrap
from collections.abc import Sequence
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
from .fonts import make_legible

# Numbers of images. A longer row is folded. More rows become a contact sheet, about as wide as it
# is high. The layout of the largest figure takes half a minute.
_ROW_LENGTH: Final = 8
ROWS: Final = 24  # the most of a figure that is no contact sheet
_MOST_PANELS: Final = 1000

# Lengths in inches. From six columns on images are smaller, so that letters stay legible where the
# figure is shrunk to a page.
_PANEL_SIDE: Final = 2.0
_SMALL_SIDE: Final = 1.4
_NARROWEST: Final = 0.2
_LABEL_WIDTH: Final = 1.3
_TEXT_HEIGHT: Final = 0.5  # the usual height of the texts under an image
_LINE_HEIGHT: Final = 0.2  # more than the height of a line of text
_GAP: Final = 0.1  # between columns
_ROW_GAP: Final = 0.16
_EDGE: Final = 0.08  # around everything, on top of the padding

# Numbers of pixels. An image's side has `_FINE` or more, unless the figure's side would have more
# than `_LARGE_FIGURE`. Images that make the figure larger than `_SCREEN` are drawn with fewer
# pixels than they have, as long as letters keep the `_READABLE` pixels an inch.
_FINE = 400
_LARGE_FIGURE: Final = 2400
_SCREEN: Final = 1920
_READABLE: Final = 150
_LIMIT: Final = 2**15  # of a figure's side

_PASSES: Final = 4  # at most, until a figure is as wide as it is asked to be
_SHADES: Final = 48  # patches that make the color bar of a legend
_LETTER_WIDTH: Final = 0.4  # of narrow letters, as a share of their type size
# The area between two levels of contours has the color in their middle.
_LEVELS: Final = np.linspace(0, 1, 17)
_MIDDLES: Final = (_LEVELS[1:] - _LEVELS[1] / 2).astype(np.float32)

# Subsampled colors would blur letters.
_JPEG: Final = {"quality": 90, "subsampling": 0, "comment": MARK}
# Without the time of day, the same figure is the same file.
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    ".png": {"metadata": {"Comment": MARK}},
    ".jpg": {"pil_kwargs": _JPEG},
    ".jpeg": {"pil_kwargs": _JPEG},
    ".pdf": {"metadata": {"CreationDate": None}},
    ".svg": {"metadata": {"Date": None}},
}
FORMATS: Final = tuple(_OPTIONS)
# By default letters become outlines, which cannot be searched, nor edited in Illustrator.
_AS_TEXT: Final = {"pdf.fonttype": 42, "svg.fonttype": "none"}
# No XML may hold these characters, but a text may.
_NOT_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, eq=False)
class Panel:
    """One image of a figure.

    Args:
        pixels: (H, W, 3) in [0, 1].
        title: under the image, wrapped to its width.
        note: under the title, in gray; without a title, directly under the image.
        label: left of the image, at the beginning of a row.
        layers: maps over the image, (H, W) in [0, 1], each with its colors.
    """

    pixels: Array
    title: str = ""
    note: str = ""
    label: str = ""
    layers: Sequence[Layer] = ()

    def drawn(self) -> Array:
        """Return the image under its maps, (H, W, 3) in [0, 1]."""
        if not self.layers:
            return self.pixels
        return cover(soften(self.pixels), self.layers)


class ShownFigure(Figure):
    """A figure that shows itself at the end of a notebook's cell, with or without pyplot."""

    def savefig(self, fname: Any, *, transparent: bool | None = None, **options: Any) -> None:
        """Write the figure at its resolution; matplotlib takes that which it was made with."""
        super().savefig(fname, transparent=transparent, **{"dpi": self.dpi, **options})

    def _ipython_display_(self) -> None:
        # IPython calls this before matplotlib's inline backend, which would make a PNG of it. A PNG
        # of photos has megabytes.
        display = import_module("IPython.display")
        display.display(display.Image(jpeg(self)))


Row = list[Panel | None]


@dataclass(frozen=True)
class Legend:
    """A bar of colors from low to high, and what they stand for."""

    cmap: Colormap
    label: str


def folded(panels: Sequence[Panel], lead: Panel | None = None) -> list[Row]:
    """Spread panels evenly over as few rows as possible, behind a `lead` in the first row.

    Example:
        >>> import numpy as np
        >>> from captum_clip.visualization.grid import Panel, folded
        >>> [len(row) for row in folded(13 * [Panel(np.zeros((2, 2, 3)))])]
        [7, 6]
    """
    high, wide = panels[0].pixels.shape[:2]
    # A row has fewer images if they are wide.
    relative_width = max(1, math.sqrt(wide / high))
    most = max(1, math.floor(_ROW_LENGTH / relative_width))
    row_count = math.ceil(len(panels) / most)
    columns = math.ceil(len(panels) / row_count)
    rows: list[Row] = []
    for start in range(0, len(panels), columns):
        row: Row = list(panels[start : start + columns])
        if lead is not None:
            row.insert(0, lead if start == 0 else None)
        rows.append(row)
    return rows


def grid(
    rows: Sequence[Sequence[Panel | None]],
    *,
    headers: Sequence[str] = (),
    legends: Sequence[Legend] = (),
    caption: str = "",
    together: int = 1,
) -> Figure:
    """Set images in rows; the first image gives the shape of all.

    More than 24 rows without labels become a contact sheet: several stand side by side, to be read
    from left to right.

    Args:
        rows: of panels, None for an empty place; a row may be shorter than others.
        headers: one over each column.
        legends: bars of colors, below.
        caption: below the images, over the legends.
        together: rows that a contact sheet keeps under each other, such as those of an image.

    Returns:
        A figure that belongs to no window and that `pyplot` does not know. Each image has at least
        its own pixels. If the figure would not fit a screen, it has an integer fraction of them,
        and `dpi` of :func:`save_figure` brings them back.
    """
    chosen = current_look.get()
    if not chosen.titles:
        rows = [_without_texts(row) for row in rows]
        headers = ()
        caption = ""
    if not chosen.colorbar:
        legends = ()
    panels = _panels_of(rows)
    if len(panels) > _MOST_PANELS:
        raise InputError(
            f"a figure of {len(panels):,} images and maps is too large; draw fewer images or "
            "targets at a time, or a figure for each image, as captum-clip explain FOLDER does."
        )
    high, wide = panels[0].pixels.shape[:2]
    columns = max(len(headers), *map(len, rows))
    if len(rows) > ROWS and not any(panel.label for panel in panels):
        # With n blocks a sheet is n * columns * wide by len(rows) / n * high, and so about square.
        block_count = math.ceil(math.sqrt(len(rows) * high / (columns * wide)))
        rows = _side_by_side(rows, together, columns, block_count)
        padding = [""] * (columns - len(headers))
        headers = block_count * [*headers, *padding]
        columns *= block_count
    side = _PANEL_SIDE if columns < 6 else _SMALL_SIDE
    # Images of any shape have the area of a square of this side.
    width = side * math.sqrt(wide / high)
    for _ in range(_PASSES):
        figure = _lay_out(rows, headers, width)
        _write_below(figure, legends, caption, columns * width)
        fit(figure, (width, width * high / wide), (_GAP / 2, _ROW_GAP / 2))
        if chosen.inches is None:
            break
        missing = chosen.inches - figure.get_size_inches()[0]
        if abs(missing) <= 1 / figure.dpi:
            break
        # Labels and gaps stay as wide when the images change, but for rounding, so the images take
        # up what is missing.
        width += float(missing) / columns
        least = chosen.inches + columns * (_NARROWEST - width)
        room = f"room for {columns} images, about {math.ceil(10 * least) / 10} inches or more"
        expect(width > _NARROWEST, f"{argument('width')} with {room}", chosen.width)
    return at_resolution(figure)


def _without_texts(row: Sequence[Panel | None]) -> Row:
    """Return a row of images with their maps alone."""
    bare: Row = []
    for panel in row:
        bare.append(None if panel is None else Panel(panel.pixels, layers=panel.layers))
    return bare


def _panels_of(rows: Sequence[Sequence[Panel | None]]) -> list[Panel]:
    """Return the panels of rows, without empty places."""
    return [panel for row in rows for panel in row if panel is not None]


def _lay_out(
    rows: Sequence[Sequence[Panel | None]], headers: Sequence[str], width: float
) -> Figure:
    """Make a figure of images that are `width` inches wide, with the texts next to each."""
    panels = _panels_of(rows)
    high, wide = panels[0].pixels.shape[:2]
    columns = max(len(headers), *map(len, rows))
    figure_width = columns * (width + _GAP)
    if any(panel.label for panel in panels):
        figure_width += _LABEL_WIDTH
    figure_height = len(rows) * (width * high / wide + _TEXT_HEIGHT)
    finest = max(panel.pixels.shape[1] for panel in panels)
    figure = page(_dpi(finest / width, figure_width, figure_height))
    cells = figure.add_gridspec(len(rows), columns)
    for row_index, row in enumerate(rows):
        row_headers = headers if row_index == 0 else ()
        for column, (panel, header) in enumerate(zip_longest(row, row_headers)):
            if panel is None and not header:
                continue
            axes = figure.add_subplot(cells[row_index, column])
            axes.set_axis_off()
            if panel is not None:
                _draw_panel(axes, panel, width)
            _write_text(axes, header or "", width, (0, 1), (0, 4), va="bottom")
    return figure


def _side_by_side(
    rows: Sequence[Sequence[Panel | None]], together: int, columns: int, block_count: int
) -> list[Row]:
    """Set blocks of `together` rows side by side, `block_count` of them, and the next ones below.

    Rows are padded to as many columns, so that the blocks line up.
    """
    padded = [[*row, *[None] * (columns - len(row))] for row in rows]
    blocks = [padded[start : start + together] for start in range(0, len(rows), together)]
    joined_rows: list[Row] = []
    for start in range(0, len(blocks), block_count):
        neighbors = blocks[start : start + block_count]
        for rows_of_blocks in zip(*neighbors, strict=True):
            joined_rows.append(list(chain(*rows_of_blocks)))
    return joined_rows


def _dpi(resolution: float, width: float, height: float) -> float:
    """Choose the pixels an inch: an integer multiple or fraction of the images' own resolution."""
    side = max(width, height) * resolution  # in pixels
    if side > _LIMIT:
        raise InputError(
            f"a figure of {width:.0f} x {height:.0f} inches is too large to draw with the images' "
            "own resolution; draw fewer images or targets at a time."
        )
    # Small images are enlarged, unless the figure becomes too large.
    multiple = min(math.ceil(_FINE / _PANEL_SIDE / resolution), math.floor(_LARGE_FIGURE / side))
    # A figure is made to fit a screen, unless its letters become illegible.
    divisor = min(math.ceil(side / _SCREEN), math.floor(resolution / _READABLE))
    return max(1, multiple) * resolution / max(1, divisor)


def _draw_panel(axes: Axes, panel: Panel, width: float) -> None:
    """Draw an image with its texts."""
    paint(axes, panel)
    title = _write_text(axes, panel.title, width, (0, 0), (0, -4), va="top")
    # The note is placed relative to the title, however many lines that has.
    below = axes.annotate(
        panel.note, (0, 0), (0, -1), title, "offset points", va="top", **small_print()
    )
    wrap(below, width)
    if panel.label:
        _write_text(axes, panel.label, _LABEL_WIDTH, (0, 0.5), (-6, 0), ha="right", va="center")


def paint(axes: Axes, panel: Panel) -> None:
    """Draw an image under its maps, stretched to the axes, which have its shape."""
    axes.set_axis_off()
    if not (current_look.get().vector and panel.layers):
        axes.imshow(panel.drawn(), aspect="auto")
        return
    axes.imshow(soften(panel.pixels), aspect="auto")
    axes.autoscale(False)
    for heatmap, cmap in panel.layers:
        colors = tinted(_MIDDLES, cmap)
        # Contours end in the middle of the outermost pixels, so one more is added at each edge.
        padded = np.pad(heatmap, 1, "edge")
        high, wide = heatmap.shape
        extent = (-1, wide, -1, high)
        axes.contourf(padded, _LEVELS, colors=colors, antialiased=True, extent=extent)


def _write_text(
    axes: Axes, words: str, width: float, at: tuple[float, float], by: tuple[int, int], **align: Any
) -> Annotation:
    """Write a text next to an image, `by` points from `at`, of at most `width` inches."""
    text = axes.annotate(words, at, by, "axes fraction", "offset points", **align, **lettering())
    wrap(text, width)
    return text


def _write_below(figure: Figure, legends: Sequence[Legend], caption: str, width: float) -> None:
    """Write the caption below the images, and the legends under it."""
    if not (legends or caption):
        return
    shades = np.linspace(0, 1, _SHADES)
    # matplotlib draws the patches of a tuple next to each other, which makes a bar.
    bars: list[Any] = []
    for legend in legends:
        bars.append(tuple(Patch(color=color) for color in legend.cmap(shades)))
    style = small_print()
    bar_length = min(9, 3 * width / magnified())  # in units of the type size
    below = figure.legend(
        bars,
        [legend.label for legend in legends],
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        loc="outside lower left",
        ncols=max(1, len(legends)),
        labelcolor=style["color"],
        handlelength=bar_length,
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
    # Two long texts may be wider than the images.
    if below.get_window_extent().width > width * figure.dpi:
        bar_width = (bar_length + 3) * style["fontsize"] / 72  # with the room around it
        for text in below.get_texts():
            wrap(text, width / len(legends) - bar_width)


def page(dpi: float) -> Figure:
    """Return an empty figure that belongs to no window."""
    color = "none" if current_look.get().transparent else rcParams["figure.facecolor"]
    # pyplot would keep every figure until it is closed, and its state is shared by all threads.
    figure = ShownFigure(dpi=dpi, facecolor=color)
    # This canvas keeps one renderer, while a plain one makes a new one to measure each text.
    FigureCanvasAgg(figure)
    return figure


def at_resolution(figure: Figure) -> Figure:
    """Give a figure the look's resolution, after its layout on the pixels of its images."""
    dpi = current_look.get().dpi
    if dpi is not None:
        figure.set_dpi(dpi)
    return figure


def jpeg(figure: Figure) -> bytes:
    """Return the file of a figure at its own resolution, at which images lie on whole pixels."""
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", dpi=figure.dpi, **_OPTIONS[".jpeg"])
    return file.getvalue()


def wrap(text: Text, width: float) -> None:
    """Break a text of a figure into lines of at most `width` inches, at spaces if possible.

    Its letters get fonts that have them.
    """
    make_legible(text)
    words = text.get_text()
    figure = text.figure
    assert figure is not None
    most_letters = int(72 * width / (_LETTER_WIDTH * float(text.get_fontsize())))
    # The search begins with more letters than a line can hold, if they were all narrow. Letters
    # differ in width, so only the drawn text tells whether a line fits.
    for count in range(max(1, most_letters), 0, -1):
        text.set_text(textwrap.fill(words, count, break_on_hyphens=False))
        if text.get_window_extent().width <= width * figure.dpi:
            break


def fit(figure: Figure, size: tuple[float, float], pad: tuple[float, float]) -> None:
    """Give a figure the size at which constrained layout makes every plot as large as wanted.

    Its plots, in rows and columns, get a `size` (width, height) in inches, and a `pad` between
    them and their texts. The layout is not made again when the figure is drawn.
    """
    cells: Any = figure.axes[0].get_gridspec()
    shape = np.array([cells.ncols, cells.nrows])
    plot_size = np.array(size)
    # The room for texts is more than they need, and the layout below cuts off the rest.
    line_count = 4 + max((text.get_text().count("\n") for text in _texts_of(figure)), default=0)
    text_height = _LINE_HEIGHT * magnified() * line_count
    room = np.array([3, text_height])
    sides = shape * (plot_size + room) + np.array([0, text_height])
    layout = ConstrainedLayoutEngine(w_pad=pad[0], h_pad=pad[1], wspace=0, hspace=0)
    # The texts around the plots take as much room in a figure of any size. So they are measured in
    # a figure that is large enough, and then fit.
    for _ in range(2):
        figure.set_size_inches(sides)
        x, y = _EDGE / sides
        layout.set(rect=(x, y, 1 - 2 * x, 1 - 2 * y))
        layout.execute(figure)
        plot = figure.axes[0].get_position(original=True)  # in shares of the figure
        sides = sides + shape * (plot_size - plot.size * sides)
    # An image that is not on whole pixels would be resampled, which blurs it.
    pixels = np.round(sides * figure.dpi)
    sides = pixels / figure.dpi
    figure.set_size_inches(sides)
    for axes in figure.axes:
        corner = np.round(axes.get_position(original=True).p0 * pixels) / pixels
        axes.set_position((*corner, *(plot_size / sides)))


def _texts_of(figure: Figure) -> list[Text]:
    """Return all texts of a figure."""
    # matplotlib's findobj would make the ticks of every image.
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += axes.texts
    for legend in figure.legends:
        texts += [legend.get_title(), *legend.get_texts()]
    return texts


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
    ending = path.suffix.lower()
    if dpi is not None:
        # At fewer pixels an inch, a letter would have less than one.
        check_interval("dpi", dpi, "[10, inf)")
    if ending in (".jpg", ".jpeg") and figure.patch.get_facecolor()[3] == 0:
        raise InputError(f"{path.name} cannot be transparent; write .png, .pdf or .svg.")
    resolution = dpi or figure.dpi
    side = resolution * max(figure.get_size_inches())
    if side > _LIMIT:
        raise InputError(
            f"with {argument('dpi', resolution)} it would be {side:,.0f} pixels wide or high."
        )
    # rcParams may name others, and another dpi blurs images that lie on whole pixels.
    options: Any = {"dpi": resolution, "facecolor": "auto", **_OPTIONS[ending]}

    def write(file: BinaryIO) -> None:
        if ending == ".svg":
            text = io.StringIO()
            with rc_context(_AS_TEXT):
                figure.savefig(text, format="svg", **options)
            valid = _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text.getvalue())
            file.write(valid.encode())
        elif ending == ".pdf":
            with rc_context(_AS_TEXT):
                figure.savefig(file, format="pdf", **options)
        else:
            # Pixels need no rcParams of their own, which all threads would share.
            figure.savefig(file, format=ending[1:], **options)

    replace_file(path, write)
    return path
