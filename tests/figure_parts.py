"""What a figure holds: its pictures and its texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.text import Text


def texts_of(figure: Figure) -> list[Text]:
    """All texts that are not empty, legends and captions included."""
    return [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]


def lines_of(figure: Figure) -> list[str]:
    """Every line that is written in a figure."""
    return [line for text in texts_of(figure) for line in text.get_text().split("\n")]


def pixels_of(figure: Figure) -> list[npt.NDArray[Any]]:
    """The pixels of every picture, row by row."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
