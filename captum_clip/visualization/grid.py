"""Pictures in rows and columns, with their names below them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from ..errors import InputError
from .arrays import Array
from .page import GREY, Page, Text, ramp
from .style import NOTE_SIZE, TEXT_SIZE

_COLUMNS = 8  # pictures a row, where a longer row is folded
_SIDE = 2.0  # of a square picture, in inches
_MARGIN, _GAP, _ROW_GAP = 0.16, 0.1, 0.2
_LABEL = 1.2  # widest label
_PAD = 0.05  # between a text and its picture
_BAR = (0.9, 0.08)  # of a legend
_FINE = 400  # pixels that a picture's side has at least
_LARGE = 2400  # pixels of a figure's side from which the images' own resolution will do
_LIMIT = 2**15  # pixels of a figure's side


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture.

    Args:
        pixels: (H, W, 3) in [0, 1].
        title: under it, wrapped to its width.
        note: under the title, in grey.
    """

    pixels: Array
    title: str = ""
    note: str = ""


def folded(panels: Sequence[Panel]) -> list[list[Panel]]:
    """Spread pictures over as few rows as there must be, about as many in each.

    Example:
        >>> import numpy as np
        >>> from captum_clip.visualization.grid import Panel, folded
        >>> [len(row) for row in folded(13 * [Panel(np.zeros((2, 2, 3)))])]
        [7, 6]
    """
    rows = math.ceil(len(panels) / _COLUMNS)
    columns = math.ceil(len(panels) / rows)
    return [list(panels[start : start + columns]) for start in range(0, len(panels), columns)]


@dataclass(frozen=True)
class Legend:
    """A bar of colours from nothing to the strongest, between two words."""

    cmap: Colormap
    low: str
    high: str

    @property
    def texts(self) -> tuple[Text, Text]:
        """The words left and right of the bar."""
        left, right = (Text.of(word, _SIDE, NOTE_SIZE, GREY) for word in (self.low, self.high))
        return left, right

    @property
    def start(self) -> float:
        """Where the bar starts, in inches."""
        width = self.texts[0].width
        return width + _PAD if width else 0.0

    @property
    def width(self) -> float:
        """All of it, in inches."""
        return self.start + _BAR[0] + _PAD + self.texts[1].width


@dataclass(frozen=True)
class _Row:
    """Pictures side by side with the lines below them."""

    panels: tuple[Panel, ...]
    names: tuple[Text, ...]
    notes: tuple[Text, ...]
    label: Text | None

    @classmethod
    def of(cls, panels: Sequence[Panel], label: str | None, width: float) -> _Row:
        names = tuple(Text.of(panel.title, width, TEXT_SIZE) for panel in panels)
        notes = tuple(Text.of(panel.note, width, NOTE_SIZE, GREY) for panel in panels)
        beside = None if label is None else Text.of(label, _LABEL, TEXT_SIZE)
        return cls(tuple(panels), names, notes, beside)

    @property
    def bottom(self) -> float:
        """From the pictures' lower edge to the row's."""
        texts = zip(self.names, self.notes, strict=True)
        lines = max(name.height + note.height for name, note in texts)
        return lines + _PAD if lines else 0.0


@dataclass(frozen=True)
class _Foot:
    """Legends on the left; the caption on the right, or below them where it has no room."""

    legends: tuple[Legend, ...]
    caption: Text
    offset: float

    @classmethod
    def of(cls, legends: Sequence[Legend], caption: str, width: float) -> _Foot:
        text = Text.of(caption, width, NOTE_SIZE, GREY)
        room = width - sum(legend.width + 3 * _GAP for legend in legends)
        beside = len(text.lines) <= 1 and text.width <= room
        below = max((legend.texts[1].height for legend in legends), default=0.0)
        return cls(tuple(legends), text, 0.0 if beside else below)

    @property
    def height(self) -> float:
        """With the space above it."""
        ends = [legend.texts[1].height for legend in self.legends]
        ends += [self.offset + self.caption.height]
        return max(ends) + 2 * _PAD if any(ends) else 0.0


@dataclass(frozen=True)
class _Layout:
    """Sizes in inches that all rows share."""

    width: float
    height: float
    left: float
    columns: int

    def x(self, column: int) -> float:
        """Left edge of a column."""
        return self.left + column * (self.width + _GAP)

    @property
    def right(self) -> float:
        """Right edge of the last column."""
        return self.x(self.columns) - _GAP


def grid(
    rows: Sequence[Sequence[Panel]],
    *,
    headers: Sequence[str] = (),
    labels: Sequence[str] = (),
    legends: Sequence[Legend] = (),
    caption: str = "",
) -> Figure:
    """Set pictures in rows; the first one says the shape of all.

    Args:
        rows: of pictures; a row may be shorter than others.
        headers: one over each column.
        labels: one left of each row, "" for none.
        legends: bars of colours, below.
        caption: below, on the right.

    Returns:
        A figure that no window system and no `pyplot` knows; each picture has at least the pixels
        of its image.

    Raises:
        InputError: too many pictures for one figure.
    """
    high, wide = rows[0][0].pixels.shape[:2]
    width = _SIDE * math.sqrt(wide / high)
    marks: Sequence[str | None] = labels or [None] * len(rows)
    lines = [_Row.of(row, mark, width) for row, mark in zip(rows, marks, strict=True)]
    indent = max((row.label.width + _GAP for row in lines if row.label), default=0.0)
    columns = max(len(headers), *(len(row) for row in rows))
    layout = _Layout(width, width * high / wide, _MARGIN + indent, columns)
    heads = [Text.of(text, width, TEXT_SIZE) for text in headers]
    head = max((text.height + _PAD for text in heads), default=0.0)
    foot = _Foot.of(legends, caption, layout.right - layout.left)
    body = sum(layout.height + row.bottom + _ROW_GAP for row in lines) - _ROW_GAP
    size = (layout.right + _MARGIN, 2 * _MARGIN + head + body + foot.height)
    finest = max(panel.pixels.shape[1] for row in rows for panel in row)
    page = Page.of(*size, _dpi(finest / width, *size))
    for column, text in enumerate(heads):
        page.text(text, layout.x(column), _MARGIN + head - _PAD - text.height)
    _draw_rows(page, layout, lines, _MARGIN + head)
    _draw_foot(page, layout, foot, size[1] - _MARGIN - foot.height + 2 * _PAD)
    return page.figure


def _dpi(own: float, width: float, height: float) -> float:
    """Pixels an inch: a whole multiple of the images' own, smaller where a figure is large."""
    wanted = math.ceil(_FINE / _SIDE / own)
    side = max(width, height) * own  # in pixels, at the images' own resolution
    times = max(1, min(wanted, math.floor(_LARGE / side)))
    if side > _LIMIT:
        raise InputError(
            f"a figure of {width:.0f} x {height:.0f} inches is too large to draw with the images' "
            "own resolution; draw fewer images or targets at a time."
        )
    return times * own


def _draw_rows(page: Page, layout: _Layout, rows: Sequence[_Row], y: float) -> None:
    for row in rows:
        below = y + layout.height + _PAD
        for column, panel in enumerate(row.panels):
            x, name, note = layout.x(column), row.names[column], row.notes[column]
            page.picture(panel.pixels, x, y, layout.width, layout.height)
            page.text(name, x, below)
            page.text(note, x, below + name.height)
        if row.label is not None:
            middle = y + (layout.height - row.label.height) / 2
            page.text(row.label, layout.left - _GAP, middle, align="right")
        y += layout.height + row.bottom + _ROW_GAP


def _draw_foot(page: Page, layout: _Layout, foot: _Foot, y: float) -> None:
    x = layout.left
    for legend in foot.legends:
        low, high = legend.texts
        page.text(low, x, y)
        start = x + legend.start
        page.picture(ramp(legend.cmap), start, y + (high.height - _BAR[1]) / 2, *_BAR)
        page.text(high, start + _BAR[0] + _PAD, y)
        x += legend.width + 3 * _GAP
    if foot.offset:
        page.text(foot.caption, layout.left, y + foot.offset)
    else:
        page.text(foot.caption, layout.right, y, align="right")
