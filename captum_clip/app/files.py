"""What is taken home: the cards as one picture, and the maps themselves."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .. import visualization
from ..explanation import Explanation
from ..visualization.style import HEAT
from .answers import Answer, shown


def picture(answer: Answer, opacity: float) -> bytes:
    """The cards with their opacity, as PNG.

    Raises:
        InputError: an opacity out of [0, 1], or more than goes into one picture.
    """
    figure = _figure(answer, opacity)
    with tempfile.TemporaryDirectory() as folder:
        return visualization.save_figure(figure, Path(folder) / "maps.png").read_bytes()


def archive(answer: Answer) -> bytes:
    """The maps of the cards as :meth:`Explanation.save` writes them, NPZ."""
    with tempfile.TemporaryDirectory() as folder:
        return shown(answer).save(Path(folder) / "maps.npz").read_bytes()


def _figure(answer: Answer, opacity: float) -> Figure:
    found = shown(answer)
    weights = answer.weights[:, None, None]
    heat = {sign: weights * values for sign, values in found.heat().items()}
    look: dict[str, Any] = {
        "names": _titles(answer, found),
        "scores": found.scores,
        "alpha": opacity,
        "caption": f"{found.model} \N{MIDDLE DOT} {found.method}",
    }
    if len(heat) == 2:
        return visualization.signs(found.images, heat["positive"], heat["negative"], **look)
    ((sign, values),) = heat.items()
    if sign == "negative":
        look["caption"] += " \N{MIDDLE DOT} what speaks against"
        return visualization.overlay(found.images, values, cmap=visualization.NEGATIVE, **look)
    return visualization.overlay(found.images, values, cmap=HEAT, **look)


def _titles(answer: Answer, found: Explanation) -> list[str]:
    return [
        f"{name}, norm {norm:.2f}" if word else name
        for name, norm, word in zip(found.names, found.norms.tolist(), answer.picks, strict=True)
    ]
