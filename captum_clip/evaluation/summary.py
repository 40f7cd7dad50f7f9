"""From the long table to figures: each method by each metric, with intervals and differences."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from ..metrics import bootstrap, holm
from ..metrics.bootstrap import STATISTICS, Array, Statistic
from .gate import Gate
from .table import Metric, Table

_DIFFERENCE: Final = ("difference", "difference_low", "difference_high", "p_holm")
_COLUMNS: Final = (
    *("method", "metric", "mean", "low", "high", "images", "rows", *_DIFFERENCE),
    *("reference", "images_paired", "better"),
)
FEWEST: Final = 30
"""Images of a paired test. With 10 the bootstrap finds a difference where there is none in .083 of
the cases that should be .05, with 64 in .053."""
_UNMEASURED: Final = {"images": 0, "rows": 0, "images_paired": 0}
_ROUNDING: Final = 1e-12  # relative; two figures that differ by less are equal


@dataclass(frozen=True, eq=False)
class Summary:
    """The figures of all methods by all metrics.

    Attributes:
        figures: a row for each method and metric, with the columns of ``results.csv``, not rounded.
            NaN where nothing was measured, or the statistic means nothing (a rank correlation with
            a constant); `difference` is to the reference, over the regions that both have, and
            `p_holm` is adjusted for all methods that the metric compares with it, and NaN below
            :data:`FEWEST` images.
        groups: title -> metrics that belong together.
        methods: all of them, in the order of the tables.
        baselines: those of them that stand apart.
        without_map: those of the baselines that look at no map.
        reference: the method that the others are compared with.
        level: of the intervals.
        resamples: that intervals and p values come from.
        seed: of them.
        gates: what the model knows of each data set.
        unknown: names of metrics over data that it does not know, of which none names a winner.
    """

    figures: Table
    groups: Mapping[str, Sequence[Metric]]
    methods: Sequence[str]
    baselines: Sequence[str]
    without_map: Sequence[str]
    reference: str
    level: float
    resamples: int
    seed: int
    gates: Sequence[Gate] = ()
    unknown: Collection[str] = ()

    @property
    def metrics(self) -> list[Metric]:
        """The metrics of all groups."""
        return [metric for group in self.groups.values() for metric in group]

    @property
    def least_p(self) -> float:
        """The smallest adjusted p value that so many resamples and comparisons leave possible."""
        tested = self.figures.groupby("metric")["p_holm"].count().max()
        return min(1.0, 2 * float(tested) / (self.resamples + 1))


def summarize(
    table: Table,
    groups: Mapping[str, Sequence[Metric]],
    methods: Sequence[str],
    *,
    reference: str,
    baselines: Sequence[str] = (),
    without_map: Sequence[str] = (),
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Summary:
    r"""Each method's figure by each metric, and its difference to a reference method.

    The bootstrap draws whole images, as many as there are, with replacement. Methods with the same
    images see the same draws, and a difference is taken resample by resample over the regions that
    both methods have, so it is paired:

    .. math:: d^*_r = T(\text{rows of the method in resample } r)
                    - T(\text{rows of the reference in resample } r)

    with T the metric's statistic over these rows of the images drawn. Intervals are percentiles, p
    values those of :func:`captum_clip.metrics.paired_difference`, adjusted by Holm over all methods
    but the reference. Below :data:`FEWEST` images there is no p value, of one image alone no
    interval either (NaN). Resamples where the statistic means nothing are left out.

    The table is long, as :mod:`captum_clip.evaluation.table` has it; a method without rows of a
    metric was not measured by it. The other arguments are those of :class:`Summary`.

    Source: Efron and Tibshirani 1993, *An Introduction to the Bootstrap*; Holm 1979.
    """
    import pandas as pd

    metrics = [metric for group in groups.values() for metric in group]
    # Regions are numbered by their names, so that no last digit depends on the order of rows.
    table = table[table["x"].isna()].astype({"sample": "category", "method": str, "part": str})
    numbers = table.groupby(["sample", "region"], observed=True).ngroup()
    table = table.assign(image=table["sample"].cat.codes, number=numbers)
    rows = dict(iter(table.groupby("metric", observed=True)))
    resample = partial(bootstrap.bootstrap, resamples=resamples, seed=seed)
    figures = {
        metric.name: _compare(metric, rows[metric.name], reference, level, resample)
        if metric.name in rows
        else {}
        for metric in metrics
    }
    records = [
        {
            **{"method": method, "metric": metric.name},
            **figures[metric.name].get(method, _UNMEASURED),
            **{"reference": reference, "better": metric.better},
        }
        for method in methods
        for metric in metrics
    ]
    numbers = dict.fromkeys(("mean", "low", "high", *_DIFFERENCE), float)
    frame = pd.DataFrame(records, columns=list(_COLUMNS)).astype(numbers)
    names = [*methods], [*baselines], [*without_map]
    return Summary(frame, groups, *names, reference, level, resamples, seed)


def _compare(
    metric: Metric,
    rows: Table,
    reference: str,
    level: float,
    resample: Callable[[Sequence[Statistic], int], Array],
) -> dict[str, dict[str, Any]]:
    """Method -> its figures, of the methods that have rows."""
    statistic = STATISTICS[metric.statistic]
    image_of = rows.drop_duplicates("number").set_index("number")["image"]
    wide = rows.pivot_table("value", "number", ["method", "part"], aggfunc="first")
    measured = {
        method: wide.xs(method, axis=1, level="method")[[*statistic.parts]].dropna()
        for method in rows["method"].unique()
    }
    compared = measured.get(reference, wide[:0]).index
    pairs = {method: table.index.intersection(compared) for method, table in measured.items()}
    # Draws are the same for as many images, and are made once.
    statistics: dict[int, dict[tuple[str, bytes], Statistic]] = defaultdict(dict)
    for name, table in measured.items():
        for method, part in ((name, table.index), (name, pairs[name]), (reference, pairs[name])):
            if len(part):
                images, index = np.unique(image_of.loc[part], return_inverse=True)
                values = measured[method].loc[part].to_numpy(np.float64)
                weighted = statistic.prepare(index, values, len(images))
                statistics[len(images)][_key(method, part)] = weighted
    resampled: dict[tuple[str, bytes], Array] = {}  # (1 + R,)
    for count, by_key in statistics.items():
        resampled |= dict(zip(by_key, resample([*by_key.values()], count), strict=True))

    figures: dict[str, dict[str, Any]] = {}
    for name, table in measured.items():
        count, both = (image_of.loc[part].nunique() for part in (table.index, pairs[name]))
        interval = bootstrap.interval_of(resampled[_key(name, table.index)], level)._asdict()
        if count == 1:  # which tells nothing of others
            interval = {"mean": interval["mean"]}
        counts = {"images": count, "rows": len(table), "images_paired": both}
        figures[name] = {**interval, **counts}
        if name != reference and both:
            first, second = (resampled[_key(m, pairs[name])] for m in (name, reference))
            figures[name] |= _difference(first, second, both, level)
    p_values = {name: of["p_holm"] for name, of in figures.items() if of.get("p_holm", 2) <= 1}
    for name, adjusted in zip(p_values, holm(list(p_values.values())).tolist(), strict=True):
        figures[name]["p_holm"] = adjusted
    return figures


def _key(method: str, regions: Any) -> tuple[str, bytes]:
    """A method and the numbers of its rows' regions."""
    return method, regions.to_numpy().tobytes()


def _difference(first: Array, second: Array, images: int, level: float) -> dict[str, float]:
    """Compare two methods' statistics (1 + R,) of the same draws; p values are not adjusted yet."""
    rounding = _ROUNDING * np.maximum(np.abs(first), np.abs(second))
    gaps = np.where(np.abs(first - second) <= rounding, 0.0, first - second)
    if images == 1:
        return {"difference": float(gaps[0])}
    difference = dict(zip(_DIFFERENCE, bootstrap.difference_of(gaps, level), strict=True))
    return difference if images >= FEWEST else {**difference, "p_holm": np.nan}
