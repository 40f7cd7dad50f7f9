"""What becomes of removed pixels: one colour, a blurred copy of the image, or ROAD's imputation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import check_positive
from ..errors import InputError
from .checks import check_device, check_images, describe
from .resize import cell_indices, varies

Fill = Tensor | Literal["road"]
_NOISE = 0.01  # of ROAD, in units of the normalised images
_TOLERANCE = 1e-5  # of the residual in ROAD's solver, relative
_MOST_STEPS = 500  # about 15 are needed
_DAMPING = 0.8
_COARSEST_SWEEPS = 30


class _Level(NamedTuple):
    """One scale of the multigrid step."""

    unknown: Tensor  # (B, 1, h, w), 1 where a pixel is removed
    weight: Tensor  # (1, 1, h, w), of each pixel's neighbours together
    step: Tensor  # (B, 1, h, w), from a residual to a damped Jacobi step


def mean_fill(images: Tensor) -> Tensor:
    """The mean colour of the model's training images: zero, since images are normalised.

    Args:
        images: (B, C, H, W), preprocessed.

    Returns:
        Zeros (1, C, 1, 1) for `fill`; black is ``clip.color((0, 0, 0))``.

    Raises:
        InputError: no such images.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> metrics.mean_fill(torch.ones(2, 3, 8, 8)).shape
        torch.Size([1, 3, 1, 1])
    """
    check_images("mean_fill", images)
    return images.new_zeros(1, images.shape[1], 1, 1)


def blur_fill(images: Tensor, *, deviation: float = 10.0) -> Tensor:
    """The images blurred by a Gaussian, edges repeated: the usual start of insertion.

    Args:
        images: (B, C, H, W), preprocessed.
        deviation: standard deviation of the Gaussian in pixels; it is cut off at three.

    Returns:
        (B, C, H, W), same type and device.

    Raises:
        InputError: no such images, or a standard deviation that is not above 0.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> metrics.blur_fill(torch.ones(1, 3, 8, 8), deviation=2.0).shape
        torch.Size([1, 3, 8, 8])
    """
    check_images("blur_fill", images)
    check_positive("blur_fill", "a standard deviation in pixels", deviation)
    reach = max(1, round(3 * deviation))
    steps = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float64)
    kernel = (-0.5 * (steps / deviation) ** 2).exp()
    kernel = (kernel / kernel.sum()).to(torch.promote_types(images.dtype, torch.float32))
    planes = images.reshape(-1, 1, *images.shape[-2:]).to(kernel.dtype)
    padded = F.pad(planes, (reach, reach, reach, reach), mode="replicate")
    blurred = F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])
    return blurred.reshape(images.shape).to(images.dtype)


def road_fill(images: Tensor, removed: Tensor) -> Tensor:
    r"""ROAD's linear imputation: each removed pixel is the weighted mean of its neighbours.

    .. math:: \sum_{q \sim p} w_{pq} (x_p - x_q) = 0 \quad \text{for all removed } p

    with :math:`w = 1/6` for the four direct and :math:`1/12` for the four diagonal neighbours
    inside the image: a sparse linear system for all removed pixels at once. It is solved by
    conjugate gradients with a multigrid step as preconditioner, to a relative residual of 1e-5.
    Where every pixel of an image is removed there is nothing to start from, and zero comes out.
    The small noise of the paper is added by :func:`captum_clip.metrics.perturbation_test`.

    Args:
        images: (B, C, H, W).
        removed: (B, 1, H, W) bool.

    Returns:
        (B, C, H, W), the images with their removed pixels imputed; same type and device.

    Raises:
        InputError: no such images, or `removed` of another shape, type or device.

    Source: Rong et al. 2022, *A Consistent and Efficient Evaluation Strategy for Attribution
    Methods* (arXiv:2202.00449).

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> image = torch.tensor([0.0, 9.0, 9.0, 3.0]).view(1, 1, 1, 4)
        >>> metrics.road_fill(image, image == 9).flatten().round(decimals=3)
        tensor([0., 1., 2., 3.])
    """
    check_images("road_fill", images)
    shape = (len(images), 1, *images.shape[-2:])
    if not isinstance(removed, Tensor) or removed.dtype != torch.bool or removed.shape != shape:
        raise InputError(
            f"road_fill: expected removed as a bool tensor {shape}, got {describe(removed)}."
        )
    check_device("road_fill", images, removed, what="removed pixels")
    dtype = torch.promote_types(images.dtype, torch.float32)
    with torch.no_grad():
        solved = _solve(images.detach().to(dtype), removed.to(dtype))
    return torch.where(removed, solved.to(images.dtype), images)


@dataclass(frozen=True, eq=False)
class Removal:
    """Images, and what becomes of them when units are changed."""

    images: Tensor
    ranks: Tensor  # (B, h, w), 0 is the most relevant
    fill: Tensor | None  # of the images' shape; None for ROAD
    noise: Tensor | None  # the same
    insertion: bool

    @classmethod
    def of(
        cls, images: Tensor, units: Tensor, fill: Fill, *, insertion: bool, seeds: Sequence[int]
    ) -> Removal:
        """Rank the units (B, h, w) and draw what is random."""
        flat = torch.where(varies(units)[:, None, None], units, 0).flatten(1).cpu()
        filled = _checked_fill(fill, images)
        ranks = torch.empty(flat.shape, dtype=torch.long)
        noise = []
        for index, (values, seed) in enumerate(zip(flat, seeds, strict=True)):
            generator = torch.Generator().manual_seed(seed)
            shuffled = torch.randperm(len(values), generator=generator)
            order = values[shuffled].argsort(descending=True, stable=True)
            ranks[index, shuffled[order]] = torch.arange(len(values))
            if filled is None:
                noise.append(_NOISE * torch.randn(images.shape[1:], generator=generator))
        drawn = torch.stack(noise).to(images) if noise else None
        return cls(images, ranks.reshape(units.shape).to(images.device), filled, drawn, insertion)

    def perturbed(self, index: Tensor, least_first: Tensor, counts: Tensor) -> Tensor:
        """The images (N, C, H, W) of an index (N,) with so many units (N,) changed."""
        images, ranks = self.images[index], self.ranks[index]
        backwards = ranks[0].numel() - 1 - ranks
        order = torch.where(least_first[:, None, None], backwards, ranks)
        removed = (order < counts[:, None, None]) != self.insertion
        row, column = cell_indices((ranks.shape[1], ranks.shape[2]), images)
        pixels = removed[:, None, row, column]
        if self.fill is not None:
            return torch.where(pixels, self.fill[index], images)
        assert self.noise is not None
        return torch.where(pixels, road_fill(images, pixels) + self.noise[index], images)


def _checked_fill(fill: Fill, images: Tensor) -> Tensor | None:
    """The fill in the images' shape; None for ROAD."""
    if isinstance(fill, str) and fill == "road":
        return None
    if not isinstance(fill, Tensor):
        raise InputError(
            f'perturbation_test: expected fill as a tensor or "road", got {fill!r}; '
            "metrics.mean_fill(images) gives the mean colour."
        )
    try:
        return fill.to(images).expand_as(images)
    except RuntimeError as error:
        raise InputError(
            f"perturbation_test: a fill {tuple(fill.shape)} cannot be broadcast to images "
            f"{tuple(images.shape)}."
        ) from error


def _solve(images: Tensor, unknown: Tensor) -> Tensor:
    """Conjugate gradients for the unknown pixels, all planes at once."""
    levels = _levels(unknown)
    right = unknown * _neighbours((1 - unknown) * images)
    solution, residual = torch.zeros_like(images), right
    goal = _TOLERANCE**2 * _dot(right, right)
    direction, product = torch.zeros_like(images), torch.ones_like(goal)
    for _ in range(_MOST_STEPS):
        active = _dot(residual, residual) > goal
        if not active.any():
            break
        step = _cycle(levels, residual)
        renewed = _dot(residual, step)
        direction = step + torch.where(active, renewed / product, 0) * direction
        image = _operator(levels[0], direction)
        length = torch.where(active, renewed / _dot(direction, image), 0)
        solution = solution + length * direction
        residual = residual - length * image
        product = torch.where(active, renewed, 1)
    return solution


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum((-2, -1), keepdim=True)


def _neighbours(x: Tensor) -> Tensor:
    """The weighted sum of each pixel's neighbours: (1 2 1) x (1 2 1) without the centre, by 12."""
    rows = x / 6
    rows[..., 1:].add_(x[..., :-1], alpha=1 / 12)
    rows[..., :-1].add_(x[..., 1:], alpha=1 / 12)
    total = torch.sub(2 * rows, x, alpha=1 / 3)
    total[..., 1:, :] += rows[..., :-1, :]
    total[..., :-1, :] += rows[..., 1:, :]
    return total


def _operator(level: _Level, x: Tensor) -> Tensor:
    """The left side of the system; x is zero where pixels are known."""
    return level.unknown * (level.weight * x - _neighbours(x))


def _levels(unknown: Tensor) -> list[_Level]:
    """The unknown pixels at each scale: a coarse one is where all four below it are."""
    levels = []
    while True:
        weight = _neighbours(torch.ones_like(unknown[:1])).clamp(min=torch.finfo(unknown.dtype).eps)
        levels.append(_Level(unknown, weight, _DAMPING * unknown / weight))
        if max(unknown.shape[-2:]) <= 3 or not unknown.any():
            return levels
        unknown = 1 - F.max_pool2d(1 - unknown, 2, ceil_mode=True)


def _cycle(levels: list[_Level], right: Tensor) -> Tensor:
    """One symmetric multigrid V-cycle for the system with this right side, from zero."""
    level = levels[0]
    solution = level.step * right

    def smoothed(x: Tensor) -> Tensor:
        return x + level.step * (_neighbours(x).add_(right).sub_(level.weight * x))

    if len(levels) == 1:
        for _ in range(_COARSEST_SWEEPS):
            solution = smoothed(solution)
        return solution
    height, width = right.shape[-2:]
    residual = F.pad(right - _operator(level, solution), (0, width % 2, 0, height % 2))
    coarse = _cycle(levels[1:], levels[1].unknown * 4 * F.avg_pool2d(residual, 2))
    spread = coarse.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., :height, :width]
    return smoothed(solution + level.unknown * spread)
