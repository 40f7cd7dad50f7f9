"""What a metric is to the tables: its name, its statistic, and the choices that were made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

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
            :data:`captum_clip.evaluation.resampling.STATISTICS`, which says the parts it needs.
        constant: what an answer gets that is always the same, where that is known beforehand;
            nothing that is no better is bold.
    """

    name: str
    protocol: str
    better: Literal["high", "low", "none"] = "high"
    statistic: StatisticName = "mean"
    constant: float | None = None
