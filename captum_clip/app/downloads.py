"""What is taken home: the cards as one picture, and the maps themselves."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from .. import visualization
from ..visualization.style import HEAT
from .queries import Result


def picture(result: Result, opacity: float) -> bytes:
    """The cards with their opacity, as PNG.

    Raises:
        InputError: an opacity out of [0, 1], or more than goes into one picture.
    """
    shown, heat = result.shown(), result.heat()
    rows = zip(shown.names, shown.norms.tolist(), result.picks, strict=True)
    look: dict[str, Any] = {
        "names": [f"{name}, norm {norm:.2f}" if word else name for name, norm, word in rows],
        "scores": shown.scores,
        "alpha": opacity,
        "caption": f"{shown.model} \N{MIDDLE DOT} {shown.method}",
    }
    if len(heat) == 2:
        figure = visualization.signs(shown.images, heat["positive"], heat["negative"], **look)
    elif "positive" in heat:
        figure = visualization.overlay(shown.images, heat["positive"], cmap=HEAT, **look)
    else:
        look["caption"] += " \N{MIDDLE DOT} what speaks against"
        negative = visualization.NEGATIVE
        figure = visualization.overlay(shown.images, heat["negative"], cmap=negative, **look)
    with tempfile.TemporaryDirectory() as folder:
        return visualization.save_figure(figure, Path(folder) / "maps.png").read_bytes()


def archive(result: Result) -> bytes:
    """The maps of the cards as :meth:`Explanation.save` writes them, NPZ."""
    with tempfile.TemporaryDirectory() as folder:
        return result.shown().save(Path(folder) / "maps.npz").read_bytes()
