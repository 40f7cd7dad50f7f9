"""From rows to figures: each method's statistic over resampled images, and its differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..metrics import Difference, Interval, holm
from ..metrics.bootstrap import check_resampling, interval_ends, p_value, resample_weights
from .metric import CurveRows, Metric, Rows
from .weighted import STATISTICS, Array, Weighted, sums_of

LEVEL: Final = 0.95
RESAMPLES: Final = 2000
_ROUNDING: Final = 1e-12  # relative; two figures that differ by less are equal

Samples = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Finding:
    """What one metric says of one method.

    Attributes:
        interval: the statistic over all rows; None where nothing was measured, NaN where the
            statistic means nothing (a rank correlation with a constant).
        images: number of images that rows come from.
        rows: number of rows.
        difference: to the reference, over the images that both have; None for the reference itself
            and where they share none.
        p_holm: p value of the difference, adjusted for all methods that this metric compares with
            the reference; None where there is none.
        images_paired: number of images that both have.
    """

    interval: Interval | None = None
    images: int = 0
    rows: int = 0
    difference: Difference | None = None
    p_holm: float | None = None
    images_paired: int = 0


@dataclass(frozen=True, eq=False)
class Band:
    """A curve with its interval at each point; all (F,)."""

    fractions: Array
    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True, eq=False)
class _Measured:
    """The rows of one method, sorted, so that the order they came in changes no last digit."""

    owners: Samples
    values: Array

    @classmethod
    def of(cls, caller: str, rows: Rows | CurveRows, columns: int) -> _Measured:
        owners = np.asarray(rows.owners, dtype=np.int64)
        values = np.asarray(rows.values, dtype=np.float64)
        if owners.ndim != 1 or values.shape != (len(owners), columns):
            raise InputError(
                f"{caller}: expected owners (N,) and values (N, {columns}), got {owners.shape} and "
                f"{values.shape}."
            )
        if not np.isfinite(values).all():
            raise InputError(f"{caller}: the values hold NaN or infinity; leave those rows out.")
        order = np.lexsort((*values.T, owners))
        return cls(owners[order], values[order])

    @property
    def samples(self) -> Samples:
        return np.unique(self.owners)

    def within(self, samples: Samples) -> tuple[npt.NDArray[np.intp], Array]:
        """Of the rows of these samples: the place of each one's sample among them, and values."""
        kept = np.isin(self.owners, samples)
        return np.searchsorted(samples, self.owners[kept]), self.values[kept]


def compare(
    metric: Metric,
    rows: Mapping[str, Rows],
    *,
    reference: str,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Finding]:
    r"""Each method's figure with its interval, and its difference to a reference method.

    The bootstrap draws whole images, as many as there are, with replacement. Methods with the same
    images see the same draws, and a difference is taken resample by resample over the images that
    both methods have, so it is paired:

    .. math:: d^*_r = T(\text{rows of the method in resample } r)
                    - T(\text{rows of the reference in resample } r)

    with T the metric's statistic over all rows of the images drawn. Intervals are percentiles, p
    values those of :func:`captum_clip.metrics.paired_difference`, adjusted by Holm over all methods
    but the reference. One image alone has neither interval nor p value (both NaN). Resamples where
    the statistic means nothing are left out.

    Args:
        metric: the statistic and its name.
        rows: method -> its rows; none where it could not be measured.
        reference: the method that the others are compared with.
        level: of the intervals.
        resamples: number of resamples.
        seed: of the draws.

    Returns:
        Method -> finding, in the given order.

    Raises:
        InputError: a reference that is not among the methods, rows of another shape than the
            statistic takes, NaN, a level outside (0, 1) or no resample.

    Source: Efron and Tibshirani 1993, *An Introduction to the Bootstrap*; Holm 1979.

    Example:
        >>> import numpy as np
        >>> from captum_clip.evaluation.metric import Metric, Rows
        >>> from captum_clip.evaluation.statistics import compare
        >>> pointing = Metric("pointing", "mean", "high", "maximum inside the mask")
        >>> images = np.arange(4)
        >>> found = compare(
        ...     pointing,
        ...     {"ours": Rows(images, np.ones((4, 1))), "theirs": Rows(images, np.zeros((4, 1)))},
        ...     reference="ours",
        ... )
        >>> print(found["ours"].interval, found["theirs"].difference)
        1.00 [1.00, 1.00] -1.00 [-1.00, -1.00]
    """
    caller = f"compare: {metric.name}"
    check_resampling(caller, level, resamples)
    statistic = _statistic(caller, metric)
    if reference not in rows:
        raise InputError(
            f"{caller}: the reference {reference!r} is not among the methods {list(rows)}."
        )
    measured = {
        name: _Measured.of(f"{caller} of {name!r}", given, statistic.columns)
        for name, given in rows.items()
        if len(given.owners) or len(given.values)
    }
    own = {name: given.samples for name, given in measured.items()}
    common = {name: np.intersect1d(own[name], own.get(reference, own[name][:0])) for name in own}
    wanted = [(own[name], [name]) for name in own]
    wanted += [(common[name], [name, reference]) for name in own if len(common[name])]
    tables = _tables(statistic, measured, wanted, resamples, seed)

    found = {name: Finding() for name in rows}
    for name, samples in own.items():
        paired = common[name]
        difference = None
        if name != reference and len(paired):
            table = tables[paired.tobytes()]
            difference = _difference(table[name], table[reference], len(paired), level)
        interval = _interval(tables[samples.tobytes()][name], len(samples), level)
        sizes = len(samples), len(measured[name].owners)
        found[name] = Finding(interval, *sizes, difference, images_paired=len(paired))
    return _adjusted(found)


def curve_band(
    rows: CurveRows,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    caller: str = "curve_band",
) -> Band:
    """The mean curve of all rows, with the bootstrap interval over images at each point.

    Args:
        rows: one or more curves.
        level: of the interval, for each point alone.
        resamples: number of resamples.
        seed: of the draws.
        caller: named in errors.

    Raises:
        InputError: no curve, shapes that do not belong together, NaN, a level outside (0, 1) or no
            resample.
    """
    check_resampling(caller, level, resamples)
    fractions = np.asarray(rows.fractions, dtype=np.float64)
    if fractions.ndim != 1 or not len(rows.owners):
        raise InputError(
            f"{caller}: expected one or more curves and fractions (F,), got {len(rows.owners)} "
            f"curves and fractions {fractions.shape}."
        )
    measured = _Measured.of(caller, rows, len(fractions))
    samples = measured.samples
    index, values = measured.within(samples)
    sums, counts = sums_of(index, values, len(samples)), np.bincount(index)
    blocks = resample_weights(len(samples), resamples, seed)
    means = np.concatenate([(w @ sums) / (w @ counts)[:, None] for w in blocks])  # (R, F)
    ends = [_ends(means[:, i], len(samples), level) for i in range(len(fractions))]
    low, high = np.array(ends).T
    return Band(fractions, sums.sum(0) / counts.sum(), low, high)


def _statistic(caller: str, metric: Metric) -> Weighted:
    if metric.statistic not in STATISTICS:
        raise InputError(
            f"{caller}: there is no statistic {metric.statistic!r}; expected one of "
            f"{', '.join(STATISTICS)}."
        )
    return STATISTICS[metric.statistic]


def _tables(
    statistic: Weighted,
    measured: Mapping[str, _Measured],
    wanted: Sequence[tuple[Samples, Sequence[str]]],
    resamples: int,
    seed: int,
) -> dict[bytes, dict[str, Array]]:
    """For each set of samples what each method of interest has over it, drawn once for all."""
    sets: dict[bytes, tuple[Samples, dict[str, None]]] = {}
    for samples, names in wanted:
        sets.setdefault(samples.tobytes(), (samples, {}))[1].update(dict.fromkeys(names))
    return {
        key: _resampled(statistic, {n: measured[n] for n in names}, samples, resamples, seed)
        for key, (samples, names) in sets.items()
    }


def _resampled(
    statistic: Weighted,
    methods: Mapping[str, _Measured],
    samples: Samples,
    resamples: int,
    seed: int,
) -> dict[str, Array]:
    """Each method's statistic (1 + R,): over the samples themselves, then over each resample."""
    count = len(samples)
    prepared = [statistic.prepare(*rows.within(samples), count) for rows in methods.values()]
    blocks = chain([np.ones((1, count))], resample_weights(count, resamples, seed))
    found = [[figures(weights) for figures in prepared] for weights in blocks]
    return {
        name: np.concatenate(parts)
        for name, parts in zip(methods, zip(*found, strict=True), strict=True)
    }


def _interval(values: Array, images: int, level: float) -> Interval:
    return Interval(float(values[0]), *_ends(values[1:], images, level))


def _difference(own: Array, other: Array, images: int, level: float) -> Difference:
    """Of two methods' statistics (1 + R,) over the same draws."""
    rounding = _ROUNDING * np.maximum(np.abs(own), np.abs(other))
    gaps = np.where(np.abs(own - other) <= rounding, 0.0, own - other)
    resampled = gaps[1:][np.isfinite(gaps[1:])]
    tested = images > 1 and len(resampled) > 0 and bool(np.isfinite(gaps[0]))
    ends = _ends(resampled, images, level)
    return Difference(float(gaps[0]), *ends, p_value(resampled) if tested else np.nan)


def _ends(resampled: Array, images: int, level: float) -> tuple[float, float]:
    """NaN for one image, which says nothing of others."""
    finite = resampled[np.isfinite(resampled)]
    return interval_ends(finite, level) if images > 1 and len(finite) else (np.nan, np.nan)


def _adjusted(found: Mapping[str, Finding]) -> dict[str, Finding]:
    """The same findings with Holm's p values over all that were tested."""
    tested = {
        name: finding.difference.p_value
        for name, finding in found.items()
        if finding.difference is not None and np.isfinite(finding.difference.p_value)
    }
    adjusted = dict(zip(tested, holm(list(tested.values())).tolist(), strict=True))
    return {name: replace(given, p_holm=adjusted.get(name)) for name, given in found.items()}
