"""Perturbation curves of methods, drawn with their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ..errors import InputError
from ..visualization.curves import Curve, curves
from .metric import CurveRows
from .statistics import LEVEL, RESAMPLES, curve_band


def curve_series(
    rows: Mapping[str, CurveRows],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Curve]:
    """Each method's mean curve with its interval, to be drawn.

    Args:
        rows: method -> its curves; a method without any is left out.
        level: of the interval, for each point alone.
        resamples: of the bootstrap, over whole images.
        seed: of the bootstrap.

    Returns:
        Method -> (fractions, mean, low, high), each (F,).

    Raises:
        InputError: what :func:`captum_clip.evaluation.statistics.curve_band` refuses.
    """
    found: dict[str, Curve] = {}
    for method, given in rows.items():
        if len(given.owners):
            band = curve_band(
                given,
                level=level,
                resamples=resamples,
                seed=seed,
                caller=f"curve_series: {method!r}",
            )
            found[method] = (band.fractions, band.mean, band.low, band.high)
    return found


def perturbation_curves(
    most_first: Mapping[str, CurveRows],
    least_first: Mapping[str, CurveRows],
    *,
    title: str = "",
    xlabel: str = "removed",
    ylabel: str = "score",
    reference: str | None = None,
    baselines: Collection[str] = (),
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Figure:
    """The curves of all methods, most relevant first on the left, least relevant first beside.

    Args:
        most_first: method -> its curves.
        least_first: the same for the other order.
        title: over all.
        xlabel: what the fractions are of.
        ylabel: what the values are.
        reference: the method whose line is black and thick.
        baselines: the methods whose lines are grey and thin.
        level: of the bands.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: nothing measured at all, or what :func:`curve_series` and
            :func:`captum_clip.visualization.curves.curves` refuse.
    """
    panels = [
        curve_series(rows, level=level, resamples=resamples, seed=seed)
        for rows in (most_first, least_first)
    ]
    if not all(panels):
        raise InputError(
            f"perturbation_curves: there are curves of {len(panels[0])} methods most relevant "
            f"first and of {len(panels[1])} least relevant first; expected one or more of each."
        )
    empty = [
        method
        for method in {**most_first, **least_first}
        if method not in panels[0] and method not in panels[1]
    ]
    return curves(
        *panels,
        headers=("most relevant first", "least relevant first"),
        title=title,
        xlabel=xlabel,
        ylabel=ylabel,
        reference=None if reference in empty else reference,
        baselines=[name for name in baselines if name not in empty],
        caption=_caption([*most_first.values(), *least_first.values()], level, empty),
    )


def _caption(rows: Collection[CurveRows], level: float, empty: Sequence[str]) -> str:
    """What the bands are, over how many images, and what has no curve."""
    counts = sorted({len(np.unique(given.owners)) for given in rows} - {0})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    images = "image" if counts == [1] else "images"
    words = f"Bands: {level * 100:g} % bootstrap intervals at each point, over {number} {images}."
    return words + (f" Not measured: {', '.join(empty)}." if empty else "")
