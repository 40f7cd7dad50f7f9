"""Some samples of a data set as the model sees them, their masks cropped alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..models import ClipAdapter
from ..models.geometry import resize_masks
from .data.base import DataSet
from .sample import Region, Sample


@dataclass(frozen=True, eq=False)
class Seen:
    """One sample as the model sees it.

    Attributes:
        number: in its data set.
        sample: as it was read.
        pixels: (3, H, W), preprocessed.
        regions: those of which something is inside the crop, and something outside them.
        masks: (n, H, W) bool, one a region.
    """

    number: int
    sample: Sample
    pixels: Tensor
    regions: tuple[Region, ...]
    masks: Tensor


@dataclass(frozen=True, eq=False)
class Chunk:
    """Several samples of a data set, one after the other.

    Attributes:
        seen: those that could be read.
        skipped: (number, reason) of samples that could not, and of regions that were left out.
    """

    seen: tuple[Seen, ...]
    skipped: tuple[tuple[int, str], ...]

    @property
    def pixels(self) -> Tensor:
        """All images (S, 3, H, W)."""
        return torch.stack([one.pixels for one in self.seen])


def read_chunk(data: DataSet, numbers: Sequence[int], clip: ClipAdapter) -> Chunk:
    """Read samples and preprocess them.

    Args:
        data: the data set.
        numbers: of the samples.
        clip: the model.
    """
    seen, skipped = [], []
    for number in numbers:
        try:
            sample = data.read(number)
            one, left_out = _see(number, sample, clip)
        except InputError as error:
            skipped.append((number, str(error)))
            continue
        seen.append(one)
        skipped += [(number, reason) for reason in (*sample.dropped, *left_out)]
    return Chunk(tuple(seen), tuple(skipped))


def _see(number: int, sample: Sample, clip: ClipAdapter) -> tuple[Seen, list[str]]:
    """A sample in the model's eyes, and the regions that its crop leaves nothing of."""
    [pixels] = clip.preprocess([sample.image])
    size = (pixels.shape[-2], pixels.shape[-1])
    if not sample.regions:
        return Seen(number, sample, pixels, (), torch.zeros(0, *size, dtype=torch.bool)), []
    stacked = np.stack([region.mask for region in sample.regions])
    masks = torch.from_numpy(resize_masks(clip.processor, stacked, size))
    shares = masks.flatten(1).float().mean(1)
    kept = [place for place, share in enumerate(shares.tolist()) if 0 < share < 1]
    left_out = [
        f"the crop shows {'all' if shares[place] else 'nothing'} of {region.text!r}"
        for place, region in enumerate(sample.regions)
        if place not in kept
    ]
    if not kept:
        raise InputError(f"{sample.name}: {'; '.join(left_out)}")
    regions = tuple(sample.regions[place] for place in kept)
    return Seen(number, sample, pixels, regions, masks[kept].to(pixels.device)), left_out
