"""What metrics ask of maps, masks, images and scores before they measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import is_integer
from ..errors import InputError
from ..maps import unusable

Forward = Callable[[Tensor], Tensor]
Targets = int | Sequence[int] | Tensor | None
Seed = int | Sequence[int]


def describe(value: Any) -> str:
    """The type and shape of a tensor, or what else a value is."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return type(value).__name__


def check_bool(caller: str, name: str, value: Any) -> None:
    """A bool tensor of any shape."""
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        raise InputError(f"{caller}: expected {name} as a bool tensor, got {describe(value)}.")


def check_finite(caller: str, name: str, value: Any) -> None:
    """A finite floating-point tensor of any shape."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise InputError(
            f"{caller}: expected {name} as a floating-point tensor, got {describe(value)}."
        )
    if not torch.isfinite(value).all():
        raise InputError(f"{caller}: the {name} hold NaN or infinity; leave them out.")


def check_masks(caller: str, maps: Tensor, masks: Any, *, what: str = "masks") -> None:
    """Masks are bool tensors (..., H, W), one per map, none empty and none full."""
    check_bool(caller, what, masks)
    if masks.ndim < 2 or masks.shape[:-2] != maps.shape[:-2]:
        raise InputError(
            f"{caller}: expected one of the {what} (..., H, W) per map, got {what} "
            f"{tuple(masks.shape)} for maps {tuple(maps.shape)}."
        )
    check_device(caller, maps, masks, what=what)
    check_filled(caller, masks, what=what)


def check_filled(caller: str, masks: Tensor, *, what: str = "masks") -> None:
    """Each mask (..., H, W) has something inside and something outside it."""
    flat = masks.flatten(-2)
    for state, wrong in (("empty", ~flat.any(-1)), ("full", flat.all(-1))):
        if wrong.any():
            raise InputError(
                f"{caller}: {int(wrong.sum())} of the {what} are {state}, where every map scores "
                "the same; leave those images out."
            )


def check_device(caller: str, maps: Tensor, others: Tensor, *, what: str) -> None:
    """Everything is on one device."""
    if others.device != maps.device:
        raise InputError(f"{caller}: the {what} are on {others.device}, the maps on {maps.device}.")


def check_images(caller: str, images: Any) -> None:
    """Images are finite floating-point tensors (B, C, H, W)."""
    if isinstance(images, Tensor) and (reason := unusable(images)):
        raise InputError(f"{caller}: expected images as a tensor of plain numbers, got {reason}.")
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"{caller}: expected preprocessed images as a floating-point tensor (B, C, H, W), got "
            f"{describe(images)}; clip.preprocess(...) makes one."
        )
    if 0 in images.shape or not torch.isfinite(images).all():
        raise InputError(
            f"{caller}: the images {tuple(images.shape)} are empty or hold NaN or infinity."
        )


def check_count(caller: str, name: str, value: Any, *, least: int = 1) -> None:
    """A whole number from `least` on."""
    if not is_integer(value, least=least):
        raise InputError(
            f"{caller}: expected {name} as a whole number from {least}, got {value!r}."
        )


def seeds_of(caller: str, seed: Any, count: int) -> list[int]:
    """The seed of each of `count` images: seed + i, or as they are listed."""
    if not isinstance(seed, list | tuple):
        check_count(caller, "seed", seed, least=0)
        return [seed + index for index in range(count)]
    if len(seed) != count or not all(is_integer(value, least=0) for value in seed):
        raise InputError(
            f"{caller}: expected seed as a whole number from 0, or one for each of {count} images, "
            f"got {list(seed)}."
        )
    return list(seed)


def checked_targets(caller: str, targets: Targets, images: Tensor, *, name: str) -> Tensor:
    """The index (B,) of each image's target, on the images' device; None stands for 0."""
    count = len(images)
    try:
        index = torch.as_tensor(0 if targets is None else targets, device=images.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{caller}: expected {name} as an index or one per image, got {targets!r}."
        ) from error
    whole = not index.is_floating_point() and not index.is_complex() and index.dtype != torch.bool
    if not whole or index.ndim > 1 or (index.ndim == 1 and len(index) != count):
        raise InputError(
            f"{caller}: expected {name} as an index or one for each of {count} images, got "
            f"{index.dtype} of shape {tuple(index.shape)}."
        )
    if (index < 0).any():
        raise InputError(f"{caller}: expected {name} from 0 on, got {int(index.min())}.")
    return index.long().expand(count)


def checked_scores(caller: str, forward: Forward, images: Tensor, largest: int | None) -> Tensor:
    """The scores (B, K) of a forward function that has a column for the largest target.

    Without a target it must have one column only.
    """
    scores = forward(images.clone())  # which may change them
    if not isinstance(scores, Tensor) or scores.ndim not in (1, 2) or len(scores) != len(images):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(
            f"{caller}: expected a forward function that returns (B,) or (B, K) for {len(images)} "
            f"images, got {shape}."
        )
    scores = scores.reshape(len(images), -1)
    if largest is None and scores.shape[1] != 1:
        raise InputError(
            f"{caller}: the forward function returns {scores.shape[1]} scores per image; say which "
            "one is meant by a target."
        )
    if largest is not None and largest >= scores.shape[1]:
        raise InputError(
            f"{caller}: the forward function returns {scores.shape[1]} scores per image, and a "
            f"target is {largest}; give it as many classes as there are targets."
        )
    return scores
