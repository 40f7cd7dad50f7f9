"""Random changes of one image, which a map is asked to predict."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import check_interval, check_positive
from .checks import check_count
from .resize import cell_indices

Perturbation = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]


def patch_removal(
    grid: tuple[int, int],
    *,
    share: float = 0.2,
    fill: float | Tensor = 0.0,
    shifted: bool = False,
) -> Perturbation:
    """Remove cells of a grid at random: the perturbation for maps that give each region a value.

    Args:
        grid: rows and columns, as ``clip.grid(height, width)`` gives them.
        share: the chance of each cell to be removed, above 0 and up to 1.
        fill: what takes its place; zero is the mean colour of normalised images.
        shifted: by half a cell, so that no cell is a patch of a ViT.

    Returns:
        A function (image (C, H, W), generator) -> (1 where removed and 0 elsewhere, the image
        without those cells).

    Raises:
        InputError: no such grid or share.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> perturb = metrics.patch_removal((2, 2), share=1.0)
        >>> change, left = perturb(torch.ones(3, 8, 8), torch.Generator())
        >>> change.mean(), left.mean()
        (tensor(1.), tensor(0.))
    """
    rows, columns = grid
    check_count("patch_removal", "the grid's rows", rows)
    check_count("patch_removal", "the grid's columns", columns)
    check_interval("patch_removal", "a share", share, "(0, 1]")

    def perturb(image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = torch.rand(rows + shifted, columns + shifted, generator=generator) < share
        cells = cell_indices(grid, image, shifted=shifted)
        removed = drawn.to(image.device)[cells].expand_as(image)
        filled = torch.as_tensor(fill).to(image)
        return removed.to(image.dtype), torch.where(removed, filled, image)

    return perturb


def gaussian_noise(deviation: float = 0.1) -> Perturbation:
    """Add noise to every pixel: the perturbation for gradients and other maps of local change.

    Args:
        deviation: standard deviation of the noise, in units of the normalised images.

    Returns:
        A function (image (C, H, W), generator) -> (noise, image - noise).

    Raises:
        InputError: a standard deviation that is not above 0.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> noise, left = metrics.gaussian_noise(0.5)(torch.ones(3, 8, 8), torch.Generator())
        >>> torch.equal(left, 1 - noise)
        True
    """
    check_positive("gaussian_noise", "a standard deviation", deviation)

    def perturb(image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = torch.randn(image.shape, generator=generator)
        noise = deviation * drawn.to(image)
        return noise, image - noise

    return perturb
