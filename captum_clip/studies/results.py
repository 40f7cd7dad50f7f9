"""From sums to files: statistics, mean maps with their pictures, and how far they agree."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional as F

from .. import maps, metrics, visualization
from ..runs import to_csv, to_npz
from .accumulator import Accumulator, Array, correlation
from .batch_explainer import Job
from .measures import ALWAYS, VALUE_ENTROPY

STATISTICS: Final = "statistics.csv"
CORRELATIONS: Final = "correlations.csv"
CENTRING: Final = "centring.csv"
MEAN_MAPS: Final = "mean_maps"
_PICTURE: Final = "mean_maps.png"
_COLUMNS: Final = 8  # targets per picture
DTYPE: Final = "float32"  # of the stretched maps at full size that are measured


@dataclass(frozen=True, eq=False)
class Summary:
    """All that was found for one job."""

    job: Job
    sums: Accumulator  # over all images that could be read
    skipped: dict[int, str]  # index of an image that was left out -> why

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the model's own maps."""
        height, width = self.sums.sums["raw"].shape[-2:]
        return int(height), int(width)


def statistics_csv(summaries: Sequence[Summary]) -> bytes:
    """One row for each model, method and target; results only."""
    return _table([row for summary in summaries for row in _statistics(summary)])


def _statistics(summary: Summary) -> Iterator[dict[str, Any]]:
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
            "skipped": len(summary.skipped),
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


def pictures(summaries: Sequence[Summary]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each picture of the mean maps, all of them on one scale.

    A picture has a row per job and a column per target, of which it has eight.
    """
    labels = [f"{s.job.label} \N{MIDDLE DOT} {s.job.method}" for s in summaries]
    names = summaries[0].job.target.names
    means = [np.nan_to_num(summary.sums.mean("stretched")) for summary in summaries]
    scale = min(float(m.min()) for m in means), max(float(m.max()) for m in means)
    counts = {summary.sums.images for summary in summaries}
    caption = f"mean of min-max maps of {' and '.join(map(str, sorted(counts)))} images"
    for page, start in enumerate(range(0, len(names), _COLUMNS), 1):
        shown = slice(start, start + _COLUMNS)
        figure = visualization.average(
            {label: mean[shown] for label, mean in zip(labels, means, strict=True)},
            names=names[shown],
            notes={label: _notes(s)[shown] for label, s in zip(labels, summaries, strict=True)},
            scale=scale,
            caption=caption,
        )
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi="figure")
        yield (_PICTURE if page == 1 else _PICTURE.replace(".", f"-{page}.")), file.getvalue()


def _notes(summary: Summary) -> list[str]:
    mean = summary.sums.mean("stretched")
    corner, centre = biases("corner_bias", mean), biases("centre_bias", mean)
    return [
        "no map varies" if np.isnan(c) else f"corner {c:.2f}, centre {m:.2f}"
        for c, m in zip(corner, centre, strict=True)
    ]


def correlations_csv(summaries: Sequence[Summary]) -> bytes:
    """Correlation of the mean maps of every two jobs, for each target, on the finer grid."""
    rows = []
    for first, second in combinations(summaries, 2):
        height, width = (max(sides) for sides in zip(first.grid, second.grid, strict=True))
        stretched, raw = (
            correlation(*(_flat(s.sums.mean(kind), (height, width)) for s in (first, second)))
            for kind in ("stretched", "raw")
        )
        rows += [
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
            for index, name in enumerate(first.job.target.names)
        ]
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
        embeddings = F.normalize(
            job.target.embeddings.double()
        ).numpy()  # once more, for this precision
        mean, correlations = sums.mean("stretched"), sums.mean("correlation")
        for pair, (plain, centred) in enumerate(job.centred):
            means = [_flat(mean[[index]], summary.grid) for index in (plain, centred)]
            rows.append(
                {
                    "model": job.label,
                    "method": job.method,
                    "emotion": job.target.names[plain],
                    "images": int(sums.correlated[pair]),
                    "cosine": float(embeddings[plain] @ embeddings[centred]),
                    "map_correlation": float(correlations[pair]),
                    "mean_map_correlation": float(correlation(*means)[0]),
                }
            )
    return _table(rows)


def _table(rows: Sequence[dict[str, Any]]) -> bytes:
    return to_csv(list(rows[0]), [list(row.values()) for row in rows])
