"""What a metric is to the tables, and its statistic of rows whose samples count several times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from ..metrics.bootstrap import Array, Index, Statistic, cluster_sums

UNIFORM: Final = "uniform"
"""The baseline whose map is the same everywhere: what an answer gets that is always the same."""
StatisticName = Literal["mean", "ratio", "mean_iou", "spearman", "balanced_accuracy", "auc"]


@dataclass(frozen=True)
class Metric:
    """A column of the tables.

    Attributes:
        name: as "pointing"; lower-case words joined by "_".
        protocol: one line with every choice: fill, threshold, area, chance level, number of draws.
        better: which way is good; "none" where the figure only describes.
        statistic: how the figure comes from the rows of the long table, by its name in
            :data:`STATISTICS`, which says the parts it needs.
        constant: what an answer gets that is always the same, where that is known beforehand;
            nothing that is no better is bold.
    """

    name: str
    protocol: str
    better: Literal["high", "low", "none"] = "high"
    statistic: StatisticName = "mean"
    constant: float | None = None


@dataclass(frozen=True)
class RowStatistic:
    """A statistic of rows, each of which belongs to a sample.

    `prepare` takes the sample (N,) of each row, the rows (N, C) and the number of samples, and
    gives the statistic of how often each sample counts; NaN where it means nothing.
    """

    parts: tuple[str, ...]  # the columns of the rows, by their names in the long table
    prepare: Callable[[Index, Array, int], Statistic]


def _additive(
    parts: tuple[str, ...], addends: Callable[[Array], Array], figure: Callable[..., Array]
) -> RowStatistic:
    """A `figure` of the D sums (r,) over rows, so over samples, of their `addends` (N, D)."""

    def prepare(index: Index, values: Array, samples: int) -> Statistic:
        sums = cluster_sums(index, addends(values), samples)
        return lambda weights: figure(*(weights @ sums).T)

    return RowStatistic(parts, prepare)


def _spearman(index: Index, values: Array, samples: int) -> Statistic:
    """Spearman's rank correlation of two columns, with no sorting in any resample."""
    first, second = (np.unique(column, return_inverse=True)[1] for column in values.T)

    def correlation(sample_weights: Array) -> float:
        weights = sample_weights[index]
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


def _quotient(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole != 0)


def _mean_iou(
    true_positive: Array, false_positive: Array, false_negative: Array, true_negative: Array
) -> Array:
    """As :class:`captum_clip.metrics.SegmentationScores` has it."""
    wrong = false_positive + false_negative
    of_object = _quotient(true_positive, true_positive + wrong)
    return (of_object + _quotient(true_negative, true_negative + wrong)) / 2


def _signs(values: Array) -> Array:
    """Agreement and number of the rows with a positive and of those with a negative effect."""
    mass, effect = np.sign(values).T
    right = (1 + mass * effect) / 2  # no mass has no sign and counts one half
    rises, falls = effect > 0, effect < 0
    return np.stack([right * rises, rises, right * falls, falls], axis=1)


def _balanced_accuracy(risen: Array, rises: Array, fallen: Array, falls: Array) -> Array:
    """As :func:`captum_clip.metrics.effect_agreement` has it."""
    return (_quotient(risen, rises) + _quotient(fallen, falls)) / 2


def _auc(index: Index, values: Array, samples: int) -> Statistic:
    """The chance that the mass of a positive effect is above that of a negative one."""
    order, effect = np.unique(values[:, 0], return_inverse=True)[1], np.sign(values[:, 1])

    def area(sample_weights: Array) -> float:
        weights = sample_weights[index]
        rises, falls = (np.bincount(order, weights=weights * (effect == s)) for s in (1, -1))
        pairs = rises.sum() * falls.sum()
        below = np.cumsum(falls) - falls / 2  # of equal masses one half
        return float(rises @ below / pairs) if pairs else np.nan

    return lambda weights: np.array([area(row) for row in weights])


_PIXELS: Final = ("true_positive", "false_positive", "false_negative", "true_negative")
_EFFECT: Final = ("mass", "effect")
STATISTICS: Final[dict[StatisticName, RowStatistic]] = {
    "mean": _additive(("",), lambda values: np.hstack([values, np.ones_like(values)]), _quotient),
    "ratio": _additive(("numerator", "denominator"), np.asarray, _quotient),
    "mean_iou": _additive(_PIXELS, np.asarray, _mean_iou),
    "spearman": RowStatistic(_EFFECT, _spearman),
    "balanced_accuracy": _additive(_EFFECT, _signs, _balanced_accuracy),
    "auc": RowStatistic(_EFFECT, _auc),
}
"""By name: the mean of one column, the ratio of the sums of two, the mean IoU of the sums of four
counts of pixels; of mass and effect Spearman's rank correlation, the mean share of right signs
among the positive and among the negative effects, and the area under the ROC curve of the effect's
sign. All over all rows of the images drawn."""
