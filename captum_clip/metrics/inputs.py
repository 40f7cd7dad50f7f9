"""Maps, masks, images, scores and seeds as metrics take them: checked once, in one form."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_integer, is_integer, show
from ..errors import InputError
from ..maps import check_maps, to_float32, unsupported_reason, upsample

Forward = Callable[[Tensor], Tensor]
Targets = int | Sequence[int] | Tensor | None
Seed = int | Sequence[int]


def describe(tensor: Tensor) -> str:
    """The shape of a tensor, and its device where that is not the CPU."""
    return f"{tuple(tensor.shape)}" + f" on {tensor.device}" * (tensor.device.type != "cpu")


def check_bool(name: str, value: Any) -> None:
    """Raise InputError unless a value is a bool tensor."""
    kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
    if kind != torch.bool:
        raise InputError(f"expected {name} as a bool tensor, got {kind}.")


def check_finite(name: str, value: Any) -> None:
    """Raise InputError unless a value is a finite floating-point tensor."""
    kind = (
        unsupported_reason(value) or value.dtype
        if isinstance(value, Tensor)
        else type(value).__name__
    )
    if isinstance(kind, str) or not kind.is_floating_point:
        raise InputError(f"expected {name} as a floating-point tensor, got {kind}.")
    if not torch.isfinite(value).all():
        raise InputError(f"the {name} hold NaN or infinity; leave them out.")


def check_images(images: Any) -> None:
    """Raise InputError unless images are a finite floating-point tensor (B, C, H, W)."""
    check_finite("images", images)
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(
            f"expected preprocessed images (B, C, H, W), none of them empty, got "
            f"{tuple(images.shape)}; clip.preprocess(...) makes them."
        )


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
    heatmap = maps_at(maps, masks, what)
    check_filled(masks, what=what)
    return heatmap


def maps_at(maps: Tensor, planes: Tensor, what: str) -> Tensor:
    """Maps (..., h, w) at the size of the planes (..., H, W) that they are compared with."""
    check_maps(maps)
    if planes.ndim < 2 or planes.shape[:-2] != maps.shape[:-2] or planes.device != maps.device:
        raise InputError(
            f"expected one of the {what} (..., H, W) per map, got {what} "
            f"{describe(planes)} for maps {describe(maps)}."
        )
    return resize_to_masks(maps, planes)


def resize_to_masks(maps: Tensor, masks: Tensor) -> Tensor:
    """Maps (..., h, w) at the size of masks (..., H, W), at least in single precision."""
    return upsample(to_float32(maps), (masks.shape[-2], masks.shape[-1]))


def as_planes(maps: Tensor, images: Tensor) -> Tensor:
    """Maps of images (B, C, H, W) as planes (B, h, w), at least in single precision.

    Maps are (B, h, w) or (B, 1, h, w) on a grid that is no finer than the image, or of the images'
    shape as Captum's input methods give them, whose channels are added up.
    """
    check_maps(maps)
    flat = maps[:, None] if maps.ndim == 3 else maps
    one_each = flat.ndim == 4 and len(flat) == len(images) and maps.device == images.device
    finer = maps.shape[-2] > images.shape[-2] or maps.shape[-1] > images.shape[-1]
    if not one_each or finer or (flat.shape[1] != 1 and flat.shape != images.shape):
        raise InputError(
            f"expected one map per image, (B, 1, h, w) or (B, h, w) and no finer than "
            f"it, or of the images' shape, got maps {describe(maps)} for images "
            f"{describe(images)}; of several targets pass one, maps[:, k]."
        )
    return to_float32(flat).sum(1)


def cell_indices(
    grid: tuple[int, int], images: Tensor, *, shifted: bool = False
) -> tuple[Tensor, Tensor]:
    """The row (H, 1) and the column (W,) of the cell that each pixel of images (..., H, W) lies in.

    A grid that is `shifted` by half a cell has one row and one column more.

    Example:
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


def seeds_of(seed: Any, count: int) -> list[int]:
    """The seed of each of `count` images: seed + i, or as they are listed."""
    if not isinstance(seed, list | tuple):
        check_integer("a seed", seed, least=0)
        return [seed + index for index in range(count)]
    if len(seed) != count or not all(is_integer(value, least=0) for value in seed):
        raise InputError(
            f"expected a seed from 0 on, or one for each of {count} images, got {list(seed)}."
        )
    return list(seed)


def checked_targets(targets: Targets, images: Tensor, *, name: str) -> Tensor:
    """The index (B,) of each image's target, on the images' device; None stands for 0."""
    try:
        index = torch.as_tensor(0 if targets is None else targets, device=images.device)
        whole = not index.is_floating_point() and index.dtype != torch.bool
        right = whole and index.shape in ((), (len(images),)) and bool((index >= 0).all())
    except (TypeError, ValueError, RuntimeError):  # what is no tensor; or complex, without order
        right = False
    if not right:
        raise InputError(
            f"expected {name} as an index from 0 on, or one for each of {len(images)} "
            f"images, got {show(targets)}."
        )
    return index.long().expand(len(images))


def checked_scores(forward: Forward, images: Tensor, largest: int | None) -> Tensor:
    """The scores (B, K) of a forward function that has a column for the largest target.

    Without a target it must have one column only.
    """
    scores = forward(images.clone())  # which may change them
    if not isinstance(scores, Tensor) or scores.ndim not in (1, 2) or len(scores) != len(images):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(
            f"expected a forward function that returns (B,) or (B, K) for {len(images)} "
            f"images, got {shape}."
        )
    scores = scores.reshape(len(images), -1)
    count = scores.shape[1]
    if count != 1 if largest is None else largest >= count:
        wanted = "say which by a target" if largest is None else f"there is none of index {largest}"
        raise InputError(f"the forward function returns {count} scores per image; {wanted}.")
    return scores
