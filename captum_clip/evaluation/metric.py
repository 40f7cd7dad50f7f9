"""A column of the tables: a metric with its protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ..metrics.bootstrap import StatisticName

UNIFORM: Final = "uniform"
"""The baseline whose map is the same everywhere: what an answer gets that is always the same."""


@dataclass(frozen=True)
class Metric:
    """A column of the tables.

    Attributes:
        name: as "pointing"; lower-case words joined by "_".
        protocol: one line with every choice: fill, threshold, area, chance level, number of draws.
        better: which way is good; "none" where the figure only describes.
        statistic: how the figure comes from the rows of the long table, by its name in
            :data:`captum_clip.metrics.bootstrap.STATISTICS`, which has the parts it needs.
        constant: what an answer gets that is always the same, where that is known beforehand;
            nothing that is no better is bold.
    """

    name: str
    protocol: str
    better: Literal["high", "low", "none"] = "high"
    statistic: StatisticName = "mean"
    constant: float | None = None
