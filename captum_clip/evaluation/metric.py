"""What a metric is to the tables: its name, its statistic, and the choices that were made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

StatisticName = Literal["mean", "ratio", "mean_iou", "spearman", "sign_agreement"]


@dataclass(frozen=True)
class Metric:
    """A column of the table.

    Attributes:
        name: as "pointing"; lower-case words joined by "_".
        statistic: how the table's figure comes from the rows, by name:
            "mean" of one column; "ratio" of the sums of two columns; "mean_iou" of the sums of
            true positive, false positive, false negative and true negative pixels; "spearman" and
            "sign_agreement" of two columns (mass and effect) over all rows.
        better: which way is good; "none" where the figure only describes.
        protocol: one line with every choice: fill, threshold, area, chance level, number of draws.
    """

    name: str
    statistic: StatisticName
    better: Literal["high", "low", "none"]
    protocol: str


@dataclass(frozen=True, eq=False)
class Rows:
    """What one metric found for one method: one row a region, image or pair.

    Attributes:
        owners: (N,) int64, the number of the sample that each row comes from; samples are what the
            bootstrap draws.
        values: (N, C) float64; a row that could not be measured is left out, never NaN.
    """

    owners: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CurveRows:
    """The curves of one metric of one method.

    Attributes:
        owners: (N,) as in :class:`Rows`.
        fractions: (F,) what is removed or shown.
        values: (N, F) float64.
    """

    owners: npt.NDArray[np.int64]
    fractions: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
