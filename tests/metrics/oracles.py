"""Plain implementations that several tests compare with."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def ranks(values: Tensor) -> list[float]:
    """The mean place of each value among all, counted one by one."""
    flat = values.flatten().tolist()
    return [sum(v < x for v in flat) + (1 + sum(v == x for v in flat)) / 2 for x in flat]


def spearman(first: Tensor, second: Tensor) -> float:
    """The linear correlation of ranks."""
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])
