"""Maps as metrics take them: one plane per image, or at the size of their masks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..maps import check_maps, upsample
from .checks import check_device, check_masks


def as_planes(caller: str, maps: Tensor, images: Tensor) -> Tensor:
    """Maps of images (B, C, H, W) as planes (B, h, w), at least in single precision.

    Maps are (B, h, w) or (B, 1, h, w) on a grid that is no finer than the image, or of the images'
    shape as Captum's input methods give them, whose channels are added up.
    """
    check_maps(caller, maps)
    shapes = f"maps {tuple(maps.shape)} for images {tuple(images.shape)}"
    flat = maps[:, None] if maps.ndim == 3 else maps
    if flat.ndim != 4 or len(flat) != len(images):
        raise InputError(f"{caller}: expected one map (h, w) or (1, h, w) per image, got {shapes}.")
    if flat.shape[1] != 1 and flat.shape != images.shape:
        raise InputError(
            f"{caller}: expected maps with one channel or of the images' shape, got {shapes}; with "
            "several targets pass one of them, maps[:, k]."
        )
    if flat.shape[-2] > images.shape[-2] or flat.shape[-1] > images.shape[-1]:
        raise InputError(f"{caller}: a map cannot be finer than its image; got {shapes}.")
    check_device(caller, maps, images, what="images")
    return at_least_single(flat).sum(1)


def at_least_single(maps: Tensor) -> Tensor:
    """At least in single precision: a sum over pixels does not fit in half."""
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


def resize_to_masks(maps: Tensor, masks: Tensor) -> Tensor:
    """Maps (..., h, w) at the size of their masks (..., H, W), at least in single precision."""
    return upsample(at_least_single(maps), (masks.shape[-2], masks.shape[-1]))


def maps_at_masks(caller: str, maps: Tensor, masks: Tensor, *, what: str = "masks") -> Tensor:
    """Maps as :func:`resize_to_masks` gives them, after a check of both."""
    check_maps(caller, maps)
    check_masks(caller, maps, masks, what=what)
    return resize_to_masks(maps, masks)


def cell_indices(
    grid: tuple[int, int], images: Tensor, *, shifted: bool = False
) -> tuple[Tensor, Tensor]:
    """The row (H, 1) and the column (W,) of the cell that each pixel of images (..., H, W) lies in.

    A grid that is `shifted` by half a cell has one row and one column more.

    Example:
        >>> import torch
        >>> cell_indices((1, 2), torch.zeros(1, 4))
        (tensor([[0]]), tensor([0, 0, 1, 1]))
        >>> cell_indices((1, 2), torch.zeros(1, 4), shifted=True)
        (tensor([[0]]), tensor([0, 1, 1, 2]))
    """

    def owners(pixels: int, cells: int) -> Tensor:
        starts = 2 * cells * torch.arange(pixels, device=images.device)
        return (starts + pixels * shifted) // (2 * pixels)

    (rows, columns), (height, width) = grid, images.shape[-2:]
    return owners(height, rows)[:, None], owners(width, columns)


def rounding(maps: Tensor) -> Tensor:
    """Differences (..., 1, 1) that may come from resizing a map (..., h, w)."""
    return 8 * torch.finfo(maps.dtype).eps * maps.abs().amax((-2, -1), keepdim=True)


def varies(maps: Tensor) -> Tensor:
    """Whether each map (..., h, w) differs from a constant by more than rounding: (...)."""
    span = maps.amax((-2, -1)) - maps.amin((-2, -1))
    return span > rounding(maps)[..., 0, 0]


def count_pixels(masks: Tensor) -> Tensor:
    """The number of pixels (...) of each mask (..., H, W)."""
    return masks.flatten(-2).sum(-1)
