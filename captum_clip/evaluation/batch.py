"""Some samples of a data set as the model sees them, with what all methods need of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..models import ClipAdapter
from ..models.geometry import resize_masks
from ..models.images import is_away
from ..runs import AGAIN
from .data.base import Region, Sample
from .model_context import ModelContext

Remembered = TypeVar("Remembered")


@dataclass(frozen=True, eq=False)
class View:
    """One sample as the model sees it.

    Attributes:
        number: in its data set.
        sample: as it was read.
        pixels: (3, H, W), preprocessed.
        regions: those of which something is inside the crop, and something outside them.
        masks: (n, H, W) bool, one a region.
        void: (H, W) bool, pixels that count for nothing; None where all count.
    """

    number: int
    sample: Sample
    pixels: Tensor
    regions: tuple[Region, ...]
    masks: Tensor
    void: Tensor | None = None


class Batch:
    """Several samples of a data set, read and preprocessed one after the other.

    Attributes:
        views: those that could be read.
        skipped: (number, reason) of samples that could not, and of regions that were left out.
    """

    def __init__(self, context: ModelContext, numbers: Sequence[int]) -> None:
        self.context: Final = context
        self.views: Final[list[View]] = []
        self.skipped: Final[list[tuple[int, str]]] = []
        self._remembered: dict[str, Any] = {}
        for number in numbers:
            try:
                sample = context.data.read(number)
                view, left_out = _view(number, sample, context.clip)
            except InputError as error:
                self.skipped.append((number, f"{error}{AGAIN if is_away(error) else ''}"))
                continue
            self.views.append(view)
            self.skipped.extend((number, reason) for reason in (*sample.dropped, *left_out))

    @property
    def pixels(self) -> Tensor:
        """All images (S, 3, H, W)."""
        return torch.stack([view.pixels for view in self.views])

    def remember(self, name: str, compute: Callable[[], Remembered]) -> Remembered:
        """What `compute` gave when a method first asked for it."""
        if name not in self._remembered:
            self._remembered[name] = compute()
        remembered: Remembered = self._remembered[name]
        return remembered

    @cached_property
    def predicted(self) -> Tensor:
        """The class (S,) that the model finds in each image."""
        return self.context.scores(self.pixels, self.context.classes).argmax(1)

    @cached_property
    def subset_scores(self) -> dict[int, Tensor]:
        """Cosines (n, 2^n) of the regions' texts with every subset, by number of the sample."""
        scores = {}
        for view in self.views:
            if view.sample.subsets and len(view.regions) == len(view.sample.regions):
                rows = self.context.encode([region.text for region in view.regions])
                pixels = self.context.clip.preprocess(list(view.sample.subsets))
                scores[view.number] = self.context.scores(pixels, rows).T
        return scores


def _view(number: int, sample: Sample, clip: ClipAdapter) -> tuple[View, list[str]]:
    """A sample in the model's eyes, and the regions that its crop leaves nothing of."""
    [pixels] = clip.preprocess([sample.image])
    size = (pixels.shape[-2], pixels.shape[-1])
    if not sample.regions:
        return View(number, sample, pixels, (), torch.zeros(0, *size, dtype=torch.bool)), []
    void = [] if sample.void is None else [sample.void]
    stacked = np.stack([*(region.mask for region in sample.regions), *void])
    resized = torch.from_numpy(resize_masks(clip.processor, stacked, size)).to(pixels.device)
    masks = resized[: len(sample.regions)]
    left = resized[-1] if void else None
    known = masks.flatten(1) if left is None else masks[:, ~left]
    shares = known.float().mean(1).tolist()
    kept = [index for index, share in enumerate(shares) if 0 < share < 1]
    left_out = [
        f"the crop shows {'all' if share else 'nothing'} of {region.text!r}"
        for region, share in zip(sample.regions, shares, strict=True)
        if not 0 < share < 1
    ]
    if not kept:
        raise InputError(f"{sample.name}: {'; '.join(left_out)}")
    regions = tuple(sample.regions[index] for index in kept)
    return View(number, sample, pixels, regions, masks[kept], left), left_out
