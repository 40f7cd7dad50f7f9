"""What removed pixels are filled with: the mean colour, or a blurred copy of the image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from .checks import check_images


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
    if not deviation > 0:
        raise InputError(
            f"blur_fill: expected a standard deviation above 0 pixels, got {deviation!r}."
        )
    reach = max(1, round(3 * deviation))
    steps = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float64)
    kernel = (-0.5 * (steps / deviation) ** 2).exp()
    kernel = (kernel / kernel.sum()).to(torch.promote_types(images.dtype, torch.float32))
    planes = images.reshape(-1, 1, *images.shape[-2:]).to(kernel.dtype)
    padded = F.pad(planes, (reach, reach, reach, reach), mode="replicate")
    blurred = F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])
    return blurred.reshape(images.shape).to(images.dtype)
