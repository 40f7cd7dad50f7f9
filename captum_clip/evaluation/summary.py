"""From the long table to figures: each method by each metric, with intervals and differences."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from ..metrics import bootstrap, holm
from ..metrics.bootstrap import PARTS, Array
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
_SPLITS: Final = 200
_ROUNDING: Final = 1e-12  # relative to the largest; figures that differ by less are equal


@dataclass(frozen=True, eq=False)
class Summary:
    """The figures of all methods by all metrics.

    Attributes:
        figures: a row for each method and metric, with the columns of ``results.csv``, not rounded.
            NaN where nothing was measured, or the statistic means nothing (a rank correlation with
            a constant). `difference` is to the reference, over the regions that both have. `p_holm`
            is adjusted for all methods that the metric compares with it; NaN below :data:`FEWEST`
            images.
        groups: title -> metrics that belong together.
        methods: all of them, in the order of the tables.
        baselines: those of them that stand apart.
        without_map: those of the baselines that look at no map.
        reference: the method that the others are compared with.
        resamples: that intervals and p values come from.
        seed: of them.
        gates: what the model knows of each data set.
        unknown: names of metrics over data that it does not know, of which none names a winner.
        reliability: metric with a rival -> the rank correlation of the methods' figures on one half
            of the images with those on the other, mean over random halves; NaN below three methods.
    """

    figures: Table
    groups: Mapping[str, Sequence[Metric]]
    methods: Sequence[str]
    baselines: Sequence[str]
    without_map: Sequence[str]
    reference: str
    resamples: int
    seed: int
    gates: Sequence[Gate] = ()
    unknown: Collection[str] = ()
    reliability: Mapping[str, float] = field(default_factory=dict)

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
    resample = partial(bootstrap.resample, resamples=resamples, seed=seed)
    figures = {
        metric.name: _compare(metric, rows[metric.name], metric.rival or reference, resample)
        if metric.name in rows
        else {}
        for metric in metrics
    }
    halves = {
        metric.name: _agreement(metric, rows[metric.name], {*methods} - {*baselines}, seed)
        for metric in metrics
        if metric.rival and metric.name in rows
    }
    records = [
        {
            **{"method": method, "metric": metric.name},
            **figures[metric.name].get(method, _UNMEASURED),
            **{"reference": metric.rival or reference, "better": metric.better},
        }
        for method in methods
        for metric in metrics
    ]
    numbers = dict.fromkeys(("mean", "low", "high", *_DIFFERENCE), float)
    frame = pd.DataFrame(records, columns=list(_COLUMNS)).astype(numbers)
    names = [*methods], [*baselines], [*without_map]
    return Summary(frame, groups, *names, reference, resamples, seed, reliability=halves)


def _agreement(metric: Metric, rows: Table, methods: Collection[str], seed: int) -> float:
    """How far random halves of the images order methods alike, of those that saw every image."""
    import pandas as pd

    chosen = rows[rows["method"].isin(methods)]
    wide = chosen.pivot_table("value", "image", ["part", "method"]).dropna(axis=1)
    random, values = np.random.default_rng(seed), list[float]()
    for _ in range(_SPLITS if len(wide.columns) > 2 * len(PARTS[metric.statistic]) else 0):
        half = random.permutation(len(wide)) % 2 == 0
        sums = [
            [wide[column][side].sum() for column in PARTS[metric.statistic]]
            for side in (half, ~half)
        ]
        first, second = (tops / bottoms[0] if bottoms else tops for tops, *bottoms in sums)
        values.append(first.corr(second, method="spearman"))
    return float(pd.Series(values, dtype=float).mean())


def _compare(
    metric: Metric, rows: Table, reference: str, resample: Callable[[Array], Array]
) -> dict[str, dict[str, Any]]:
    """Method -> its figures, of the methods that have rows."""
    image_of = rows.drop_duplicates("number").set_index("number")["image"]
    wide = rows.pivot_table("value", "number", ["method", "part"], aggfunc="first")
    measured = {
        method: wide.xs(method, axis=1, level="method")[[*PARTS[metric.statistic]]].dropna()
        for method in rows["method"].unique()
    }
    compared = measured.get(reference, wide[:0]).index
    rows_of: dict[tuple[str, str], Table] = {(name, ""): table for name, table in measured.items()}
    for name, table in measured.items():
        both = table.index.intersection(compared)
        if name != reference and len(both):  # each with the regions that both have
            rows_of |= {(name, m): measured[m].loc[both] for m in (name, reference)}
    sums, resampled = dict[tuple[str, str], Array](), dict[tuple[str, str], Array]()
    for key, table in rows_of.items():
        images, index = np.unique(image_of.loc[table.index], return_inverse=True)
        values = table.to_numpy(np.float64)
        sums[key] = bootstrap.image_sums(metric.statistic, index, values, len(images))
    for count in {len(of_key) for of_key in sums.values()}:  # of so many images draws are made once
        alike = {key: of_key for key, of_key in sums.items() if len(of_key) == count}
        ends = np.cumsum([of_key.shape[1] for of_key in alike.values()])[:-1]
        parts = np.split(resample(np.concatenate([*alike.values()], axis=1)), ends, axis=1)
        for key, sample_sums in zip(alike, parts, strict=True):
            resampled[key] = bootstrap.figures_of(metric.statistic, sample_sums)

    figures: dict[str, dict[str, Any]] = {}
    for name, table in measured.items():
        count = len(sums[name, ""])
        interval = bootstrap.interval_of(resampled[name, ""])._asdict()
        if count == 1:  # which tells nothing of others
            interval = {"mean": interval["mean"]}
        paired = count if name == reference else len(sums.get((name, name), ()))
        figures[name] = {**interval, "images": count, "rows": len(table), "images_paired": paired}
        if name != reference and paired:
            pair = resampled[name, name], resampled[name, reference]
            figures[name] |= _difference(*pair, paired)
    # NaN compares as False: a method that was not tested is not in the family of tests.
    p_values = {n: row["p_holm"] for n, row in figures.items() if row.get("p_holm", 2) <= 1}
    for name, adjusted in zip(p_values, holm(list(p_values.values())).tolist(), strict=True):
        figures[name]["p_holm"] = adjusted
    return figures


def _difference(first: Array, second: Array, images: int) -> dict[str, float]:
    """Compare two methods' statistics (1 + R,) of the same draws; p values are not adjusted yet."""
    # Of the largest figure: where both are near 0, what a sum leaves is as large as they are.
    rounding = _ROUNDING * np.nanmax(np.abs([first, second]), initial=0)
    gaps = np.where(np.abs(first - second) <= rounding, 0.0, first - second)
    if images == 1:
        return {"difference": float(gaps[0])}
    difference = dict(zip(_DIFFERENCE, bootstrap.difference_of(gaps), strict=True))
    return difference if images >= FEWEST else {**difference, "p_holm": np.nan}
