"""A figure to put pictures and lines of text on, in inches from the top left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from .arrays import Array
from .style import FONT, LINE, NOTE_COLOR, TEXT_COLOR, text_width, wrap

GREY = NOTE_COLOR


@dataclass(frozen=True)
class Text:
    """Lines of one size and colour."""

    lines: tuple[str, ...]
    size: float
    color: str

    @classmethod
    def of(cls, text: str, width: float, size: float, color: str = TEXT_COLOR) -> Text:
        """Break a text into lines of at most `width` inches; `size` in points."""
        return cls(tuple(wrap(text, 72 * width, size)), size, color)

    @property
    def height(self) -> float:
        """In inches; 0 where there is no text."""
        return len(self.lines) * self.size * LINE / 72

    @property
    def width(self) -> float:
        """Of the longest line, in inches."""
        return max((text_width(line, self.size) for line in self.lines), default=0.0) / 72


@dataclass(frozen=True)
class Page:
    """A figure whose pictures lie on whole pixels."""

    figure: Figure

    @classmethod
    def of(cls, width: float, height: float, dpi: float) -> Page:
        """An empty white page; sizes in inches."""
        size = (round(width * dpi) / dpi, round(height * dpi) / dpi)
        return cls(Figure(figsize=size, dpi=dpi, facecolor="white"))

    def picture(self, pixels: Array, x: float, y: float, width: float, height: float) -> None:
        """Draw pixels (H, W, 3) with their top left corner at (x, y)."""
        dpi = self.figure.dpi
        total_x, total_y = self.figure.get_size_inches()
        x, y, width, height = (round(inches * dpi) / dpi for inches in (x, y, width, height))
        box = (x / total_x, 1 - (y + height) / total_y, width / total_x, height / total_y)
        axes = self.figure.add_axes(box)
        axes.imshow(pixels, aspect="auto")
        axes.set_axis_off()

    def text(self, text: Text, x: float, y: float, align: str = "left") -> None:
        """Write lines from (x, y) down."""
        total_x, total_y = self.figure.get_size_inches()
        for number, line in enumerate(text.lines):
            baseline = y + (number + 0.78) * text.size * LINE / 72
            self.figure.text(
                x / total_x,
                1 - baseline / total_y,
                line,
                ha=align,
                va="baseline",
                fontsize=text.size,
                family=FONT,
                color=text.color,
                parse_math=False,
            )


def ramp(cmap: Colormap) -> Array:
    """All colours of a map in one line, (1, 128, 3)."""
    colors = cmap(np.linspace(0, 1, 128))[None, :, :3]
    return np.asarray(colors, dtype=np.float32)
