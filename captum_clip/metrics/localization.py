"""Does a map lie on the object? Metrics of maps against masks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_interval
from .checks import check_count
from .resize import count_pixels, maps_at_masks, rounding


def pointing_game(maps: Tensor, masks: Tensor, *, tolerance: int = 0) -> Tensor:
    r"""Whether the maximum of each map lies inside its mask (Zhang et al. 2016, arXiv:1608.00507).

    Maps are resized to their masks first (bilinear). Where several pixels share the maximum, up to
    the rounding of that, the share of them that lies inside counts; so a constant map gets the
    share of the image that the mask covers, which is chance.

    .. math:: h = \frac{|\{p : m_p = \max m\} \cap M|}{|\{p : m_p = \max m\}|}

    Args:
        maps: (..., h, w).
        masks: (..., H, W) bool, one per map, none empty or full.
        tolerance: pixels; a maximum this far from the mask (Euclidean distance) still counts. The
            paper takes 15.

    Returns:
        (...) from 0 to 1; its mean over images is the accuracy of the pointing game.

    Raises:
        InputError: maps that are no finite floating-point tensor, other, empty or full masks,
            a tolerance below 0.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> heatmap = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
        >>> mask = torch.tensor([[False, True], [False, True]])
        >>> metrics.pointing_game(heatmap, mask)
        tensor(1.)
    """
    check_count("pointing_game", "tolerance", tolerance, least=0)
    heatmap = maps_at_masks("pointing_game", maps, masks)
    highest = heatmap >= heatmap.amax((-2, -1), keepdim=True) - rounding(heatmap)  # (..., H, W)
    inside = highest & dilate(masks, tolerance)
    return count_pixels(inside).to(heatmap.dtype) / count_pixels(highest)


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    r"""The share of each map's positive mass that lies inside its mask (Wang et al. 2020).

    .. math:: e = \frac{\sum_{p \in M} m_p^+}{\sum_p m_p^+}

    Maps are resized to their masks first (bilinear). A constant positive map gets the share of the
    image that the mask covers.

    Args:
        maps: (..., h, w), signed or not; only what is above zero counts.
        masks: (..., H, W) bool, one per map, none empty or full.

    Returns:
        (...) from 0 to 1; NaN for a map without positive mass.

    Raises:
        InputError: maps that are no finite floating-point tensor, other, empty or full masks.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> heatmap = torch.tensor([[3.0, 1.0], [-9.0, 0.0]])
        >>> mask = torch.tensor([[True, False], [True, False]])
        >>> metrics.energy_inside(heatmap, mask)
        tensor(0.7500)
    """
    mass = maps_at_masks("energy_inside", maps, masks).clamp(min=0)
    return (mass * masks).sum((-2, -1)) / mass.sum((-2, -1))


def coverage(maps: Tensor, masks: Tensor, *, area: float = 0.2) -> Tensor:
    r"""The share of each object that the top `area` of its map covers.

    .. math:: c = \frac{|T \cap M|}{|M|}, \quad T = \text{the } a H W \text{ highest pixels}

    Maps are resized to their masks first (bilinear). Pixels that tie for the last places share
    them, which is what drawing among them would give on average; so a constant map gets `area`,
    which is chance. The mask itself as a map gets 1, or what fits into the area.

    Args:
        maps: (..., h, w).
        masks: (..., H, W) bool, one per map, none empty or full.
        area: share of the image, above 0 and below 1.

    Returns:
        (...) from 0 to 1.

    Raises:
        InputError: maps that are no finite floating-point tensor, other, empty or full masks, an
            area outside (0, 1).

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> heatmap = torch.tensor([[4.0, 3.0], [2.0, 1.0]])
        >>> mask = torch.tensor([[True, False], [True, False]])
        >>> metrics.coverage(heatmap, mask, area=0.25)
        tensor(0.5000)
    """
    check_interval("coverage", "area", area, "(0, 1)")
    heatmap = maps_at_masks("coverage", maps, masks)
    count = max(1, round(area * masks.shape[-2] * masks.shape[-1]))
    last = heatmap.flatten(-2).topk(count).values[..., -1, None, None]  # (..., 1, 1)
    above, tied = heatmap > last + rounding(heatmap), (heatmap - last).abs() <= rounding(heatmap)
    left = (count - count_pixels(above)) / count_pixels(tied)
    covered = count_pixels(above & masks) + left * count_pixels(tied & masks)
    return covered.to(heatmap.dtype) / count_pixels(masks)


def dilate(masks: Tensor, distance: int) -> Tensor:
    """Masks (..., H, W) with all that is at most `distance` pixels away."""
    if distance == 0:
        return masks
    height, width = masks.shape[-2:]
    columns = torch.arange(width, device=masks.device, dtype=torch.float32)
    left = columns - torch.where(masks, columns, -torch.inf).cummax(-1).values
    right = torch.where(masks, columns, torch.inf).flip(-1).cummin(-1).values.flip(-1) - columns
    beside = torch.minimum(left, right)  # the way along the row to the nearest pixel of the mask
    touched = beside <= distance
    for rows in range(1, min(distance, height - 1) + 1):
        near = beside <= (distance**2 - rows**2) ** 0.5
        touched[..., rows:, :] |= near[..., :-rows, :]
        touched[..., :-rows, :] |= near[..., rows:, :]
    return touched
