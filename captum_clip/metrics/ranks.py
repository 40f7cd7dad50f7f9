"""Rank correlation of two sets of maps: does a map change when it should?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..maps import check_maps
from .checks import check_device
from .resize import at_least_single


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    r"""Spearman's rank correlation of each map with its counterpart (Adebayo et al. 2018).

    .. math:: \rho = \mathrm{corr}(\mathrm{rank}(m), \mathrm{rank}(m'))

    over the cells of a map; equal values share the mean of their ranks. Maps of a model with
    random parameters or of another prompt should correlate little with the true ones, maps of the
    same function in another form (permuted heads) perfectly. The modified copies come from
    :mod:`captum_clip.models.variants`.

    Args:
        maps: (..., h, w).
        others: the same shape.

    Returns:
        (...) from -1 to 1; NaN where one of the two maps is constant and has no ranks.

    Raises:
        InputError: maps that are no finite floating-point tensors, or of different shapes.

    Source: Adebayo et al. 2018, *Sanity Checks for Saliency Maps* (arXiv:1810.03292).

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> heatmap = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
        >>> metrics.rank_correlation(heatmap, heatmap.exp())
        tensor(1.)
    """
    check_maps("rank_correlation", maps)
    check_maps("rank_correlation", others)
    if maps.shape != others.shape:
        raise InputError(
            f"rank_correlation: expected two sets of maps of one shape, got {tuple(maps.shape)} "
            f"and {tuple(others.shape)}; resize one with captum_clip.maps.upsample."
        )
    check_device("rank_correlation", maps, others, what="others")
    return spearman(maps.flatten(-2), others.flatten(-2)).to(at_least_single(maps).dtype)


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1 along the last dimension, (..., N) float64; equal values share their mean rank.

    Example:
        >>> import torch
        >>> average_ranks(torch.tensor([3.0, 1.0, 3.0]))
        tensor([2.5000, 1.0000, 2.5000], dtype=torch.float64)
    """
    values = values.double().contiguous()
    ordered = values.sort(-1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to + 1).double() / 2


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation along the last dimension, (..., N) -> (...); NaN for a constant."""
    varies = _varies(first) & _varies(second)
    first, second = (x.double() - x.double().mean(-1, keepdim=True) for x in (first, second))
    size = (first.square().sum(-1) * second.square().sum(-1)).sqrt()
    return torch.where(varies, ((first * second).sum(-1) / size).clamp(-1, 1), torch.nan)


def _varies(values: Tensor) -> Tensor:
    """Whether more than the rounding of the values tells them apart."""
    rounding = 8 * torch.finfo(torch.float64).eps * values.double().abs().amax(-1)
    return values.double().amax(-1) - values.double().amin(-1) > rounding


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation along the last dimension, (..., N) -> (...)."""
    return pearson(average_ranks(first), average_ranks(second))
