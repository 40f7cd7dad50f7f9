"""Intervals of means and of differences: the bootstrap over images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Array = npt.NDArray[np.float64]

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
    flat, owners = _checked("bootstrap_mean", values, groups, level, resamples)
    means = _resampled_means(flat, owners, resamples, seed)
    return Interval(float(flat.mean()), *interval_ends(means, level))


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
    one, owners = _checked(caller, first, groups, level, resamples)
    other, _ = _checked(caller, second, groups, level, resamples)
    if len(one) != len(other):
        raise InputError(
            f"{caller}: {len(one)} and {len(other)} values; expected one of each method an image."
        )
    difference = one - other
    means = _resampled_means(difference, owners, resamples, seed)
    return Difference(float(difference.mean()), *interval_ends(means, level), p_value(means))


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


def resample_weights(count: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each of `count` samples is in each resample: blocks (r, count), r in all.

    Each resample draws as many samples as there are, with replacement; the draws depend on nothing
    but the arguments.
    """
    generator = np.random.default_rng(seed)
    height = max(1, _BLOCK // count)
    for start in range(0, resamples, height):
        rows = min(height, resamples - start)
        drawn = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count)
        yield times.reshape(rows, count).astype(np.float64)


def interval_ends(resampled: Array, level: float) -> tuple[float, float]:
    """The percentile interval of a figure's values (R,) in the resamples."""
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def p_value(resampled: Array) -> float:
    """The two-sided p value of a difference with these values (R,) in the resamples."""
    rarer = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    return min(1.0, 2 * (1 + rarer) / (len(resampled) + 1))


def _checked(
    caller: str, values: npt.ArrayLike, groups: Any, level: float, resamples: int
) -> tuple[Array, npt.NDArray[Any]]:
    """The values and the group of each, both (N,)."""
    flat = np.asarray(values, dtype=np.float64)
    if flat.ndim != 1 or not len(flat) or not np.isfinite(flat).all():
        raise InputError(
            f"{caller}: expected one or more finite numbers (N,), got shape {flat.shape}."
        )
    owners = np.arange(len(flat)) if groups is None else np.asarray(groups)
    if owners.shape != flat.shape:
        raise InputError(f"{caller}: {len(flat)} values, but groups {owners.shape}.")
    check_resampling(caller, level, resamples)
    return flat, owners


def _resampled_means(flat: Array, owners: npt.NDArray[Any], resamples: int, seed: int) -> Array:
    """The mean (resamples,) of all values of groups drawn with replacement."""
    _, group = np.unique(owners, return_inverse=True)
    sums, counts = np.bincount(group, weights=flat), np.bincount(group)
    blocks = resample_weights(len(sums), resamples, seed)
    return np.concatenate([(weights @ sums) / (weights @ counts) for weights in blocks])
