"""From sums to files: statistics, mean maps, and how far they agree."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from .. import maps, metrics
from .accumulator import Accumulator, Array, correlation
from .jobs import Job
from .measures import VALUE_ENTROPY

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
        height, width = self.sums.raw.shape[-2:]
        return int(height), int(width)


def statistics_csv(summaries: Sequence[Summary]) -> bytes:
    """One row for each model, method and target; results only."""
    rows = [row for summary in summaries for row in _statistics(summary)]
    return to_csv(rows)


def _statistics(summary: Summary) -> Iterable[dict[str, Any]]:
    job, sums = summary.job, summary.sums
    mean, raw = sums.mean_stretched, sums.mean_raw
    columns: dict[str, Array] = {
        "score": sums.mean_score,
        "spatial_variance": sums.mean_of("spatial_variance"),
        "spatial_entropy": sums.mean_of("spatial_entropy"),
        "value_entropy": (
            sums.mean_of(VALUE_ENTROPY) if job.value_entropy else np.full(len(job.names), np.nan)
        ),
        "corner_bias": biases("corner_bias", mean),
        "centre_bias": biases("centre_bias", mean),
        "corner_bias_raw": biases("corner_bias", raw),
        "centre_bias_raw": biases("centre_bias", raw),
    }
    for place, name in enumerate(job.names):
        yield {
            "model": job.label,
            "method": job.method,
            "target": name,
            "images": sums.images,
            "skipped": summary.skipped,
            "constant": int(sums.constant[place]),
            **{column: float(values[place]) for column, values in columns.items()},
            "dtype": DTYPE,
            "height": summary.job.size[0],
            "width": summary.job.size[1],
            "grid_height": summary.grid[0],
            "grid_width": summary.grid[1],
        }


def biases(measure: str, mean: Array) -> Array:
    """A bias of each mean map (K, h, w); NaN where there is no mean."""
    finite = np.asarray(np.isfinite(mean).all((-2, -1)))
    found = getattr(metrics, measure)(torch.from_numpy(np.where(finite[:, None, None], mean, 0)))
    return np.where(finite, found.numpy(), np.nan)


def mean_maps_npz(summary: Summary) -> bytes:
    """The mean maps of one job on its own grid; see docs/studies.md for their full size."""
    file = io.BytesIO()
    np.savez(
        file,
        names=np.array(summary.job.names, dtype=np.str_),
        raw=summary.sums.mean_raw,
        stretched=summary.sums.mean_stretched,
        size=np.array(summary.job.size),
        images=np.array(summary.sums.images),
        constant=summary.sums.constant,
    )
    return file.getvalue()


def correlations_csv(summaries: Sequence[Summary]) -> bytes:
    """Correlation of the mean maps of every two jobs, for each target, on the finer grid."""
    rows = []
    for first, second in combinations(summaries, 2):
        height, width = (max(sides) for sides in zip(first.grid, second.grid, strict=True))
        found = {
            what: correlation(
                _flat(getattr(first.sums, f"mean_{what}"), (height, width)),
                _flat(getattr(second.sums, f"mean_{what}"), (height, width)),
            )
            for what in ("stretched", "raw")
        }
        for place, name in enumerate(first.job.names):
            rows.append(
                {
                    "model_a": first.job.label,
                    "method_a": first.job.method,
                    "model_b": second.job.label,
                    "method_b": second.job.method,
                    "target": name,
                    "correlation": float(found["stretched"][place]),
                    "correlation_raw": float(found["raw"][place]),
                    "grid_height": height,
                    "grid_width": width,
                }
            )
    return to_csv(rows)


def _flat(mean: Array, size: tuple[int, int]) -> Array:
    """Mean maps (K, h, w) -> (K, H * W)."""
    finite = np.isfinite(mean)
    resized = maps.upsample(torch.from_numpy(np.where(finite, mean, 0)), size).numpy()
    return np.asarray(resized.reshape(len(mean), -1), dtype=np.float64)


def centring_csv(summaries: Sequence[Summary]) -> bytes:
    """For each emotion how far its row and its maps move when the mean row is taken away."""
    rows = []
    for summary in summaries:
        job, sums = summary.job, summary.sums
        for pair, (plain, centred) in enumerate(job.centred):
            means = [_flat(sums.mean_stretched[[i]], summary.grid) for i in (plain, centred)]
            rows.append(
                {
                    "model": job.label,
                    "method": job.method,
                    "emotion": job.names[plain],
                    "images": int(sums.correlated[pair]),
                    "cosine": _cosine(job.rows[plain], job.rows[centred]),
                    "map_correlation": float(sums.mean_correlation[pair]),
                    "mean_map_correlation": float(correlation(*means)[0]),
                }
            )
    return to_csv(rows)


def _cosine(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    """Of two rows that are of unit length but for their rounding."""
    one, other = first.astype(np.float64), second.astype(np.float64)
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def to_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows of one kind; numbers to ten digits, an empty field where there is none."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({column: _written(value) for column, value in row.items()})
    return text.getvalue().encode()


def _written(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value + 0.0:.10g}"  # + 0.0: no minus zero
