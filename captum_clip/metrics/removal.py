"""Images of which parts are removed in the order of a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError
from .fills import road_fill
from .resize import cell_indices, varies

Fill = Tensor | Literal["road"]
_NOISE = 0.01  # of ROAD, in units of the normalised images


@dataclass(frozen=True, eq=False)
class Removal:
    """Images, and what becomes of them when units are changed."""

    images: Tensor
    ranks: Tensor  # (B, h, w), 0 is the most relevant
    fill: Tensor | None  # of the images' shape; None for ROAD
    noise: Tensor | None  # the same
    insertion: bool

    @classmethod
    def of(
        cls, images: Tensor, units: Tensor, fill: Fill, *, insertion: bool, seeds: Sequence[int]
    ) -> Removal:
        """Rank the units (B, h, w) and draw what is random."""
        flat = torch.where(varies(units)[:, None, None], units, 0).flatten(1).cpu()
        filled = _checked_fill(fill, images)
        ranks = torch.empty(flat.shape, dtype=torch.long)
        noise = []
        for index, (values, seed) in enumerate(zip(flat, seeds, strict=True)):
            generator = torch.Generator().manual_seed(seed)
            shuffled = torch.randperm(len(values), generator=generator)
            order = values[shuffled].argsort(descending=True, stable=True)
            ranks[index, shuffled[order]] = torch.arange(len(values))
            if filled is None:
                noise.append(_NOISE * torch.randn(images.shape[1:], generator=generator))
        drawn = torch.stack(noise).to(images) if noise else None
        return cls(images, ranks.reshape(units.shape).to(images.device), filled, drawn, insertion)

    def perturbed(self, index: Tensor, least_first: Tensor, counts: Tensor) -> Tensor:
        """The images (N, C, H, W) of an index (N,) with so many units (N,) changed."""
        images, ranks = self.images[index], self.ranks[index]
        backwards = ranks[0].numel() - 1 - ranks
        order = torch.where(least_first[:, None, None], backwards, ranks)
        removed = (order < counts[:, None, None]) != self.insertion
        row, column = cell_indices((ranks.shape[1], ranks.shape[2]), images)
        pixels = removed[:, None, row, column]
        if self.fill is not None:
            return torch.where(pixels, self.fill[index], images)
        assert self.noise is not None
        return torch.where(pixels, road_fill(images, pixels) + self.noise[index], images)


def _checked_fill(fill: Fill, images: Tensor) -> Tensor | None:
    """The fill in the images' shape; None for ROAD."""
    if isinstance(fill, str) and fill == "road":
        return None
    if not isinstance(fill, Tensor):
        raise InputError(
            f'perturbation_test: expected fill as a tensor or "road", got {fill!r}; '
            "metrics.mean_fill(images) gives the mean colour."
        )
    try:
        return fill.to(images).expand_as(images)
    except RuntimeError as error:
        raise InputError(
            f"perturbation_test: a fill {tuple(fill.shape)} cannot be broadcast to images "
            f"{tuple(images.shape)}."
        ) from error
