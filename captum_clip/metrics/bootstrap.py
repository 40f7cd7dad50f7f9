"""Intervals of means and of differences: the bootstrap over images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Statistic = Callable[[Array], Array]
"""How often each cluster counts, (r, clusters) -> the figures (r,) of such samples."""

_BLOCK: Final = 2**21  # weights held at a time


class Interval(NamedTuple):
    """A mean with its interval; prints as ``0.85 [0.80, 0.90]``."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Difference(NamedTuple):
    """A mean difference with its interval and its p value; prints as ``+0.05 [+0.01, +0.09]``."""

    mean: float
    low: float
    high: float
    p_value: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def bootstrap_mean(
    values: npt.ArrayLike,
    groups: Sequence[Any] | npt.NDArray[Any] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean of values with its percentile interval over resampled groups (Efron 1979).

    Values that come from one image are not independent, so whole images are drawn, with
    replacement; the mean of a resample is over all values of the images drawn.

    Args:
        values: (N,) finite numbers.
        groups: (N,) the image that each value comes from; each its own where none is given.
        level: of the interval.
        resamples: number of resamples.
        seed: of the resampling.

    Returns:
        Mean, lower and upper end.

    Raises:
        InputError: no value, NaN or infinity, groups of another length, a level outside (0, 1) or
            no resample.

    Example:
        >>> from captum_clip.metrics import bootstrap_mean
        >>> print(bootstrap_mean([1.0, 1.0, 1.0]))
        1.00 [1.00, 1.00]
    """
    flat, index = _checked("bootstrap_mean", values, groups, level, resamples)
    return interval_of(_means(flat, index, resamples, seed), level)


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    groups: Sequence[Any] | npt.NDArray[Any] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    r"""The mean difference of two methods on the same images, with interval and p value.

    Resamples draw whole images, as in :func:`bootstrap_mean`, and both methods at once. With d* the
    mean difference of a resample and R their number,

    .. math:: p = \min\Bigl(1, \; 2 \, \frac{1 + \min(|d^* \le 0|, |d^* \ge 0|)}{R + 1}\Bigr)

    so p falls below 1 - `level` where the interval leaves out 0 (up to the one that is added), and
    is never below 2 / (R + 1).

    Args:
        first: (N,) finite numbers.
        second: (N,) of the same images in the same order.
        groups: (N,) the image that each pair comes from; each its own where none is given.
        level: of the interval.
        resamples: number of resamples.
        seed: of the resampling.

    Returns:
        Mean of first - second, lower and upper end, two-sided p value.

    Raises:
        InputError: as :func:`bootstrap_mean`, or different numbers of values.

    Source: Efron and Tibshirani 1993, *An Introduction to the Bootstrap*, chapters 13 and 16.

    Example:
        >>> from captum_clip.metrics import paired_difference
        >>> paired_difference([3.0, 2.0, 4.0], [1.0, 0.0, 2.0], resamples=999)
        Difference(mean=2.0, low=2.0, high=2.0, p_value=0.002)
    """
    caller = "paired_difference"
    own, index = _checked(caller, first, groups, level, resamples)
    other, _ = _checked(caller, second, groups, level, resamples)
    if len(own) != len(other):
        raise InputError(
            f"{caller}: {len(own)} and {len(other)} values; expected one per method and image."
        )
    return difference_of(_means(own - other, index, resamples, seed), level)


def holm(p_values: npt.ArrayLike) -> Array:
    r"""P values of a family of tests, adjusted by Holm's step-down procedure (Holm 1979).

    .. math:: \tilde p_{(j)} = \max_{i \le j} \min\bigl(1, (m - i + 1) \, p_{(i)}\bigr)

    with :math:`p_{(1)} \le ... \le p_{(m)}`. Rejecting what is at most :math:`\alpha` keeps the
    chance of any false rejection below :math:`\alpha`, whatever the tests have in common.

    Args:
        p_values: (m,) from 0 to 1.

    Returns:
        (m,) in the given order.

    Raises:
        InputError: no such numbers.

    Example:
        >>> from captum_clip.metrics import holm
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    given = np.asarray(p_values, dtype=np.float64)
    if given.ndim != 1 or not ((given >= 0) & (given <= 1)).all():
        raise InputError(f"holm: expected p values (m,) from 0 to 1, got {p_values!r}.")
    order = np.argsort(given, kind="stable")
    steps = np.arange(len(given), 0, -1)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps * given[order]))
    return adjusted


def check_resampling(caller: str, level: float, resamples: int) -> None:
    """A level in (0, 1), and resamples."""
    if not 0 < level < 1 or resamples < 1:
        raise InputError(
            f"{caller}: expected a level in (0, 1) and resamples from 1, got {level} and "
            f"{resamples}."
        )


def bootstrap(
    statistics: Sequence[Statistic], clusters: int, *, resamples: int, seed: int
) -> Array:
    """Statistics of clusters over all of them, then over each bootstrap resample.

    A resample draws as many clusters as there are, with replacement. All statistics see the same
    draws, which depend on nothing but the number of clusters, `resamples` and `seed`; so
    differences of two rows of the result are paired.

    Returns:
        (statistics, 1 + resamples), the statistic over all clusters first.
    """
    blocks = chain([np.ones((1, clusters))], _draws(clusters, resamples, seed))
    figures = [[statistic(weights) for statistic in statistics] for weights in blocks]
    return np.concatenate([np.stack(block) for block in figures], axis=1)


def _draws(clusters: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each cluster is in each resample: blocks (r, clusters) that fit in memory."""
    generator = np.random.default_rng(seed)
    height = max(1, _BLOCK // clusters)
    for start in range(0, resamples, height):
        rows = min(height, resamples - start)
        drawn = generator.integers(clusters, size=(rows, clusters))
        drawn += clusters * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * clusters)
        yield times.reshape(rows, clusters).astype(np.float64)


def cluster_sums(index: Index, values: Array, clusters: int) -> Array:
    """The sums (clusters, C) of the rows (N, C) of each cluster, whose number is in `index`."""
    columns = [np.bincount(index, weights=column, minlength=clusters) for column in values.T]
    return np.stack(columns, axis=1)


def interval_of(figures: Array, level: float) -> Interval:
    """A statistic with its percentile interval, from (1 + R,) of :func:`bootstrap`.

    Resamples in which the statistic means nothing, NaN, are left out.
    """
    return Interval(float(figures[0]), *_ends(figures[1:], level))


def difference_of(figures: Array, level: float) -> Difference:
    """A difference with interval and two-sided p value, from (1 + R,) differences."""
    resampled = figures[1:][np.isfinite(figures[1:])]
    rarer = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    tested = len(resampled) > 0 and np.isfinite(figures[0])
    p_value = min(1.0, 2 * (1 + rarer) / (len(resampled) + 1)) if tested else np.nan
    return Difference(float(figures[0]), *_ends(resampled, level), p_value)


def _ends(resampled: Array, level: float) -> tuple[float, float]:
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return np.nan, np.nan
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(
    caller: str, values: npt.ArrayLike, groups: Any, level: float, resamples: int
) -> tuple[Array, Index]:
    """The values and the number of the group of each, both (N,)."""
    flat = np.asarray(values, dtype=np.float64)
    if flat.ndim != 1 or not len(flat) or not np.isfinite(flat).all():
        raise InputError(
            f"{caller}: expected one or more finite numbers (N,), got shape {flat.shape}."
        )
    owners = np.arange(len(flat)) if groups is None else np.asarray(groups)
    if owners.shape != flat.shape:
        raise InputError(f"{caller}: {len(flat)} values, but groups {owners.shape}.")
    check_resampling(caller, level, resamples)
    return flat, np.unique(owners, return_inverse=True)[1]


def _means(flat: Array, index: Index, resamples: int, seed: int) -> Array:
    """The mean of all values, then of the values of groups drawn with replacement: (1 + R,)."""
    clusters = int(index.max()) + 1
    sums = cluster_sums(index, np.stack([flat, np.ones_like(flat)], axis=1), clusters)

    def mean(weights: Array) -> Array:
        total, count = (weights @ sums).T
        means: Array = total / count
        return means

    figures: Array = bootstrap([mean], clusters, resamples=resamples, seed=seed)[0]
    return figures
