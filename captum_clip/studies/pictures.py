"""The mean maps of a study as pictures, all on one scale."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from .. import visualization
from .results import Summary, biases

_COLUMNS: Final = 8  # targets per picture
FIRST: Final = "mean_maps.png"


def pictures(summaries: Sequence[Summary]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each picture: a row per job, a column per target, eight per picture."""
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
        yield (FIRST if page == 1 else FIRST.replace(".", f"-{page}.")), file.getvalue()


def _notes(summary: Summary) -> list[str]:
    mean = summary.sums.mean("stretched")
    corner, centre = biases("corner_bias", mean), biases("centre_bias", mean)
    return [
        "no map varies" if np.isnan(c) else f"corner {c:.2f}, centre {m:.2f}"
        for c, m in zip(corner, centre, strict=True)
    ]
