"""Ranks with ties, and what is correlated with them."""

from __future__ import annotations

import torch
from torch import Tensor


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
