"""Perturbation curves of methods, drawn with their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..metrics.bootstrap import bootstrap, interval_of
from ..visualization.curves import Curve, curves
from .resampling import STATISTICS
from .summary import Summary
from .table import Table


def curve_bands(
    table: Table, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
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
        mean, low, high = np.array([interval_of(point, level) for point in figures]).T
        if images == 1:  # says nothing of others
            low = high = np.full_like(mean, np.nan)
        bands[str(method)] = (np.array(fractions), mean, low, high)
    return bands


def perturbation_curves(
    most_first: Table, least_first: Table, summary: Summary, *, title: str = ""
) -> Figure:
    """The curves of all methods, most relevant first on the left, least relevant first beside.

    Args:
        most_first: rows of the long table.
        least_first: the same for the other order.
        summary: has the methods in the order of the legend, of which those without rows are left
            out, the reference, whose line is black and thick, and the baselines, grey and thin.
        title: over all.

    Raises:
        InputError: nothing measured.
    """
    options: dict[str, Any] = {
        "level": summary.level,
        "resamples": summary.resamples,
        "seed": summary.seed,
    }
    bands = [curve_bands(table, **options) for table in (most_first, least_first)]
    images = most_first.groupby("method", observed=True)["sample"].nunique().to_dict()
    most = max(images.values(), default=0)
    labels = {  # over fewer images than the others: say so where it is compared with them
        name: name if images.get(name, most) == most else f"{name} (n = {images[name]})"
        for name in summary.methods
        if any(name in panel for panel in bands)
    }
    return curves(
        *[{labels[name]: panel[name] for name in labels if name in panel} for panel in bands],
        headers=("most relevant first", "least relevant first"),
        title=title,
        xlabel="share of the pixels removed",
        ylabel="top-1 accuracy",
        reference=labels.get(summary.reference),
        baselines=[labels[name] for name in summary.baselines if name in labels],
        caption=_caption([most_first, least_first], summary.level),
    )


def _caption(tables: Sequence[Table], level: float) -> str:
    """What the bands are, and over how many images."""
    by_method = [table.groupby("method", observed=True)["sample"].nunique() for table in tables]
    images = sorted({count for counts in by_method for count in counts})
    number = str(images[0]) if len(images) == 1 else f"{images[0]} to {images[-1]}"
    noun = "image" if images == [1] else "images"
    return f"Bands: {level * 100:g} % bootstrap intervals at each point, over {number} {noun}."
