"""What every engine runs: a job, and images by batches; maps, scores and measures come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import maps
from ..attr.registry import MethodChoice
from ..models import ClipAdapter
from ..similarity import ClipSimilarity
from ..targets import Target
from .image_loader import Batch
from .measures import measure


@dataclass(frozen=True, eq=False)
class Job:
    """One subject of a study, made ready; it can be sent to another process or machine."""

    key: str  # names its files
    model: str  # what `load_clip` takes, a folder by its full path
    label: str  # what results call the model
    fingerprint: str  # of the model; a worker must find the same
    kind: str  # of its tower
    size: tuple[int, int]  # (H, W) of the images that it sees
    method: str  # with its options, as on the command line
    target: Target  # K directions
    centred: tuple[tuple[int, int], ...]  # of the K, indices of (emotion, the same one centred)
    emotions: str  # SHA-256 of the emotions' rows; "" where there are none
    value_entropy: bool

    def describe(self) -> dict[str, Any]:
        """As the manifest tells it."""
        return {
            "model": self.label,
            "method": self.method,
            "fingerprint": self.fingerprint,
            "emotions": self.emotions,
            "tower": self.kind,
            "targets": list(self.target.names),
        }


@dataclass(frozen=True, eq=False)
class Explained:
    """What is known of the images of a batch that could be read, or of a whole shard."""

    indices: npt.NDArray[np.int64]  # (N,) in the study's list
    maps: npt.NDArray[np.float32]  # (N, K, h, w), as the method gives them: with their sign
    scores: npt.NDArray[np.float32]  # (N, K), cosine similarities
    measures: dict[str, npt.NDArray[np.float64]]  # (N, K) each, of the positive part of each map
    skipped: dict[int, str]  # index of an image that was left out -> why


class BatchExplainer:
    """A model with a method and its targets, loaded and ready."""

    def __init__(self, job: Job, clip: ClipAdapter) -> None:
        choice = MethodChoice.of(job.method)
        self._clip = clip
        self._options = choice.options
        self._method: Any = choice.method(ClipSimilarity(clip, job.target))
        self._value_entropy = job.value_entropy

    def explain(self, batch: Batch) -> Explained:
        """One forward pass for all images and targets."""
        pixels = batch.pixels.to(self._clip.device, self._clip.dtype)
        raw, scores = self._method.attribute_targets(pixels, return_scores=True, **self._options)
        skipped = dict(batch.reasons)
        finite = torch.isfinite(raw).flatten(1).all(1) & torch.isfinite(scores).all(1)
        for row, index in enumerate(batch.indices):
            if index not in skipped and not finite[row]:
                skipped[index] = "its maps or scores hold NaN or infinity"
        positive = maps.positive(torch.where(finite[:, None, None, None], raw, 0))
        size = (pixels.shape[-2], pixels.shape[-1])
        measured = measure(positive, size, values=self._value_entropy)
        kept = [row for row, index in enumerate(batch.indices) if index not in skipped]
        return Explained(
            indices=np.array([batch.indices[row] for row in kept], dtype=np.int64),
            maps=raw[kept].cpu().numpy(),
            scores=scores[kept].cpu().numpy(),
            measures={name: values[kept].cpu().numpy() for name, values in measured.items()},
            skipped=skipped,
        )
