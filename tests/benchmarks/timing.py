"""Seconds of several runs, taken in turn."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Run = Callable[[], Any]

SLOW = 3  # in forwards; a slower run takes part in fewer rounds


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Run, device: torch.device) -> float:
    """Wall-clock time of one run."""
    synchronize(device)
    begin = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - begin


def medians(
    runs: dict[str, Run], repeats: int, measure: Callable[[Run], float]
) -> dict[str, float]:
    """Median seconds of each, over rounds in which one comes after the other.

    Args:
        runs: by name, the plain forward first.
        repeats: rounds, after one to warm up. A run of m forwards takes part in every
            ``ceil(m / SLOW)``-th, or it would take most of the time and gain least by it.
        measure: seconds of one run.
    """
    first = {name: measure(run) for name, run in runs.items()}
    forward = next(iter(first.values()))
    strides = {name: math.ceil(value / (SLOW * forward)) for name, value in first.items()}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name, run in runs.items():
            if turn % strides[name] == 0:
                found[name].append(measure(run))
    return {name: statistics.median(values) for name, values in found.items()}
