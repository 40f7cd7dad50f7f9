"""From the long table to figures: each method by each metric, with intervals and differences."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ..metrics import bootstrap, holm
from ..metrics.bootstrap import STATISTICS, Array, RowStatistic, Statistic
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
        reference: the method that the others are compared with.
        level: of the intervals.
        resamples: that intervals and p values come from.
        seed: of them.
    """

    figures: Table
    groups: Mapping[str, Sequence[Metric]]
    methods: Sequence[str]
    baselines: Sequence[str]
    reference: str
    level: float
    resamples: int
    seed: int

    @property
    def metrics(self) -> list[Metric]:
        """Of all groups."""
        return [metric for group in self.groups.values() for metric in group]

    @property
    def least_p(self) -> float:
        """The smallest adjusted p value that so many resamples and comparisons leave possible."""
        tested = self.figures.groupby("metric")["p_holm"].count().max()
        return min(1.0, 2 * float(tested) / (self.resamples + 1))


class _Rows(NamedTuple):
    """The rows of one method by one metric, sorted."""

    regions: npt.NDArray[np.int64]  # (N,) numbers of the regions among those of all images
    samples: npt.NDArray[np.int64]  # (N,)
    values: Array  # (N, C)

    @property
    def images(self) -> npt.NDArray[np.int64]:
        """Numbers of the samples, each once, sorted."""
        return np.unique(self.samples)

    @property
    def key(self) -> bytes:
        """The same for rows of the same regions."""
        return self.regions.tobytes()

    def at(self, regions: npt.NDArray[np.int64]) -> "_Rows":
        """The rows of these regions."""
        kept = np.isin(self.regions, regions)
        return _Rows(self.regions[kept], self.samples[kept], self.values[kept])

    def weighted(self, statistic: RowStatistic) -> Statistic:
        """The statistic of how often each image counts."""
        index = np.searchsorted(self.images, self.samples)
        return statistic.prepare(index, self.values, len(self.images))


_NO_ROWS: Final = _Rows(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 0)))


def summarize(
    table: Table,
    groups: Mapping[str, Sequence[Metric]],
    methods: Sequence[str],
    *,
    reference: str,
    baselines: Sequence[str] = (),
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
    # Sorted, so that neither parts of one row nor the last digits of sums depend on their order.
    table = table.astype({"sample": "category"})
    table = table[table["x"].isna()].sort_values(["sample", "region"], kind="stable")
    table = table.assign(number=table.groupby(["sample", "region"], observed=True).ngroup())
    rows = dict(iter(table.groupby(["metric", "method"], observed=True)))
    resample = partial(bootstrap.bootstrap, resamples=resamples, seed=seed)
    figures = {}
    for metric in metrics:
        measured = {
            method: _rows(metric, rows[metric.name, method])
            for method in methods
            if (metric.name, method) in rows
        }
        figures[metric.name] = _compare(metric, measured, reference, level, resample)
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
    return Summary(frame, groups, [*methods], [*baselines], reference, level, resamples, seed)


def _rows(metric: Metric, rows: Table) -> _Rows:
    """The parts of each row side by side."""
    parts = STATISTICS[metric.statistic].parts
    columns = [rows[rows["part"] == part] for part in parts]
    values = np.stack([column["value"].to_numpy(np.float64) for column in columns], axis=1)
    samples = columns[0]["sample"].cat.codes.to_numpy(np.int64)
    regions = columns[0]["number"].to_numpy(np.int64)
    order = np.lexsort((*values.T, regions))
    return _Rows(regions[order], samples[order], values[order])


def _compare(
    metric: Metric,
    rows: Mapping[str, _Rows],
    reference: str,
    level: float,
    resample: Callable[[Sequence[Statistic], int], Array],
) -> dict[str, dict[str, Any]]:
    """Method -> its figures, of the methods that have rows."""
    pairs: dict[str, tuple[_Rows, _Rows]] = {}
    for method, own in rows.items():
        other = rows.get(reference, _NO_ROWS)
        common = np.intersect1d(own.regions, other.regions)
        pairs[method] = own.at(common), other.at(common)
    # Draws are the same for as many images, and are made once.
    together: dict[int, dict[tuple[str, bytes], _Rows]] = defaultdict(dict)
    for method, own in rows.items():
        for name, part in ((method, own), *zip((method, reference), pairs[method], strict=True)):
            together[len(part.images)][name, part.key] = part
    together.pop(0, None)
    resampled: dict[tuple[str, bytes], Array] = {}  # (1 + R,)
    for count, parts in together.items():
        weighted = [part.weighted(STATISTICS[metric.statistic]) for part in parts.values()]
        resampled |= dict(zip(parts, resample(weighted, count), strict=True))

    figures: dict[str, dict[str, Any]] = {}
    for method, own in rows.items():
        images, (kept, other) = len(own.images), pairs[method]
        interval = bootstrap.interval_of(resampled[method, own.key], level)._asdict()
        if images == 1:  # which tells nothing of others
            interval = {"mean": interval["mean"]}
        both = len(kept.images)
        counts = {"images": images, "rows": len(own.samples), "images_paired": both}
        figures[method] = {**interval, **counts}
        if method != reference and both:
            pair = resampled[method, kept.key], resampled[reference, other.key]
            figures[method] |= _difference(*pair, both, level)
    p_values = {method: of["p_holm"] for method, of in figures.items() if of.get("p_holm", 2) <= 1}
    for method, adjusted in zip(p_values, holm(list(p_values.values())).tolist(), strict=True):
        figures[method]["p_holm"] = adjusted
    return figures


def _difference(own: Array, other: Array, images: int, level: float) -> dict[str, float]:
    """Of two methods' statistics (1 + R,) over the same draws; its p value is not adjusted yet."""
    rounding = _ROUNDING * np.maximum(np.abs(own), np.abs(other))
    gaps = np.where(np.abs(own - other) <= rounding, 0.0, own - other)
    if images == 1:
        return {"difference": float(gaps[0])}
    difference = dict(zip(_DIFFERENCE, bootstrap.difference_of(gaps, level), strict=True))
    return difference if images >= FEWEST else {**difference, "p_holm": np.nan}
