"""Perturbation curves of methods, drawn with their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.figure import Figure

from ..metrics.bootstrap import bootstrap, interval_of
from ..visualization.curves import Curve, curves
from .resampling import STATISTICS
from .summary import LEVEL, RESAMPLES
from .table import Table


def curve_bands(
    table: Table, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Curve]:
    """Each method's mean curve with its interval.

    Args:
        table: rows of one metric of the long table, those of a curve; each image has a value at
            every `x` of its method.
        level: of the interval, for each point alone.
        resamples: of the bootstrap, over whole images.
        seed: of the bootstrap.

    Returns:
        Method -> (x, mean, low, high), each (F,).
    """
    bands: dict[str, Curve] = {}
    for method, rows in table.groupby("method", observed=True, sort=False):
        codes = rows["sample"].astype("category").cat.remove_unused_categories().cat.codes
        images = int(codes.max()) + 1
        rows = rows.assign(index=codes).sort_values(["x", "index", "value"])
        fractions, points = zip(*rows.groupby("x"), strict=True)
        means = [
            STATISTICS["mean"].prepare(
                point["index"].to_numpy(np.intp), point["value"].to_numpy()[:, None], images
            )
            for point in points
        ]
        figures = bootstrap(means, images, resamples=resamples, seed=seed)
        ends = [interval_of(point, level) for point in figures]
        mean, low, high = np.array(ends).T
        if images == 1:  # says nothing of others
            low = high = np.full_like(mean, np.nan)
        bands[str(method)] = (np.array(fractions), mean, low, high)
    return bands


def perturbation_curves(
    most_first: Table,
    least_first: Table,
    methods: Sequence[str],
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
        most_first: rows of the long table.
        least_first: the same for the other order.
        methods: in the order of the legend; those without rows are left out.
        title: over all.
        xlabel: what `x` is a share of.
        ylabel: what the values are.
        reference: the method whose line is black and thick.
        baselines: the methods whose lines are grey and thin.
        level: of the bands.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: nothing measured, or what :func:`captum_clip.visualization.curves.curves`
            refuses.
    """
    bands = [
        curve_bands(table, level=level, resamples=resamples, seed=seed)
        for table in (most_first, least_first)
    ]
    drawn = [name for name in methods if any(name in panel for panel in bands)]
    return curves(
        *[{name: panel[name] for name in drawn if name in panel} for panel in bands],
        headers=("most relevant first", "least relevant first"),
        title=title,
        xlabel=xlabel,
        ylabel=ylabel,
        reference=reference if reference in drawn else None,
        baselines=[name for name in baselines if name in drawn],
        caption=_caption([most_first, least_first], level),
    )


def _caption(tables: Sequence[Table], level: float) -> str:
    """What the bands are, and over how many images."""
    images = sorted(
        {
            count
            for table in tables
            for count in table.groupby("method", observed=True)["sample"].nunique()
        }
    )
    number = str(images[0]) if len(images) == 1 else f"{images[0]} to {images[-1]}"
    noun = "image" if images == [1] else "images"
    return f"Bands: {level * 100:g} % bootstrap intervals at each point, over {number} {noun}."
