"""Statistics of rows, and the bootstrap over images: intervals, differences, p values."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ..checks import check_integer, check_interval, expect, expecting
from ..errors import public

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Statistic = Callable[[Array], Array]
"""How often each image counts, (r, images) -> the figures (r,) of such samples."""
StatisticName = Literal[
    "mean",
    "ratio",
    "mean_iou",
    "class_iou",
    "lowest_class",
    "highest_class",
    "spearman",
    "balanced_accuracy",
    "auc",
    "spearman_within",
    "agreement_within",
]

_BLOCK: Final = 2**21  # weights in memory at a time


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


@public("bootstrap_mean")
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
        InputError: no value, NaN or infinity, groups of another length, a level outside (0, 1), no
            resample, or a seed that is no whole number from 0 on.

    Example:
        >>> print(bootstrap_mean([1.0, 1.0, 1.0]))
        1.00 [1.00, 1.00]
    """
    means = _means(values, groups, level, resamples, seed)
    return interval_of(means, level)


@public("paired_difference")
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
        groups: as of :func:`bootstrap_mean`, and so are the others.
        level: of the interval.
        resamples: number of resamples.
        seed: of the resampling.

    Returns:
        Mean of first - second, lower and upper end, two-sided p value.

    Raises:
        InputError: as :func:`bootstrap_mean`, or different numbers of values.

    Source: Efron and Tibshirani 1993, *An Introduction to the Bootstrap*, chapters 13 and 16.

    Example:
        >>> paired_difference([3.0, 2.0, 4.0], [1.0, 0.0, 2.0], resamples=999)
        Difference(mean=2.0, low=2.0, high=2.0, p_value=0.002)
    """
    one, other = (_numbers(values) for values in (first, second))
    expect(one.shape == other.shape, f"{one.size} values, one per method and image", other)
    means = _means(one - other, groups, level, resamples, seed)
    return difference_of(means, level)


@public("holm")
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
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    given = _numbers(p_values)
    inside = given.ndim == 1 and ((given >= 0) & (given <= 1)).all()
    expect(inside, "p values (m,) from 0 to 1", p_values)
    order = np.argsort(given, kind="stable")
    steps = np.arange(len(given), 0, -1)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps * given[order]))
    return adjusted


def bootstrap(statistics: Sequence[Statistic], images: int, *, resamples: int, seed: int) -> Array:
    """Statistics of images over all of them, then over each bootstrap resample.

    A resample draws as many images as there are, with replacement. All statistics see the same
    draws, which depend on nothing but the number of images, `resamples` and `seed`; so
    differences of two rows of the result are paired.

    Returns:
        (statistics, 1 + resamples), the statistic over all images first.
    """
    blocks = chain([np.ones((1, images))], _draws(images, resamples, seed))
    figures = [[statistic(weights) for statistic in statistics] for weights in blocks]
    return np.concatenate([np.stack(block) for block in figures], axis=1)


def _draws(images: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each image is in each resample: blocks (r, images) that fit in memory."""
    generator = np.random.default_rng(seed)
    height = max(1, _BLOCK // images)
    for start in range(0, resamples, height):
        rows = min(height, resamples - start)
        drawn = generator.integers(images, size=(rows, images))
        drawn += images * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * images)
        yield times.reshape(rows, images).astype(np.float64)


def interval_of(figures: Array, level: float) -> Interval:
    """A statistic with its percentile interval, from (1 + R,) of :func:`bootstrap`.

    Resamples in which the statistic means nothing, NaN, are left out.
    """
    finite = figures[1:][np.isfinite(figures[1:])]
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(finite, ends) if len(finite) else (np.nan, np.nan)
    return Interval(float(figures[0]), float(low), float(high))


def difference_of(figures: Array, level: float) -> Difference:
    """A difference with interval and two-sided p value, from (1 + R,) differences."""
    resampled = figures[1:][np.isfinite(figures[1:])]
    rarer = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    tested = len(resampled) > 0 and np.isfinite(figures[0])
    p_value = min(1.0, 2 * (1 + rarer) / (len(resampled) + 1)) if tested else np.nan
    return Difference(*interval_of(figures, level), p_value)


def _numbers(values: Any) -> Array:
    with expecting("finite numbers (N,)", values):  # a graph, 10**400
        return np.asarray(values, dtype=np.float64)


def _means(values: npt.ArrayLike, groups: Any, level: float, resamples: int, seed: int) -> Array:
    """The mean of all values, then of the values of groups drawn with replacement: (1 + R,)."""
    check_interval("a level", level, "(0, 1)")
    check_integer("resamples", resamples)
    check_integer("a seed", seed, least=0)  # NumPy takes lists, and crashes over some
    flat = _numbers(values)
    finite = flat.ndim == 1 and len(flat) and np.isfinite(flat).all()
    expect(finite, "one or more finite numbers (N,)", values)
    with expecting("groups (N,)", groups):  # None among numbers, lists of different lengths
        owners = np.arange(len(flat)) if groups is None else np.asarray(groups)
        names, index = np.unique(owners, return_inverse=True)
    expect(owners.shape == flat.shape, f"groups of {len(flat)} values", owners)
    mean = STATISTICS["mean"].prepare(index, flat[:, None], len(names))
    figures: Array = bootstrap([mean], len(names), resamples=resamples, seed=seed)[0]
    return figures


@dataclass(frozen=True)
class RowStatistic:
    """A statistic of rows, each of which belongs to an image.

    `prepare` takes the image (N,) of each row, the rows (N, C) and the number of images, and
    gives the statistic of how often each image counts; NaN where it means nothing.
    """

    parts: tuple[str, ...]  # the columns of the rows, by their names in the long table
    prepare: Callable[[Index, Array, int], Statistic]


def _additive(
    parts: tuple[str, ...], addends: Callable[[Array], Array], figure: Callable[..., Array]
) -> RowStatistic:
    """A `figure` of the D sums (r,) over rows, so over images, of their `addends` (N, D)."""

    def prepare(index: Index, values: Array, images: int) -> Statistic:
        columns = addends(values).T
        sums = [np.bincount(index, weights=column, minlength=images) for column in columns]
        return lambda weights: figure(*(weights @ np.stack(sums, axis=1)).T)

    return RowStatistic(parts, prepare)


def _quotient(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole != 0)


def _mean_iou(
    true_positive: Array, false_positive: Array, false_negative: Array, true_negative: Array
) -> Array:
    wrong = false_positive + false_negative
    of_object = _quotient(true_positive, true_positive + wrong)
    return (of_object + _quotient(true_negative, true_negative + wrong)) / 2


def _of_classes(pick: Callable[..., Array], index: Index, values: Array, images: int) -> Statistic:
    """The mean, or another, of the classes' IoU of sums over their rows, where there is a union."""
    classes, labels = np.unique(values[:, 0], return_inverse=True)
    cells, size = index * len(classes) + labels, images * len(classes)
    counts = [np.bincount(cells, weights=part, minlength=size) for part in values[:, 1:].T]
    sums = np.stack(counts).reshape(2, images, -1)  # (2, images, classes)
    sums = sums[..., sums[1].any(0)]
    whole = _quotient(*sums.sum(1))

    def figure(weights: Array) -> Array:
        # Rare classes are missing in many resamples, whose mean would be one over easier classes.
        shares = _quotient(*(weights @ sums))  # (r, classes)
        shares = np.where(np.isnan(shares), whole, shares)
        return pick(shares, axis=1) if len(whole) else np.full(len(weights), np.nan)

    return figure


def _signs(values: Array) -> Array:
    """Agreement and number of the rows with a positive and of those with a negative effect."""
    mass, effect = np.sign(values).T
    right = (1 + mass * effect) / 2  # no mass has no sign and counts one half
    rises, falls = effect > 0, effect < 0
    return np.stack([right * rises, rises, right * falls, falls], axis=1)


def _balanced_accuracy(risen: Array, rises: Array, fallen: Array, falls: Array) -> Array:
    return (_quotient(risen, rises) + _quotient(fallen, falls)) / 2


def _spearman(index: Index, values: Array, images: int) -> Statistic:
    """Spearman's rank correlation of two columns, with no sorting in any resample."""
    first, second = (np.unique(column, return_inverse=True)[1] for column in values.T)

    def correlation(image_weights: Array) -> float:
        weights = image_weights[index]
        x, y = _centred_ranks(first, weights), _centred_ranks(second, weights)
        size = np.sqrt((weights * x) @ x * ((weights * y) @ y))
        return float(np.clip((weights * x) @ y / size, -1, 1)) if size else np.nan

    return lambda weights: np.array([correlation(row) for row in weights])


def _centred_ranks(order: Index, weights: Array) -> Array:
    """Average ranks (N,) less their mean, of rows that count `weights` (N,) times.

    Of W rows, those of one value have the ranks from b + 1 to b + w, with b the weight of all
    smaller ones, so b + (w + 1) / 2 each; the mean of all ranks is (W + 1) / 2. Whole and half
    numbers are exact, so equal orders give equal correlations to the last digit. `order` (N,) has
    the place of each row's value among the distinct values, from 0.
    """
    weight = np.bincount(order, weights=weights)
    up_to = np.cumsum(weight)
    ranks: Array = (up_to - weight / 2 - up_to[-1] / 2)[order]
    return ranks


def _auc(index: Index, values: Array, images: int) -> Statistic:
    """The chance that the mass of a positive effect is above that of a negative one."""
    order, effect = np.unique(values[:, 0], return_inverse=True)[1], np.sign(values[:, 1])

    def area(image_weights: Array) -> float:
        weights = image_weights[index]
        rises, falls = (np.bincount(order, weights=weights * (effect == s)) for s in (1, -1))
        pairs = rises.sum() * falls.sum()
        below = np.cumsum(falls) - falls / 2  # of equal masses one half
        return float(rises @ below / pairs) if pairs else np.nan

    return lambda weights: np.array([area(row) for row in weights])


def _within(figures_of: Callable[[Array, Array], Array]) -> Callable[..., Statistic]:
    """The mean over images of a figure of each one's rows: `figures_of` (images, most rows) both.

    Rows that an image lacks are NaN.
    """

    def prepare(index: Index, values: Array, images: int) -> Statistic:
        counts = np.bincount(index, minlength=images)
        order, starts = np.argsort(index, kind="stable"), np.cumsum(counts) - counts
        table = np.full((2, images, counts.max()), np.nan)
        places = np.arange(len(index)) - np.repeat(starts, counts)
        table[:, index[order], places] = values[order].T
        figures = figures_of(*table)
        return lambda weights: weights @ figures / weights.sum(1)

    return prepare


def _spearman_within(mass: Array, effect: Array) -> Array:
    """Spearman's correlation in each image; 0 where one of both is the same in all rows.

    An average rank less the mean rank is half of how many are below less how many are above.
    """
    x, y = (np.nansum(np.sign(c[:, :, None] - c[:, None]), axis=2) / 2 for c in (mass, effect))
    size = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return np.nan_to_num(_quotient((x * y).sum(1), size))


def _agreement_within(mass: Array, effect: Array) -> Array:
    right = (1 + np.sign(mass) * np.sign(effect)) / 2  # no mass has no sign and counts one half
    return np.asarray(np.nanmean(right, axis=1))


_PIXELS: Final = ("true_positive", "false_positive", "false_negative", "true_negative")
_CLASS: Final = ("class", "intersection", "union")
_EFFECT: Final = ("mass", "effect")
STATISTICS: Final[dict[StatisticName, RowStatistic]] = {
    "mean": _additive(("",), lambda values: np.hstack([values, np.ones_like(values)]), _quotient),
    "ratio": _additive(("numerator", "denominator"), np.asarray, _quotient),
    "mean_iou": _additive(_PIXELS, np.asarray, _mean_iou),
    "class_iou": RowStatistic(_CLASS, partial(_of_classes, np.mean)),
    "lowest_class": RowStatistic(_CLASS, partial(_of_classes, np.min)),
    "highest_class": RowStatistic(_CLASS, partial(_of_classes, np.max)),
    "spearman": RowStatistic(_EFFECT, _spearman),
    "balanced_accuracy": _additive(_EFFECT, _signs, _balanced_accuracy),
    "auc": RowStatistic(_EFFECT, _auc),
    "spearman_within": RowStatistic(_EFFECT, _within(_spearman_within)),
    "agreement_within": RowStatistic(_EFFECT, _within(_agreement_within)),
}
"""By name: the mean of one column, the ratio of the sums of two, the mean IoU of the sums of four
counts of pixels, of classes' intersection over union the mean, the lowest and the highest; of mass
and effect Spearman's rank correlation, the mean share of right signs among the positive and among
the negative effects, and the area under the ROC curve of the effect's sign. All over all rows of
the images drawn, but those "within" an image, which are means over images: Spearman's rank
correlation (0 where mass or effect is constant) and the share of right signs."""
