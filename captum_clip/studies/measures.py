r"""Measures of min-max maps at the size of the image, taken on the model's own grid where they can.

Upsampling is linear in the map, :math:`U m = R_h m R_w^T`, and a stretched map is
:math:`x = a \, U m + b`. So its sum and its sum of squares are forms of the small map. Between
neighbouring cells x is bilinear: its extremes lie on the outermost pixels there. Only the entropy
has to look at every pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from .. import maps as resizing
from ..metrics import value_entropy

ALWAYS: Final = ("spatial_variance", "spatial_entropy")
VALUE_ENTROPY: Final = "value_entropy"
_AT_ONCE: Final = 2**20  # pixels that are worked on together, so that they stay in the cache
_TINY: Final = torch.finfo(torch.float32).tiny  # x log x of it is nothing; not flushed to zero


@dataclass(frozen=True)
class Measures:
    """What a study measures of each map."""

    grid: tuple[int, int]  # (h, w) of the raw maps
    size: tuple[int, int]  # (H, W) of the images
    values: bool = False  # whether `metrics.value_entropy` is measured as well

    def measure(self, maps: Tensor) -> dict[str, Tensor]:
        """Extremes of ``maps.upsample(m, size)``, statistics of it stretched to [0, 1].

        Args:
            maps: (..., h, w), finite, float32.

        Returns:
            name -> (...), float64: "low" and "high", then "spatial_variance", "spatial_entropy"
            and perhaps "value_entropy" as in :mod:`captum_clip.metrics`. These are NaN for a map
            that is constant as :func:`captum_clip.maps.normalize` sees it.
        """
        shape, small = maps.shape[:-2], maps.reshape(-1, *self.grid)
        wide = small.double()
        low, high = self._extremes(wide)
        largest = torch.maximum(low.abs(), high.abs())
        varies = high - low > 8 * torch.finfo(maps.dtype).eps * largest
        span = torch.where(varies, high - low, 1)
        stretched = (wide - low[:, None, None]) / span[:, None, None]
        measured = {
            "spatial_variance": self._variance(stretched),
            "spatial_entropy": self._entropy(stretched),
        }
        if self.values:
            measured[VALUE_ENTROPY] = self._value_entropy(small)
        measured = {name: torch.where(varies, value, torch.nan) for name, value in measured.items()}
        measured = {"low": low, "high": high, **measured}
        return {name: value.reshape(shape) for name, value in measured.items()}

    def _extremes(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = (_outermost(axis).to(maps.device) for axis in self._axes)
        outermost = (rows @ maps @ columns.T).flatten(1)
        return outermost.amin(1), outermost.amax(1)

    def _variance(self, maps: Tensor) -> Tensor:
        """Mean square less squared mean, of maps that were moved to a mean near zero."""
        rows, columns = (axis.to(maps.device) for axis in self._axes)
        maps = maps - maps.mean((-2, -1), keepdim=True)
        pixels = len(rows) * len(columns)
        squares = (maps * (rows.T @ rows @ maps @ columns.T @ columns)).sum((-2, -1))
        return squares / pixels - (self._sum(maps) / pixels).square()

    def _sum(self, maps: Tensor) -> Tensor:
        rows, columns = (axis.sum(0).to(maps.device) for axis in self._axes)
        return maps @ columns @ rows

    def _entropy(self, maps: Tensor) -> Tensor:
        r""":math:`\log_2 S - \frac{1}{S} \sum x \log_2 x`, with S the sum of x."""
        rows, columns = (axis.float().to(maps.device) for axis in self._axes)
        half = rows @ maps.float()  # (N, H, w)
        at_once = max(1, _AT_ONCE // (len(rows) * len(columns)))
        sums = []
        for part in torch.split(half, at_once):
            values = (part @ columns.T).clamp_(min=_TINY)
            sums.append(torch.log2(values).mul_(values).sum((-2, -1)))
        total = self._sum(maps)
        return torch.log2(total) - torch.cat(sums).double() / total

    def _value_entropy(self, maps: Tensor) -> Tensor:
        """By its definition to the bit, since it asks which values are the same."""
        return torch.cat(
            [
                value_entropy(resizing.normalize(resizing.upsample(part, self.size)))
                for part in torch.split(maps, 1)
            ]
        )

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        """R_h (H, h) and R_w (W, w), as `maps.upsample` interpolates."""
        (height, width), (rows, columns) = self.size, self.grid
        return _interpolation(height, rows), _interpolation(width, columns)


def _interpolation(pixels: int, cells: int) -> Tensor:
    unit = torch.eye(cells, dtype=torch.float64)[:, :, None]  # one column per cell
    return resizing.upsample(unit, (pixels, 1))[:, :, 0].T


def _outermost(axis: Tensor) -> Tensor:
    """Of the pixels between two neighbouring cells the first and the last one."""
    cell = (axis != 0).int().argmax(1)
    changes = cell[1:] != cell[:-1]
    edge = torch.ones(1, dtype=torch.bool)
    return axis[torch.cat([edge, changes]) | torch.cat([changes, edge])]
