"""From sums to files: statistics, mean maps, and how far they agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
import torch

from .. import maps, metrics
from ..runs import to_npz
from .accumulator import Accumulator, Array, correlation
from .jobs import Job
from .measures import ALWAYS, VALUE_ENTROPY
from .tables import to_csv

STATISTICS: Final = "statistics.csv"
CORRELATIONS: Final = "correlations.csv"
CENTRING: Final = "centring.csv"
MEAN_MAPS: Final = "mean_maps"
DTYPE: Final = "float32"  # of the stretched maps at full size that are measured


@dataclass(frozen=True, eq=False)
class Summary:
    """All that was found for one job.

    Attributes:
        job: the model, method and targets.
        sums: over all images that could be read.
        skipped: number of images that were left out.
    """

    job: Job
    sums: Accumulator
    skipped: int

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the model's own maps."""
        height, width = self.sums.sums["raw"].shape[-2:]
        return int(height), int(width)


def statistics_csv(summaries: Sequence[Summary]) -> bytes:
    """One row for each model, method and target; results only."""
    return _table([row for summary in summaries for row in _statistics(summary)])


def _statistics(summary: Summary) -> Iterable[dict[str, Any]]:
    job, sums = summary.job, summary.sums
    nothing = np.full(len(job.target), np.nan)
    columns = {name: sums.mean(name) for name in ("score", *ALWAYS)}
    columns[VALUE_ENTROPY] = sums.mean(VALUE_ENTROPY) if job.value_entropy else nothing
    for kind, suffix in (("stretched", ""), ("raw", "_raw")):
        for measure in ("corner_bias", "centre_bias"):
            columns[f"{measure}{suffix}"] = biases(measure, sums.mean(kind))
    for index, name in enumerate(job.target.names):
        yield {
            "model": job.label,
            "method": job.method,
            "target": name,
            "images": sums.images,
            "skipped": summary.skipped,
            "constant": int(sums.constant[index]),
            **{column: float(values[index]) for column, values in columns.items()},
            "dtype": DTYPE,
            "height": job.size[0],
            "width": job.size[1],
            "grid_height": summary.grid[0],
            "grid_width": summary.grid[1],
        }


def biases(measure: str, mean: Array) -> Array:
    """A bias of each mean map (K, h, w); NaN where there is no mean."""
    finite = np.asarray(np.isfinite(mean).all((-2, -1)))
    values = getattr(metrics, measure)(torch.from_numpy(np.where(finite[:, None, None], mean, 0)))
    return np.where(finite, values.numpy(), np.nan)


def mean_maps_npz(summary: Summary) -> bytes:
    """The mean maps of one job on its own grid; see docs/studies.md for their full size."""
    return to_npz(
        {
            "names": np.array(summary.job.target.names, dtype=np.str_),
            "raw": summary.sums.mean("raw"),
            "stretched": summary.sums.mean("stretched"),
            "size": np.array(summary.job.size),
            "images": np.array(summary.sums.images),
            "constant": summary.sums.constant,
        }
    )


def correlations_csv(summaries: Sequence[Summary]) -> bytes:
    """Correlation of the mean maps of every two jobs, for each target, on the finer grid."""
    rows = []
    for first, second in combinations(summaries, 2):
        height, width = (max(sides) for sides in zip(first.grid, second.grid, strict=True))
        stretched, raw = (
            correlation(*(_flat(s.sums.mean(kind), (height, width)) for s in (first, second)))
            for kind in ("stretched", "raw")
        )
        for index, name in enumerate(first.job.target.names):
            rows.append(
                {
                    "model_a": first.job.label,
                    "method_a": first.job.method,
                    "model_b": second.job.label,
                    "method_b": second.job.method,
                    "target": name,
                    "correlation": float(stretched[index]),
                    "correlation_raw": float(raw[index]),
                    "grid_height": height,
                    "grid_width": width,
                }
            )
    return _table(rows)


def _flat(mean: Array, size: tuple[int, int]) -> Array:
    """Mean maps (K, h, w) -> (K, H * W)."""
    resized = maps.upsample(torch.from_numpy(np.where(np.isfinite(mean), mean, 0)), size).numpy()
    return np.asarray(resized.reshape(len(mean), -1), dtype=np.float64)


def centring_csv(summaries: Sequence[Summary]) -> bytes:
    """For each emotion how far its row and its maps move when the mean row is taken away."""
    rows = []
    for summary in summaries:
        job, sums = summary.job, summary.sums
        bank = job.target.bank.double().numpy()
        mean, correlations = sums.mean("stretched"), sums.mean("correlation")
        for pair, (plain, centred) in enumerate(job.centred):
            means = [_flat(mean[[index]], summary.grid) for index in (plain, centred)]
            rows.append(
                {
                    "model": job.label,
                    "method": job.method,
                    "emotion": job.target.names[plain],
                    "images": int(sums.correlated[pair]),
                    "cosine": _cosine(bank[plain], bank[centred]),
                    "map_correlation": float(correlations[pair]),
                    "mean_map_correlation": float(correlation(*means)[0]),
                }
            )
    return _table(rows)


def _cosine(a: Array, b: Array) -> float:
    """Of two rows that are of unit length but for their rounding."""
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _table(rows: Sequence[dict[str, Any]]) -> bytes:
    return to_csv(list(rows[0]), [list(row.values()) for row in rows])
