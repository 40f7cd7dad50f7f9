"""Maps against human fixations: NSS, CC, SIM and AUC-Judd.

Maps (..., h, w) are resized first (bilinear): to fixations (..., H, W), bool, the pixels that
somebody looked at, neither none nor all; or to densities (..., H, W), fixations blurred as a rule
by 1 degree of sight, from 0 on, with some mass. There is one of them per map; for others, and for
NaN, an InputError is raised.

Source: Bylinskii et al. 2019, *What do different evaluation metrics tell us about saliency
models?* (arXiv:1604.03605).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..maps import check_maps, normalize, to_float32
from .inputs import (
    describe,
    maps_at_masks,
    resize_to_masks,
    varies,
)
from .map_statistics import average_ranks, pearson


def nss(maps: Tensor, fixations: Tensor) -> Tensor:
    r"""Normalised scanpath saliency: the mean standardised value at the fixations.

    .. math:: \mathrm{NSS} = \frac{1}{|F|} \sum_{p \in F} \frac{m_p - \bar m}{\sigma(m)}

    Chance is 0. The standard deviation is that of a sample (divided by N - 1), as in the authors'
    code.

    Returns:
        (...); NaN for a constant map.

    Source: Peters et al. 2005; Bylinskii et al. 2019.

    Example:
        >>> fixated = torch.tensor([[True, False], [False, False]])
        >>> nss(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), fixated)
        tensor(1.5000)
    """
    heatmap = maps_at_masks("nss", maps, fixations, what="fixations")
    values = heatmap.double()
    centred = values - values.mean((-2, -1), keepdim=True)
    mean = (centred * fixations).sum((-2, -1)) / fixations.sum((-2, -1))
    return _where_varying(mean / values.flatten(-2).std(-1), heatmap)


def cc(maps: Tensor, densities: Tensor) -> Tensor:
    r"""The linear correlation of each map with the density of fixations.

    .. math:: \mathrm{CC} = \frac{\mathrm{cov}(m, d)}{\sigma(m) \, \sigma(d)}

    Chance is 0.

    Returns:
        (...) from -1 to 1; NaN for a constant map or density.

    Example:
        >>> density = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> cc(3 * density - 5, density)
        tensor(1.)
    """
    heatmap = _at_densities("cc", maps, densities)
    known = to_float32(densities)
    correlation = pearson(heatmap.flatten(-2), known.flatten(-2)).to(heatmap.dtype)
    return _where_varying(_where_varying(correlation, heatmap), known)


def sim(maps: Tensor, densities: Tensor) -> Tensor:
    r"""The similarity of each map and the density of fixations: their common mass.

    .. math:: \mathrm{SIM} = \sum_p \min(\hat m_p, \hat d_p)

    where both are min-max normalised and then divided by their sums.

    Returns:
        (...) from 0 to 1; NaN for a constant map or density.

    Source: Judd et al. 2012; Bylinskii et al. 2019.

    Example:
        >>> density = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> sim(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), density)
        tensor(0.5000)
    """
    heatmap = _at_densities("sim", maps, densities)
    normalised = [normalize(heatmap).double(), normalize(to_float32(densities)).double()]
    shares = [x / x.sum((-2, -1), keepdim=True) for x in normalised]
    return torch.minimum(*shares).sum((-2, -1)).to(heatmap.dtype)


def auc_judd(maps: Tensor, fixations: Tensor) -> Tensor:
    r"""The area under the ROC curve of each map as a classifier of fixated pixels, after Judd.

    Thresholds are the map's values at the fixations. At each, the curve has the share of the
    fixations with at least that value over the share of all other pixels with at least it; from
    (0, 0) over those points to (1, 1) it is joined by straight lines, which comes to

    .. math:: \mathrm{AUC} = P(m_f > m_o) + \tfrac{1}{2} P(m_f = m_o)
                             + \frac{1}{2 |F|} P(m_o > \min_F m)

    for a fixated pixel f and another pixel o drawn at random. Judd's code separates equal values by
    a random jitter; here the mean over all such orders is computed, so there is no chance in it.

    Returns:
        (...) from 0 to 1; for a constant map chance, 0.5 + 0.5 / (number of fixations + 1).

    Source: Judd et al. 2009; Bylinskii et al. 2019.

    Example:
        >>> fixated = torch.tensor([[True, False], [False, False]])
        >>> auc_judd(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), fixated)
        tensor(1.)
    """
    heatmap = maps_at_masks("auc_judd", maps, fixations, what="fixations")
    values = torch.where(varies(heatmap)[..., None, None], heatmap, 0).flatten(-2)
    at = fixations.flatten(-2)
    count, others = at.sum(-1).double(), (~at).sum(-1).double()
    rank_sum = torch.where(at, average_ranks(values), 0).sum(-1)
    area = (rank_sum - count * (count + 1) / 2) / (count * others)  # of the ordinary ROC curve
    lowest = torch.where(at, values, torch.inf).amin(-1, keepdim=True)
    tied = values == lowest
    level = (tied & at).sum(-1)
    reached = (~at & (values > lowest)).sum(-1) + (tied & ~at).sum(-1) * level / (level + 1)
    return (area + reached / (2 * count * others)).to(heatmap.dtype)


def _at_densities(caller: str, maps: Tensor, densities: Tensor) -> Tensor:
    """Maps at the size of their densities, after a check of both."""
    check_maps(caller, maps)
    check_maps(f"{caller}, densities", densities)
    if densities.shape[:-2] != maps.shape[:-2] or densities.device != maps.device:
        raise InputError(
            f"{caller}: expected one density (..., H, W) per map, got densities "
            f"{describe(densities)} for maps {describe(maps)}."
        )
    if (densities < 0).any() or not densities.flatten(-2).any(-1).all():
        raise InputError(
            f"{caller}: expected densities from 0 on with some mass in each; leave the other "
            "images out."
        )
    return resize_to_masks(maps, densities)


def _where_varying(scores: Tensor, heatmap: Tensor) -> Tensor:
    """Scores (...), NaN where the map or density (..., H, W) is constant."""
    return torch.where(varies(heatmap), scores, torch.nan).to(heatmap.dtype)
