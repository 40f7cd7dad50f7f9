r"""Measures of min-max maps at the size of the image, taken on the model's own grid where they can.

Upsampling is linear in the map, :math:`U m = R_h m R_w^T`, and a stretched map is
:math:`x = a \, U m + b`. So its sum and its sum of squares are forms of the small map. Between
neighbouring cells x is bilinear: its extremes lie on the outermost pixels there. Only the entropy
has to look at every pixel.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from .. import maps as resizing
from ..metrics import value_entropy

ALWAYS: Final = ("spatial_variance", "spatial_entropy")
VALUE_ENTROPY: Final = "value_entropy"
_AT_ONCE: Final = 2**20  # pixels that are worked on together, so that they stay in the cache
_TINY: Final = torch.finfo(torch.float32).tiny  # x log x of it is nothing; not flushed to zero


def measure(maps: Tensor, size: tuple[int, int], *, values: bool = False) -> dict[str, Tensor]:
    """Extremes of ``maps.upsample(m, size)``, statistics of it stretched to [0, 1].

    Args:
        maps: (..., h, w), finite, float32.
        size: (H, W) of the images.
        values: whether :func:`captum_clip.metrics.value_entropy` is measured as well.

    Returns:
        name -> (...), float64: "low" and "high", then "spatial_variance", "spatial_entropy"
        and perhaps "value_entropy" as in :mod:`captum_clip.metrics`. These are NaN for a map
        that is constant as :func:`captum_clip.maps.normalize` sees it.
    """
    shape, grid = maps.shape[:-2], maps.shape[-2:]
    small = maps.reshape(-1, *grid)
    wide = small.double()
    rows, columns = (
        _interpolation(*sides).to(maps.device) for sides in zip(size, grid, strict=True)
    )
    outermost = (_outermost(rows) @ wide @ _outermost(columns).T).flatten(1)
    low, high = outermost.amin(1), outermost.amax(1)
    largest = torch.maximum(low.abs(), high.abs())
    varies = high - low > 8 * torch.finfo(maps.dtype).eps * largest
    span = torch.where(varies, high - low, 1)
    stretched = (wide - low[:, None, None]) / span[:, None, None]
    measured = {
        "spatial_variance": _variance(stretched, rows, columns),
        "spatial_entropy": _entropy(stretched, rows, columns),
    }
    if values:  # by its definition to the bit, since it asks which values are the same
        large = (resizing.upsample(part, size) for part in torch.split(small, 1))
        entropies = [value_entropy(resizing.normalize(part)) for part in large]
        measured[VALUE_ENTROPY] = torch.cat(entropies)
    measured = {name: torch.where(varies, value, torch.nan) for name, value in measured.items()}
    measured = {"low": low, "high": high, **measured}
    return {name: value.reshape(shape) for name, value in measured.items()}


def _variance(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Mean square less squared mean, of maps that were moved to a mean near zero."""
    maps = maps - maps.mean((-2, -1), keepdim=True)
    pixels = len(rows) * len(columns)
    squares = (maps * (rows.T @ rows @ maps @ columns.T @ columns)).sum((-2, -1))
    return squares / pixels - (maps @ columns.sum(0) @ rows.sum(0) / pixels).square()


def _entropy(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    r""":math:`\log_2 S - \frac{1}{S} \sum x \log_2 x`, with S the sum of x."""
    half = rows.float() @ maps.float()  # (N, H, w)
    at_once = max(1, _AT_ONCE // (len(rows) * len(columns)))
    sums = []
    for part in torch.split(half, at_once):
        values = (part @ columns.float().T).clamp_(min=_TINY)
        sums.append(torch.log2(values).mul_(values).sum((-2, -1)))
    total = maps @ columns.sum(0) @ rows.sum(0)
    return torch.log2(total) - torch.cat(sums).double() / total


def _interpolation(pixels: int, cells: int) -> Tensor:
    """R (pixels, cells), as `maps.upsample` interpolates."""
    unit = torch.eye(cells, dtype=torch.float64)[:, :, None]  # one column per cell
    return resizing.upsample(unit, (pixels, 1))[:, :, 0].T


def _outermost(axis: Tensor) -> Tensor:
    """Of the pixels between two neighbouring cells the first and the last one."""
    cell = (axis != 0).int().argmax(1)
    changes = cell[1:] != cell[:-1]
    edge = torch.ones(1, dtype=torch.bool, device=axis.device)
    return axis[torch.cat([edge, changes]) | torch.cat([changes, edge])]
