"""Saving and finding what a training needs to go on."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

CURVE_FIELDS: Final = ("step", "loss", "recall")
_CHECKPOINT: Final = "checkpoint.pt"
_CURVE: Final = "curve.csv"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after a number of steps.

    Batches and learning rates follow from the seed and the step, so there is no other state.

    Args:
        step: steps done.
        steps: steps planned.
        seed: of the training.
        batch_size: scenes a step.
        model: the model's state dict.
        bias: the bias of the sigmoid loss.
        optimizer: the optimizer's state dict.
        recall: the last validation recall.
    """

    step: int
    steps: int
    seed: int
    batch_size: int
    model: dict[str, torch.Tensor]
    bias: torch.Tensor
    optimizer: dict[str, Any]
    recall: float


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint in one go: a stop half-way leaves the older one."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{_CHECKPOINT}.part"
    torch.save(vars(checkpoint), partial)
    os.replace(partial, folder / _CHECKPOINT)
    return folder / _CHECKPOINT


def load_checkpoint(folder: Path, device: str = "cpu") -> Checkpoint | None:
    """Read the newest checkpoint of a folder; None if there is none."""
    path = folder / _CHECKPOINT
    if not path.exists():
        return None
    return Checkpoint(**torch.load(path, map_location=device, weights_only=True))


def read_curve(folder: Path, *, until: int | None = None) -> list[dict[str, str]]:
    """Read the curve's rows, those after the step ``until`` left out."""
    path = folder / _CURVE
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if until is None or int(row["step"]) <= until]


def write_curve(folder: Path, rows: list[dict[str, str]]) -> None:
    """Write the curve: step, mean loss since the last row, validation recall."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _CURVE).open("w", newline="") as file:
        writer = csv.DictWriter(file, CURVE_FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
