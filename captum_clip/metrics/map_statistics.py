"""What a map looks like on the whole: its spread, its entropies, its corners and its centre."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError
from ..maps import check_maps


def spatial_variance(maps: Tensor) -> Tensor:
    r"""Variance of the values of each map, over all of its cells.

    .. math:: \sigma^2 = \frac{1}{hw} \sum_{ij} (m_{ij} - \bar m)^2

    A constant map has variance 0. Where maps were min-max normalised first, a constant one
    was made of nothing: count it apart.

    Args:
        maps: (..., h, w).

    Returns:
        (...), float64.

    Raises:
        InputError: no such tensor, NaN or infinity.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> metrics.spatial_variance(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor(0.2500, dtype=torch.float64)
    """
    check_maps("spatial_variance", maps)
    return maps.double().flatten(-2).var(-1, correction=0)


def spatial_entropy(maps: Tensor) -> Tensor:
    r"""Entropy in bits of each map as a distribution over its cells; low is concentrated.

    .. math:: H = -\sum_{ij} p_{ij} \log_2 p_{ij}, \quad p = m / \sum m, \quad 0 \log 0 = 0

    It is at most :math:`\log_2(hw)`, which a constant map reaches. A map of zeros is no
    distribution and gives NaN.

    Args:
        maps: (..., h, w), none below zero.

    Returns:
        (...), float64.

    Raises:
        InputError: no such tensor, NaN or infinity, or values below zero.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> metrics.spatial_entropy(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
        tensor(2., dtype=torch.float64)
    """
    check_maps("spatial_entropy", maps)
    if (maps < 0).any():
        raise InputError(
            f"spatial_entropy: expected maps without values below zero, got {maps.min():.3g}; "
            "maps.positive(maps) or maps.normalize(maps) makes them."
        )
    cells = maps.double().flatten(-2)
    return _entropy(cells / cells.sum(-1, keepdim=True))  # zeros give NaN


def value_entropy(maps: Tensor) -> Tensor:
    r"""Entropy in bits of the distribution of each map's values; high is many different ones.

    .. math:: H = -\sum_v p_v \log_2 p_v, \quad p_v = \frac{n_v}{hw}

    with :math:`n_v` the number of cells of exactly the value v: scikit-image's `shannon_entropy`.
    It is at most :math:`\log_2(hw)`, and 0 for a constant map. It depends on the size and on the
    type of the map: in half precision more values coincide. State both beside it.

    Args:
        maps: (..., h, w); their type decides which values are the same.

    Returns:
        (...), float64.

    Raises:
        InputError: no such tensor, NaN or infinity.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> metrics.value_entropy(torch.tensor([[0.0, 0.5], [1.0, 1.0]]))
        tensor(1.5000, dtype=torch.float64)
    """
    check_maps("value_entropy", maps)
    cells = maps.detach().reshape(-1, maps.shape[-2] * maps.shape[-1])
    counts = [torch.unique(values, return_counts=True)[1].double() for values in cells]
    return torch.stack([_entropy(c / c.sum()) for c in counts]).reshape(maps.shape[:-2])


def _entropy(shares: Tensor) -> Tensor:
    """In bits, over the last axis."""
    nats: Tensor = torch.special.entr(shares).sum(-1)
    return nats / math.log(2)


def corner_bias(maps: Tensor) -> Tensor:
    r"""Mean of the four corner cells of each map over the mean of the whole map.

    1 is no bias, more is a map that favours the corners. It says something of maps on the model's
    own grid: of an upsampled map a corner is one pixel. NaN where the mean of the map is not above
    zero, since a share of nothing means nothing.

    Args:
        maps: (..., h, w).

    Returns:
        (...), float64.

    Raises:
        InputError: no such tensor, NaN or infinity.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> maps = torch.tensor([[2.0, 0.0, 2.0], [0.0, 1.0, 0.0], [2.0, 0.0, 2.0]])
        >>> metrics.corner_bias(maps), metrics.centre_bias(maps)
        (tensor(2., dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    check_maps("corner_bias", maps)
    return _bias(maps, [0, maps.shape[-2] - 1], [0, maps.shape[-1] - 1])


def centre_bias(maps: Tensor) -> Tensor:
    """Mean of the cells in the middle of each map over the mean of the whole map.

    In the middle is one cell, on an even side two. As :func:`corner_bias` in all the rest.

    Args:
        maps: (..., h, w).

    Returns:
        (...), float64.

    Raises:
        InputError: no such tensor, NaN or infinity.
    """
    check_maps("centre_bias", maps)
    height, width = maps.shape[-2:]
    return _bias(maps, _middle(height), _middle(width))


def _middle(side: int) -> list[int]:
    return [(side - 1) // 2, side // 2]  # the same cell twice where the side is odd


def _bias(maps: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    cells = maps.double()
    mean = cells.mean((-2, -1))
    part = cells[..., rows, :][..., columns].mean((-2, -1))
    return torch.where(mean > 0, part / mean, torch.nan)
