"""Statistics of maps: spread, entropies, corners and center, and the rank correlation of two maps.

Throughout, `maps` are (..., h, w), floating-point and finite; for others an InputError is raised.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ..checks import describe, expect
from ..errors import public
from ..maps import check_maps, normalize, pearson, to_float32, upsample

Axes = tuple[Tensor, Tensor]
"""R_h (H, h) and R_w (W, w), float64: upsampled to H x W a map m is R_h m R_w^T."""

_AT_ONCE: Final = 2**20  # pixels
_TINY: Final = torch.finfo(torch.float32).tiny  # x log x of it is nothing; not flushed to zero


@public("spatial_variance")
def spatial_variance(maps: Tensor) -> Tensor:
    r"""Variance (...) of the values of each map, over all of its cells, float64.

    .. math:: \sigma^2 = \frac{1}{hw} \sum_{ij} (m_{ij} - \bar m)^2

    A constant map has variance 0. Where maps were min-max normalized first, a constant one
    was made of nothing: count it separately.

    Example:
        >>> spatial_variance(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor(0.2500, dtype=torch.float64)
    """
    check_maps(maps)
    return variance(maps.double())


@public("spatial_entropy")
def spatial_entropy(maps: Tensor) -> Tensor:
    r"""Entropy (...) in bits of each map as a distribution over its cells, float64.

    .. math:: H = -\sum_{ij} p_{ij} \log_2 p_{ij}, \quad p = m / \sum m, \quad 0 \log 0 = 0

    Low is concentrated. It is at most :math:`\log_2(hw)`, which a constant map reaches. A map of
    zeros is no distribution and gives NaN.

    Raises:
        InputError: no such maps, or values below zero.

    Example:
        >>> spatial_entropy(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
        tensor(2., dtype=torch.float64)
    """
    check_maps(maps)
    advice = "maps.positive(maps) or maps.normalize(maps) makes them"
    expect(not (maps < 0).any(), "maps without values below zero", maps.min().item(), advice)
    return entropy(maps.double())


@public("value_entropy")
def value_entropy(maps: Tensor) -> Tensor:
    r"""Entropy (...) in bits of the distribution of each map's values, float64.

    .. math:: H = -\sum_v p_v \log_2 p_v, \quad p_v = \frac{n_v}{hw}

    with :math:`n_v` the number of cells of exactly the value v: scikit-image's `shannon_entropy`.
    High is many different values. It is at most :math:`\log_2(hw)`, and 0 for a constant map. It
    depends on the size and on the type of the map, since in half precision more values coincide:
    report both with it.

    Example:
        >>> value_entropy(torch.tensor([[0.0, 0.5], [1.0, 1.0]]))
        tensor(1.5000, dtype=torch.float64)
    """
    check_maps(maps)
    cells = maps.detach().reshape(-1, maps.shape[-2] * maps.shape[-1])
    counts = [torch.unique(values, return_counts=True)[1].double() for values in cells]
    nats = [torch.special.entr(n / n.sum()).sum() for n in counts]
    return torch.stack(nats).reshape(maps.shape[:-2]) / math.log(2)


def interpolations(grid: Sequence[int], size: Sequence[int], device: Any) -> Axes:
    """Write `maps.upsample` from a grid (h, w) to a size (H, W) as two matrices."""
    height, width = (
        upsample(torch.eye(cells).double()[:, :, None], (pixels, 1))[:, :, 0].T.to(device)
        for cells, pixels in zip(grid, size, strict=True)
    )
    return height, width


def variance(maps: Tensor, axes: Axes | None = None) -> Tensor:
    """Variance (...) of maps (..., h, w) in float64, as upsampled where axes are given.

    Upsampling is linear, so the sum and the sum of squares are forms of the small map.
    """
    if axes is None:
        return maps.flatten(-2).var(-1, correction=0)
    rows, columns = axes
    pixels = len(rows) * len(columns)
    centered = maps - maps.mean((-2, -1), keepdim=True)  # so that the squared mean is small
    squares = (centered * (rows.T @ rows @ centered @ columns.T @ columns)).sum((-2, -1))
    return squares / pixels - (centered @ columns.sum(0) @ rows.sum(0) / pixels).square()


def entropy(maps: Tensor, axes: Axes | None = None) -> Tensor:
    r"""Entropy :math:`\log_2 S - \frac{1}{S} \sum x \log_2 x` (...), with S the sum of x.

    Maps are (..., h, w), computed in float64. With `axes` they count as upsampled: every pixel is
    looked at, in single precision and a block at a time, which stays in the cache.
    """
    small = maps.reshape(-1, *maps.shape[-2:])
    if axes is None:
        total, parts = small.sum((-2, -1)), iter([small])
    else:
        rows, columns = axes
        total = small @ columns.sum(0) @ rows.sum(0)
        at_once = max(1, _AT_ONCE // (len(rows) * len(columns)))
        halves = torch.split(rows.float() @ small.float(), at_once)  # (n, H, w)
        parts = (half @ columns.float().T for half in halves)
    values = (chunk.clamp(min=_TINY) for chunk in parts)
    sums = torch.cat([torch.log2(x).mul_(x).sum((-2, -1)) for x in values])
    return (torch.log2(total) - sums.double() / total).reshape(maps.shape[:-2])


def measure(maps: Tensor, size: tuple[int, int], *, values: bool = False) -> dict[str, Tensor]:
    r"""Extremes of ``maps.upsample(m, size)``, and statistics of it stretched to [0, 1].

    They are taken on the map's own grid where they can. Upsampling is linear in the map,
    :math:`U m = R_h m R_w^T`, and a min-max map is :math:`x = a \, U m + b`. So its sum and its sum
    of squares are forms of the small map. Between neighboring cells x is bilinear: its extremes lie
    on the outermost pixels there. Only the entropy has to look at every pixel.

    Args:
        maps: (..., h, w), finite, float32.
        size: (H, W) of the images.
        values: whether :func:`captum_clip.metrics.value_entropy` is measured as well.

    Returns:
        name -> (...), float64: "low" and "high", then "spatial_variance", "spatial_entropy"
        and perhaps "value_entropy" as in :mod:`captum_clip.metrics`. These are NaN for a map
        that is constant as :func:`captum_clip.maps.normalize` sees it.
    """
    axes = interpolations(maps.shape[-2:], size, maps.device)
    rows, columns = map(_outermost, axes)
    wide = maps.double()
    outermost = (rows @ wide @ columns.T).flatten(-2)
    low, high = outermost.amin(-1), outermost.amax(-1)
    largest = torch.maximum(low.abs(), high.abs())
    # The tolerance of maps.normalize: what it takes for constant has no statistics here.
    varies = high - low > 8 * torch.finfo(maps.dtype).eps * largest
    stretched = (wide - low[..., None, None]) / torch.where(varies, high - low, 1)[..., None, None]
    measured = {
        "spatial_variance": variance(stretched, axes),
        "spatial_entropy": entropy(stretched, axes),
    }
    if values:  # by its definition to the bit, since it asks which values are the same
        large = (upsample(heatmap, size) for heatmap in maps.reshape(-1, 1, *maps.shape[-2:]))
        entropies = [value_entropy(normalize(heatmap)) for heatmap in large]
        measured["value_entropy"] = torch.cat(entropies).reshape(varies.shape)
    measured = {name: torch.where(varies, value, torch.nan) for name, value in measured.items()}
    return {"low": low, "high": high, **measured}


def _outermost(axis: Tensor) -> Tensor:
    """The first and the last pixel between two neighboring cells."""
    cell = (axis != 0).int().argmax(1)
    changes = cell[1:] != cell[:-1]
    edge = torch.ones(1, dtype=torch.bool, device=axis.device)
    return axis[torch.cat([edge, changes]) | torch.cat([changes, edge])]


@public("corner_bias")
def corner_bias(maps: Tensor) -> Tensor:
    """Mean of the four corner cells of each map over the mean of the whole map, (...), float64.

    1 is no bias, more is a map that favors the corners. It is meant for maps on the model's own
    grid: of an upsampled map a corner is one pixel. NaN where the mean of the map is not above
    zero, since a share of nothing means nothing.

    Example:
        >>> maps = torch.tensor([[2.0, 0.0, 2.0], [0.0, 1.0, 0.0], [2.0, 0.0, 2.0]])
        >>> corner_bias(maps), center_bias(maps)
        (tensor(2., dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    check_maps(maps)
    return _bias(maps, *([0, side - 1] for side in maps.shape[-2:]))


@public("center_bias")
def center_bias(maps: Tensor) -> Tensor:
    """Mean of the cells in the middle of each map over the mean of the whole map, (...), float64.

    In the middle is one cell, on an even side two. As :func:`corner_bias` in all the rest.
    """
    check_maps(maps)
    return _bias(maps, *([(side - 1) // 2, side // 2] for side in maps.shape[-2:]))


def _bias(maps: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """The mean of some rows and columns, which may name a cell twice, over that of all."""
    cells = maps.double()
    mean = cells.mean((-2, -1))
    chosen = cells[..., rows, :][..., columns].mean((-2, -1))
    return torch.where(mean > 0, chosen / mean, torch.nan)


@public("rank_correlation")
def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    r"""Spearman's rank correlation of each map with its counterpart (Adebayo et al. 2018).

    .. math:: \rho = \mathrm{corr}(\mathrm{rank}(m), \mathrm{rank}(m'))

    over the cells of a map; equal values share the mean of their ranks. Maps of a model with
    random parameters or of another prompt should correlate little with the true ones, maps of the
    same function in another form (permuted heads) perfectly. The modified copies come from
    :mod:`captum_clip.models.variants`.

    Returns:
        (...) from -1 to 1; NaN where either map is constant and has no ranks.

    Raises:
        InputError: other maps, or maps of different shapes.

    Source: Adebayo et al. 2018, *Sanity Checks for Saliency Maps* (arXiv:1810.03292).

    Example:
        >>> heatmap = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
        >>> rank_correlation(heatmap, heatmap.exp())
        tensor(1.)
    """
    check_maps(maps)
    check_maps(others)
    alike = maps.shape == others.shape and maps.device == others.device
    advice = "resize one with captum_clip.maps.upsample"
    expect(alike, f"maps as the others, {describe(others)}", maps, advice)
    return spearman(maps.flatten(-2), others.flatten(-2)).to(to_float32(maps).dtype)


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1 along the last dimension, (..., N) float64; equal values share their mean."""
    from scipy.stats import rankdata

    # Equal values share their rank: ranks by argsort would correlate where maps are flat.
    ranks = rankdata(values.detach().double().cpu().numpy(), axis=-1)
    return torch.from_numpy(ranks).to(values.device)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation along the last dimension, (..., N) -> (...)."""
    return pearson(average_ranks(first), average_ranks(second))


def area_of_ranks(values: Tensor, positive: Tensor) -> Tensor:
    """The chance that a positive value (of (..., N)) is above another; equal values count half.

    That is the area under their ROC curve; NaN where either kind is missing.
    """
    count, others = positive.sum(-1).double(), (~positive).sum(-1)
    ranks = torch.where(positive, average_ranks(values), 0).sum(-1)
    return (ranks - count * (count + 1) / 2) / (count * others)
