"""The batch function that every engine runs: images in; maps, scores and measures out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import maps as resizing
from ..attr.registry import MethodChoice
from ..errors import InputError
from ..models import ClipAdapter
from ..similarity import ClipSimilarity
from .decoding import Batch
from .jobs import Job, Loader
from .measures import Measures


@dataclass(frozen=True, eq=False)
class Computed:
    """What is known of the images of a batch that could be read, or of a whole shard.

    Attributes:
        places: numbers (N,) of the images in the study's list.
        maps: (N, K, h, w), float32, as the method gives them: with their sign.
        scores: cosine similarities (N, K), float32.
        measures: name -> (N, K), float64, of the positive part of each map.
        skipped: number of an image that was left out -> why.
    """

    places: npt.NDArray[np.int64]
    maps: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    measures: dict[str, npt.NDArray[np.float64]]
    skipped: dict[int, str]


class Computer:
    """A model with a method and its targets, loaded and ready.

    Args:
        job: what to compute.
        clip: the job's model.

    Raises:
        UnsupportedModelError: the method does not fit the model.
    """

    def __init__(self, job: Job, clip: ClipAdapter) -> None:
        choice = MethodChoice.of(job.method)
        self.job = job
        self.clip = clip
        self._options = choice.options
        self._method: Any = choice.method(ClipSimilarity(clip, job.target))

    @classmethod
    def load(cls, job: Job, loader: Loader) -> Computer:
        """Load the job's model by its name.

        Raises:
            InputError: what bears the name here is another model.
        """
        clip, fingerprint = loader.load(job.model, job.device)
        if fingerprint != job.fingerprint:
            raise InputError(
                f"{job.label}: the weights or the preprocessing of {job.model} are not those that "
                "the study was begun with; give all machines the same, and leave them alone while "
                "a study runs."
            )
        return cls(job, clip)

    def compute(self, batch: Batch) -> Computed:
        """One forward pass for all images and targets."""
        pixels = batch.pixels.to(self.clip.device, self.clip.dtype)
        raw, scores = self._method.attribute_targets(pixels, return_scores=True, **self._options)
        count = len(batch.places)
        skipped = dict(batch.reasons)
        finite = torch.isfinite(raw).flatten(1).all(1) & torch.isfinite(scores).all(1)
        for row, place in enumerate(batch.places):
            if place not in skipped and not finite[row]:
                skipped[place] = "its maps or scores hold NaN or infinity"
        whole = torch.where(finite[:, None, None, None], raw, 0)
        measured = self._measure(whole, batch.pixels)
        kept = [row for row in range(count) if batch.places[row] not in skipped]
        return Computed(
            places=np.array([batch.places[row] for row in kept], dtype=np.int64),
            maps=raw[kept].cpu().numpy(),
            scores=scores[kept].cpu().numpy(),
            measures={name: values[kept].cpu().numpy() for name, values in measured.items()},
            skipped=skipped,
        )

    def _measure(self, maps: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        grid, size = (maps.shape[-2], maps.shape[-1]), (pixels.shape[-2], pixels.shape[-1])
        measures = Measures(grid, size, self.job.value_entropy)
        return measures.measure(resizing.positive(maps))
