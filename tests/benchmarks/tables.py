"""What was measured, as rows and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One job on one tower at one batch size; None where it was not measured."""

    tower: str
    job: str
    batch: int
    seconds: float | None = None
    forwards: float | None = None  # seconds over the plain forward's
    peak: int | None = None  # bytes
    peak_forwards: float | None = None  # bytes over the plain forward's


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """What the figures depend on beside the code."""
    cuda = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else "CPU",
        "threads": str(torch.get_num_threads()),
        "dtype": str(dtype).removeprefix("torch."),
    }


def markdown(rows: Sequence[Row]) -> str:
    """A table of one tower: the time first, then the memory at each batch size."""
    timed = {row.job: row for row in rows if row.seconds is not None}
    batches = sorted({row.batch for row in rows if row.peak is not None})
    peaks = {(row.job, row.batch): row for row in rows if row.peak is not None}
    heads = [rows[0].tower]
    heads += ["cost", "ms"] if timed else []
    heads += [f"MiB, batch {batch} (x forward)" for batch in batches]
    lines = [heads, ["---"] * len(heads)]
    for job in dict.fromkeys(row.job for row in rows):
        cells = [job]
        if timed:
            cells += [_forwards(timed.get(job)), _milliseconds(timed.get(job))]
        lines.append(cells + [_mebibytes(peaks.get((job, batch))) for batch in batches])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _forwards(row: Row | None) -> str:
    return "" if row is None or row.forwards is None else f"{row.forwards:.2f}"


def _milliseconds(row: Row | None) -> str:
    return "" if row is None or row.seconds is None else f"{1000 * row.seconds:.0f}"


def _mebibytes(row: Row | None) -> str:
    if row is None or row.peak is None or row.peak_forwards is None:
        return ""
    return f"{row.peak / MIB:.1f} ({row.peak_forwards:.2f})"
