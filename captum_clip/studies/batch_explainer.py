"""The batch function that every engine runs: images in; maps, scores and measures out."""

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
from .image_loader import Batch
from .jobs import Job
from .measures import Measures


@dataclass(frozen=True, eq=False)
class Explained:
    """What is known of the images of a batch that could be read, or of a whole shard.

    Attributes:
        indices: numbers (N,) of the images in the study's list.
        maps: (N, K, h, w), float32, as the method gives them: with their sign.
        scores: cosine similarities (N, K), float32.
        measures: name -> (N, K), float64, of the positive part of each map.
        skipped: number of an image that was left out -> why.
    """

    indices: npt.NDArray[np.int64]
    maps: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    measures: dict[str, npt.NDArray[np.float64]]
    skipped: dict[int, str]


class BatchExplainer:
    """A model with a method and its targets, loaded and ready.

    Raises:
        UnsupportedModelError: the method does not fit the model.
    """

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
        grid, size = (raw.shape[-2], raw.shape[-1]), (pixels.shape[-2], pixels.shape[-1])
        measures = Measures(grid, size, self._value_entropy)
        measured = measures.measure(maps.positive(torch.where(finite[:, None, None, None], raw, 0)))
        kept = [row for row, index in enumerate(batch.indices) if index not in skipped]
        return Explained(
            indices=np.array([batch.indices[row] for row in kept], dtype=np.int64),
            maps=raw[kept].cpu().numpy(),
            scores=scores[kept].cpu().numpy(),
            measures={name: values[kept].cpu().numpy() for name, values in measured.items()},
            skipped=skipped,
        )
