"""Statistics of rows that count several times: what a resample makes of each metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .metric import StatisticName

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
OfWeights = Callable[[Array], Array]


@dataclass(frozen=True)
class Weighted:
    """A statistic of rows whose samples count several times.

    Attributes:
        columns: number of columns of the rows.
        prepare: the sample (N,) of each row, the rows (N, C) and the number S of samples ->
            a function from weights (r, S) to figures (r,); NaN where the statistic means nothing.
    """

    columns: int
    prepare: Callable[[Index, Array, int], OfWeights]


def sums_of(index: Index, values: Array, count: int) -> Array:
    """The sums (S, C) of the rows (N, C) of each sample."""
    columns = [np.bincount(index, weights=column, minlength=count) for column in values.T]
    return np.stack(columns, axis=1)


def _additive(
    columns: int, addends: Callable[[Array], Array], figure: Callable[..., Array]
) -> Weighted:
    """A statistic that is a function of sums over rows, so of sums over samples.

    Args:
        columns: of the rows.
        addends: rows (N, C) -> what is added up, (N, D).
        figure: D sums (r,) -> figures (r,).
    """

    def prepare(index: Index, values: Array, count: int) -> OfWeights:
        sums = sums_of(index, addends(values), count)
        return lambda weights: figure(*(weights @ sums).T)

    return Weighted(columns, prepare)


def _spearman(index: Index, values: Array, count: int) -> OfWeights:
    """Spearman's rank correlation of two columns, with no sorting in any resample."""
    first, second = (np.unique(column, return_inverse=True)[1] for column in values.T)

    def correlation(sample_weights: Array) -> float:
        weights = sample_weights[index]
        x, y = _centred_ranks(first, weights), _centred_ranks(second, weights)
        size = np.sqrt((weights * x) @ x * ((weights * y) @ y))
        return float(np.clip((weights * x) @ y / size, -1, 1)) if size else np.nan

    return lambda weights: np.array([correlation(row) for row in weights])


def _centred_ranks(places: Index, weights: Array) -> Array:
    """Average ranks (N,) less their mean, of rows that count `weights` (N,) times.

    Of W rows, those of one value have the ranks from b + 1 to b + w, with b the weight of all
    smaller ones, so b + (w + 1) / 2 each; the mean of all ranks is (W + 1) / 2. Whole and half
    numbers are exact, so equal orders give equal correlations to the last digit.

    Args:
        places: (N,) of each row's value among the distinct values, from 0.
        weights: (N,) whole numbers.
    """
    each = np.bincount(places, weights=weights)
    up_to = np.cumsum(each)
    ranks: Array = (up_to - each / 2 - up_to[-1] / 2)[places]
    return ranks


def _quotient(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole != 0)


def _mean_iou(
    true_positive: Array, false_positive: Array, false_negative: Array, true_negative: Array
) -> Array:
    """As :class:`captum_clip.metrics.SegmentationScores` has it."""
    wrong = false_positive + false_negative
    of_object = _quotient(true_positive, true_positive + wrong)
    return (of_object + _quotient(true_negative, true_negative + wrong)) / 2


def _counted(values: Array) -> Array:
    return np.hstack([values, np.ones_like(values)])


def _signs(values: Array) -> Array:
    """As :func:`captum_clip.metrics.effect_agreement` counts: rows without an effect do not."""
    mass, effect = np.sign(values).T
    return np.stack([np.where(effect != 0, (1 + mass * effect) / 2, 0), effect != 0], axis=1)


STATISTICS: Final[dict[StatisticName, Weighted]] = {
    "mean": _additive(1, _counted, _quotient),
    "ratio": _additive(2, np.asarray, _quotient),
    "mean_iou": _additive(4, np.asarray, _mean_iou),
    "spearman": Weighted(2, _spearman),
    "sign_agreement": _additive(2, _signs, _quotient),
}
"""By name; what each takes is told in :class:`captum_clip.evaluation.metric.Metric`."""
