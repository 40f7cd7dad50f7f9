"""Maps, masks, images, scores and seeds as metrics take them: checked once, in one form."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_integer, describe, expect, expecting, is_integer
from ..errors import InputError
from ..maps import check_maps, check_tensor, to_float32, upsample

Forward = Callable[[Tensor], Tensor]
Targets = int | Sequence[int] | Tensor | None
Seed = int | Sequence[int]


def check_bool(name: str, value: Any) -> None:
    """Raise InputError unless a value is a bool tensor."""
    is_bool = isinstance(value, Tensor) and value.dtype == torch.bool
    expect(is_bool, f"{name} as a bool tensor", value)


def check_images(images: Any) -> None:
    """Raise InputError unless images are a finite floating-point tensor (B, C, H, W)."""
    check_tensor("images", images, "(B, C, H, W)", "clip.preprocess(...) makes them")


def check_filled(masks: Tensor, *, what: str = "masks") -> None:
    """Raise InputError unless each mask (..., H, W) has an inside and an outside."""
    flat = masks.flatten(-2)
    for state, wrong in (("empty", ~flat.any(-1)), ("full", flat.all(-1))):
        if wrong.any():
            raise InputError(
                f"{int(wrong.sum())} of the {what} are {state}, where every map scores "
                "the same; leave those images out."
            )


def maps_at_masks(maps: Tensor, masks: Tensor, *, what: str = "masks") -> Tensor:
    """Maps (..., h, w) at the size of their bool masks (..., H, W), at least in single precision.

    There is one mask per map, none empty or full.
    """
    check_bool(what, masks)
    check_maps(maps)
    fits = masks.ndim >= 2 and masks.shape[:-2] == maps.shape[:-2]
    expected = f"one of the {what} (..., H, W) per map of {describe(maps)}"
    expect(fits and masks.device == maps.device, expected, masks)
    check_filled(masks, what=what)
    return resize_to_masks(maps, masks)


def resize_to_masks(maps: Tensor, masks: Tensor) -> Tensor:
    """Maps (..., h, w) at the size of masks (..., H, W), at least in single precision."""
    return upsample(to_float32(maps), (masks.shape[-2], masks.shape[-1]))


def as_planes(maps: Tensor, images: Tensor) -> Tensor:
    """Maps of images (B, C, H, W) as planes (B, h, w), at least in single precision.

    Maps are (B, h, w) or (B, 1, h, w) on a grid that is no finer than the image. Or they have the
    images' shape, as Captum's input methods give them; then their channels are added up.
    """
    check_maps(maps)
    flat = maps[:, None] if maps.ndim == 3 else maps
    one_each = flat.ndim == 4 and len(flat) == len(images) and maps.device == images.device
    finer = maps.shape[-2] > images.shape[-2] or maps.shape[-1] > images.shape[-1]
    fits = one_each and not finer and (flat.shape[1] == 1 or flat.shape == images.shape)
    expected = "one map per image, (B, 1, h, w) or (B, h, w) and no finer than it, or of its shape"
    advice = f"the images are {describe(images)}, and of several targets pass one, maps[:, k]"
    expect(fits, expected, maps, advice)
    return to_float32(flat).sum(1)


def shifted_cells(grid: tuple[int, int], images: Tensor) -> tuple[Tensor, Tensor]:
    """The row (H, 1) and the column (W,) of the cell that each pixel of images (..., H, W) lies in.

    The grid is shifted by half a cell, so it has one row and one column more.

    Example:
        >>> shifted_cells((1, 2), torch.zeros(1, 4))
        (tensor([[0]]), tensor([0, 1, 1, 2]))
    """

    def owners(pixels: int, cells: int) -> Tensor:
        starts = 2 * cells * torch.arange(pixels, device=images.device)
        return (starts + pixels) // (2 * pixels)

    (rows, columns), (height, width) = grid, images.shape[-2:]
    return owners(height, rows)[:, None], owners(width, columns)


def rounding(maps: Tensor) -> Tensor:
    """Differences (..., 1, 1) that may come from resizing a map (..., h, w)."""
    return 8 * torch.finfo(maps.dtype).eps * maps.abs().amax((-2, -1), keepdim=True)


def varies(maps: Tensor) -> Tensor:
    """Whether each map (..., h, w) differs from a constant by more than rounding: (...)."""
    span = maps.amax((-2, -1)) - maps.amin((-2, -1))
    return span > rounding(maps)[..., 0, 0]


def seeds_of(seed: Any, count: int) -> list[int]:
    """The seed of each of `count` images: seed + i, or as they are listed."""
    if not isinstance(seed, list | tuple):
        check_integer("a seed", seed, least=0)
        return [seed + index for index in range(count)]
    fits = len(seed) == count and all(is_integer(value, least=0) for value in seed)
    expect(fits, f"a seed from 0 on, or one for each of {count} images", seed)
    return list(seed)


def checked_targets(targets: Targets, images: Tensor, *, name: str) -> Tensor:
    """The index (B,) of each image's target, on the images' device; None stands for 0."""
    expected = f"{name} as an index from 0 on, or one for each of {len(images)} images"
    with expecting(expected, targets):  # what is no tensor; or complex, without order
        index = torch.as_tensor(0 if targets is None else targets, device=images.device)
        whole = not index.is_floating_point() and index.dtype != torch.bool
        fits = whole and index.shape in ((), (len(images),)) and bool((index >= 0).all())
        expect(fits, expected, targets)
    return index.long().expand(len(images))


def checked_scores(forward: Forward, images: Tensor, largest: int | None) -> Tensor:
    """The scores (B, K) of a forward function that has a column for the largest target.

    Without a target it must have one column only.
    """
    scores = forward(images.clone())  # which may change them
    fits = isinstance(scores, Tensor) and scores.ndim in (1, 2) and len(scores) == len(images)
    expected = f"a forward function that returns (B,) or (B, K) for {len(images)} images"
    expect(fits, expected, scores)
    scores = scores.reshape(len(images), -1)
    count = scores.shape[1]
    if count != 1 if largest is None else largest >= count:
        wanted = "say which by a target" if largest is None else f"there is none of index {largest}"
        raise InputError(f"the forward function returns {count} scores per image; {wanted}.")
    return scores
