"""A rank correlation of the pairs of all scenes together, with its interval over scenes.

It also rewards knowing how high a pair scores, which the correlation within a scene does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from captum_clip.folders.bootstrap import interval_of


def pooled_spearman(scenes: Sequence[np.ndarray], resamples: int) -> tuple[float, float, float]:
    """Spearman's of both columns of all scenes (N, 2), and its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).integers(len(scenes), size=(resamples, len(scenes)))
    samples = [scenes, *([scenes[i] for i in row] for row in drawn)]
    return tuple(interval_of(np.array([_rank(sample) for sample in samples]), 0.95))


def _rank(scenes: Sequence[np.ndarray]) -> float:
    rows = np.concatenate(scenes)
    return float(spearmanr(rows[:, 0], rows[:, 1]).statistic)
