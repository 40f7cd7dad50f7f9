"""Statistics of maps: spread, entropies, corners and center, and the rank correlation of two maps.

Throughout, `maps` are (..., h, w), floating-point and finite; other maps raise an InputError.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ..checks import describe, expect
from ..errors import public
from ..maps import check_maps, normalize, pearson, to_float32, upsample

Resizing = tuple[Tensor, Tensor]
"""R_h (H, h) and R_w (W, w), float64: upsampled to H x W a map m is R_h m R_w^T."""

_PIXELS_PER_BLOCK: Final = 2**20
_TINY: Final = torch.finfo(torch.float32).tiny
"""Stands for 0 in x log x, which it makes negligible; a smaller number could be flushed to zero."""


@public("spatial_variance")
def spatial_variance(maps: Tensor) -> Tensor:
    r"""Compute the variance (...) of the values of each map over all of its cells, float64.

    .. math:: \sigma^2 = \frac{1}{hw} \sum_{ij} (m_{ij} - \bar m)^2

    A constant map has variance 0. If maps were min-max normalized first, the variance of a
    constant map means nothing: count such maps separately.

    Example:
        >>> spatial_variance(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor(0.2500, dtype=torch.float64)
    """
    check_maps(maps)
    return variance(maps.double())


@public("spatial_entropy")
def spatial_entropy(maps: Tensor) -> Tensor:
    r"""Compute the entropy (...) in bits of each map as a distribution over its cells, float64.

    .. math:: H = -\sum_{ij} p_{ij} \log_2 p_{ij}, \quad p = m / \sum m, \quad 0 \log 0 = 0

    A concentrated map has a low entropy. It is at most :math:`\log_2(hw)`, which a constant map
    reaches. A map of zeros is no distribution and gives NaN.

    Raises:
        InputError: other maps, or values below zero.

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
    r"""Compute the entropy (...) in bits of the distribution of each map's values, float64.

    .. math:: H = -\sum_v p_v \log_2 p_v, \quad p_v = \frac{n_v}{hw}

    with :math:`n_v` the number of cells of exactly the value v: scikit-image's `shannon_entropy`.
    A map of many different values has a high entropy. It is at most :math:`\log_2(hw)`, and 0 for a
    constant map. It depends on the size and on the type of the map, since more values coincide in
    half precision: report both with it.

    Example:
        >>> value_entropy(torch.tensor([[0.0, 0.5], [1.0, 1.0]]))
        tensor(1.5000, dtype=torch.float64)
    """
    check_maps(maps)
    flat = maps.detach().reshape(-1, maps.shape[-2] * maps.shape[-1])
    nats = []
    for values in flat:
        _, counts = torch.unique(values, return_counts=True)
        shares = counts.double() / counts.sum()
        nats.append(torch.special.entr(shares).sum())
    return torch.stack(nats).reshape(maps.shape[:-2]) / math.log(2)


def interpolations(grid: Sequence[int], size: Sequence[int], device: Any) -> Resizing:
    """Write `maps.upsample` from a grid (h, w) to a size (H, W) as two matrices."""

    def interpolation(cells: int, pixels: int) -> Tensor:
        # Upsampling is linear, so its matrix is made of the upsampled unit vectors.
        unit_vectors = torch.eye(cells).double()[:, :, None]
        return upsample(unit_vectors, (pixels, 1))[:, :, 0].T.to(device)

    return interpolation(grid[0], size[0]), interpolation(grid[1], size[1])


def variance(maps: Tensor, resizing: Resizing | None = None) -> Tensor:
    """Compute the variance (...) of maps (..., h, w) in float64, upsampled if a resizing is given.

    Upsampling is linear, so the sum is a linear and the sum of squares a quadratic form of the
    small map.
    """
    if resizing is None:
        return maps.flatten(-2).var(-1, correction=0)
    rows, columns = resizing
    pixels = len(rows) * len(columns)
    # Around its mean, the square of a map's mean is small, so the difference below loses no digits.
    centered = maps - maps.mean((-2, -1), keepdim=True)
    # The sum of the squares of R_h m R_w^T is that of m times R_h^T R_h m R_w^T R_w, cell by cell.
    weighted = rows.T @ rows @ centered @ columns.T @ columns  # (..., h, w)
    sum_of_squares = (centered * weighted).sum((-2, -1))
    mean = centered @ columns.sum(0) @ rows.sum(0) / pixels
    return sum_of_squares / pixels - mean.square()


def entropy(maps: Tensor, resizing: Resizing | None = None) -> Tensor:
    r"""Compute the entropy :math:`\log_2 S - \frac{1}{S} \sum x \log_2 x` (...) of maps.

    S is the sum of the values x of a map.
    Maps are (..., h, w), computed in float64. With a resizing they count as upsampled: every pixel
    is computed, in single precision and a block at a time, which stays in the cache.
    """
    small = maps.reshape(-1, *maps.shape[-2:])
    if resizing is None:
        total = small.sum((-2, -1))
        sums = _sum_x_log_x(small)
    else:
        rows, columns = resizing
        total = small @ columns.sum(0) @ rows.sum(0)
        maps_per_block = max(1, _PIXELS_PER_BLOCK // (len(rows) * len(columns)))
        upsampled_rows = rows.float() @ small.float()  # (n, H, w)
        block_sums = []
        for block in torch.split(upsampled_rows, maps_per_block):
            block_sums.append(_sum_x_log_x(block @ columns.float().T))
        sums = torch.cat(block_sums)
    return (torch.log2(total) - sums.double() / total).reshape(maps.shape[:-2])


def _sum_x_log_x(values: Tensor) -> Tensor:
    """Sum x log2 x over the pixels of maps, (N, H, W) -> (N,), with 0 log 0 = 0."""
    x = values.clamp(min=_TINY)
    return torch.log2(x).mul_(x).sum((-2, -1))


def measure(maps: Tensor, size: tuple[int, int], *, values: bool = False) -> dict[str, Tensor]:
    r"""Measure the extremes of ``maps.upsample(m, size)``, and its statistics stretched to [0, 1].

    They are computed on the map's own grid where possible. Upsampling is linear in the map,
    :math:`U m = R_h m R_w^T`, and a min-max map is :math:`x = a \, U m + b`. So its sum and its sum
    of squares are forms of the small map. Between neighboring cells x is bilinear: its extremes lie
    on the outermost pixels there. Only the entropy needs every pixel.

    Args:
        maps: (..., h, w), finite, float32.
        size: (H, W) of the images.
        values: whether :func:`captum_clip.metrics.value_entropy` is measured as well.

    Returns:
        name -> (...), float64: "low" and "high", then "spatial_variance", "spatial_entropy"
        and, if asked for, "value_entropy" as in :mod:`captum_clip.metrics`. These are NaN for a map
        that :func:`captum_clip.maps.normalize` treats as constant.
    """
    resizing = interpolations(maps.shape[-2:], size, maps.device)
    rows, columns = resizing
    cells = maps.double()
    outermost = _outermost(rows) @ cells @ _outermost(columns).T
    low = outermost.amin((-2, -1))
    high = outermost.amax((-2, -1))
    largest = torch.maximum(low.abs(), high.abs())
    # This is the tolerance of maps.normalize: a map that it treats as constant has no statistics.
    varies = high - low > 8 * torch.finfo(maps.dtype).eps * largest
    span = torch.where(varies, high - low, 1)
    stretched = (cells - low[..., None, None]) / span[..., None, None]
    statistics = {
        "spatial_variance": variance(stretched, resizing),
        "spatial_entropy": entropy(stretched, resizing),
    }
    if values:
        # This entropy depends on which values are equal to the bit, so maps must be upsampled by
        # the same function as elsewhere.
        entropies = []
        for heatmap in maps.reshape(-1, 1, *maps.shape[-2:]):
            entropies.append(value_entropy(normalize(upsample(heatmap, size))))
        statistics["value_entropy"] = torch.cat(entropies).reshape(varies.shape)
    measured = {"low": low, "high": high}
    for name, statistic in statistics.items():
        measured[name] = torch.where(varies, statistic, torch.nan)
    return measured


def _outermost(weights: Tensor) -> Tensor:
    """Keep the rows of R_h or R_w of the first and the last pixel between neighboring cells."""
    # A pixel between two cells has a weight for both, so the first of them tells where it lies.
    first_cell = (weights != 0).int().argmax(1)
    changes = first_cell[1:] != first_cell[:-1]
    edge = torch.ones(1, dtype=torch.bool, device=weights.device)
    is_first = torch.cat([edge, changes])
    is_last = torch.cat([changes, edge])
    return weights[is_first | is_last]


@public("corner_bias")
def corner_bias(maps: Tensor) -> Tensor:
    """Divide the mean of each map's four corner cells by the mean of the map, (...), float64.

    The figure is 1 without a bias, and above 1 for a map that favors the corners. It is meant for
    maps on the model's own grid: a corner of an upsampled map is a single pixel. It is NaN where
    the mean of the map is not above zero, since the ratio then means nothing.

    Example:
        >>> maps = torch.tensor([[2.0, 0.0, 2.0], [0.0, 1.0, 0.0], [2.0, 0.0, 2.0]])
        >>> corner_bias(maps), center_bias(maps)
        (tensor(2., dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    check_maps(maps)
    height, width = maps.shape[-2:]
    return _bias(maps, rows=[0, height - 1], columns=[0, width - 1])


@public("center_bias")
def center_bias(maps: Tensor) -> Tensor:
    """Divide the mean of each map's middle cells by the mean of the map, (...), float64.

    The middle of a side is one cell, or two if the side is even. In all other respects it is like
    :func:`corner_bias`.
    """
    check_maps(maps)
    height, width = maps.shape[-2:]
    middle_rows = [(height - 1) // 2, height // 2]
    middle_columns = [(width - 1) // 2, width // 2]
    return _bias(maps, middle_rows, middle_columns)


def _bias(maps: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """Divide the mean over some rows and columns by the map's mean.

    A row or column may be named twice, as the only middle one is.
    """
    cells = maps.double()
    mean = cells.mean((-2, -1))
    chosen = cells[..., rows, :][..., columns].mean((-2, -1))
    return torch.where(mean > 0, chosen / mean, torch.nan)


@public("rank_correlation")
def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    r"""Compute the rank correlation of each map with its counterpart (Adebayo et al. 2018).

    .. math:: \rho = \mathrm{corr}(\mathrm{rank}(m), \mathrm{rank}(m'))

    over the cells of a map (Spearman's); equal values share the mean of their ranks. Maps of a
    model with random parameters or of another prompt should correlate little with the true maps.
    Maps of the same function in another form (permuted heads) should correlate perfectly.
    :mod:`captum_clip.models.variants` makes the modified copies.

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
    are_alike = maps.shape == others.shape and maps.device == others.device
    advice = "resize one with captum_clip.maps.upsample"
    expect(are_alike, f"maps as the others, {describe(others)}", maps, advice)
    correlation = spearman(maps.flatten(-2), others.flatten(-2))
    return correlation.to(to_float32(maps).dtype)


def average_ranks(values: Tensor) -> Tensor:
    """Rank along the last dimension from 1, (..., N) float64; equal values share a mean rank."""
    from scipy.stats import rankdata

    # An argsort would order equal values by position, so flat parts of two maps would correlate.
    ranks = rankdata(values.detach().double().cpu().numpy(), axis=-1)
    return torch.from_numpy(ranks).to(values.device)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Compute Spearman's rank correlation along the last dimension, (..., N) -> (...)."""
    return pearson(average_ranks(first), average_ranks(second))


def area_of_ranks(values: Tensor, is_positive: Tensor) -> Tensor:
    """Compute the probability (...) that a positive value of (..., N) is above a negative one.

    Equal values count half. This is the area under the ROC curve, from the Mann-Whitney U; it is
    NaN without positives or without negatives.
    """
    positive_count = is_positive.sum(-1).double()
    negative_count = (~is_positive).sum(-1)
    rank_sum = torch.where(is_positive, average_ranks(values), 0).sum(-1)
    u_statistic = rank_sum - positive_count * (positive_count + 1) / 2
    return u_statistic / (positive_count * negative_count)
