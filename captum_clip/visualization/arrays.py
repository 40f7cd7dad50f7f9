"""What callers give, as NumPy arrays of known shape and range.

Each `as_...` raises InputError in the caller's name: other shapes, values out of range, no numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import maps
from ..errors import InputError
from .style import score_note

Array = npt.NDArray[np.float32]
ArrayLike = Tensor | npt.NDArray[Any]

_SLACK = 1e-3  # rounding of half precision


def as_images(caller: str, images: ArrayLike) -> Array:
    """Images (B, 3, H, W) with colours in [0, 1] -> (B, H, W, 3)."""
    array = as_array(caller, "images", images)
    if array.ndim != 4 or array.shape[1] != 3 or 0 in array.shape:
        raise InputError(
            f"{caller}: expected images of shape (B, 3, H, W), got {array.shape}; "
            "clip.denormalize(images) gives them."
        )
    _check_range(caller, "images", array, "clip.denormalize(images) gives such colours")
    return np.moveaxis(array, 1, -1).clip(0, 1)


def as_heat(caller: str, heatmap: ArrayLike, images: Array, count: int | None = None) -> Array:
    """Maps (B, K, h, w) in [0, 1] -> (B, K, H, W), upsampled to the images (B, H, W, 3)."""
    array = as_array(caller, "maps", heatmap)
    batch = len(images)
    if array.ndim != 4 or 0 in array.shape or len(array) != batch:
        raise InputError(
            f"{caller}: expected maps of shape (B, K, h, w) for {batch} images, got {array.shape}."
        )
    if count is not None and array.shape[1] != count:
        raise InputError(f"{caller}: expected {count} maps per image, got {array.shape[1]}.")
    _check_range(caller, "maps", array, "maps.normalize(maps) stretches each to it")
    size = images.shape[1:3]
    if array.shape[-2:] != size:
        _check_shape(caller, array.shape[-2:], size)
        array = enlarged(array, size)
    return array.clip(0, 1)


def as_raw(caller: str, what: str, raw: ArrayLike, shape: str, size: tuple[int, int]) -> Array:
    """Raw maps of a shape such as "(B, L, h, w)" -> (..., H, W), upsampled."""
    array = as_array(caller, what, raw)
    if array.ndim != shape.count(",") + 1 or 0 in array.shape:
        raise InputError(f"{caller}: expected {what} {shape}, got {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError(f"{caller}: {what} holds NaN or infinity.")
    _check_shape(caller, array.shape[-2:], size)
    return enlarged(array, size)


def enlarged(array: Array, size: tuple[int, int]) -> Array:
    """Maps (..., h, w) -> (..., H, W), smoothly and within the range of each."""
    large: Array = maps.upsample(torch.from_numpy(array), size, mode="bicubic", clamp=True).numpy()
    return large


def _check_shape(caller: str, grid: Sequence[int], size: Sequence[int]) -> None:
    """Refuse a map of a crop on a whole photo, which would silently stretch it.

    A tower's cells are square, and there are as many of them as go into the image, or one more.
    """
    (height, width), (rows, columns) = size, grid
    fitting = (
        height / (rows + 1) < width / columns and width / (columns + 1) < height / rows,
        height * (columns - 1) < width * rows and width * (rows - 1) < height * columns,
    )
    if not any(fitting):
        raise InputError(
            f"{caller}: maps of {rows} x {columns} and images of {height} x {width} differ in "
            "shape, as the map of a crop and its photo do; explain(photo, ...).plot(original=True) "
            "lays a map on the whole photo, maps.uncrop one of your own."
        )


def as_signed(caller: str, attribution: ArrayLike, size: tuple[int, int]) -> Array:
    """One raw map (1, 1, h, w) -> (H, W), its largest absolute value 1 unless all are zero."""
    array = as_array(caller, "an attribution", attribution)
    if array.ndim != 4 or array.shape[:2] != (1, 1):
        raise InputError(
            f"{caller}: expected one attribution of shape (1, 1, h, w), got {array.shape}."
        )
    resized = maps.upsample(torch.from_numpy(array), size)[0, 0].numpy()
    largest = float(np.abs(resized).max())
    return np.asarray(resized / (largest or 1), dtype=np.float32)


def as_notes(caller: str, scores: ArrayLike | None, shape: tuple[int, int]) -> list[list[str]]:
    """Scores (B, K) as they are written under pictures; empty where none are given."""
    if scores is None:
        return [[""] * shape[1]] * shape[0]
    array = as_array(caller, "scores", scores)
    if array.shape != shape:
        raise InputError(f"{caller}: expected scores of shape {shape}, got {array.shape}.")
    return [[score_note(score) for score in row] for row in array]


def as_names(caller: str, names: Sequence[str] | None, count: int) -> list[str]:
    """K names; empty ones where none are given."""
    if names is None:
        return [""] * count
    listed = [names] if isinstance(names, str) else [str(name) for name in names]
    if len(listed) != count:
        raise InputError(f"{caller}: expected {count} names, got {len(listed)}: {listed!r}.")
    return listed


def as_references(
    caller: str, references: Sequence[ArrayLike | None] | None, count: int, size: tuple[int, int]
) -> list[Array | None]:
    """Pictures that are targets themselves, (3, h, w) each -> (H, W, 3); None for the others."""
    if references is None:
        return [None] * count
    if len(references) != count:
        raise InputError(f"{caller}: expected {count} references, got {len(references)}.")
    pictures: list[Array | None] = [None] * count
    for index, reference in enumerate(references):
        if reference is not None:
            [picture] = as_images(caller, as_array(caller, "references", reference)[None])
            planes = letterbox(torch.from_numpy(picture).movedim(-1, 0), size, 1.0)
            pictures[index] = planes.movedim(0, -1).numpy().clip(0, 1)
    return pictures


def letterbox(planes: Tensor, size: tuple[int, int], fill: float) -> Tensor:
    """Resize planes (C, H, W) to fit into a frame, their shape kept, and centre them in it.

    What is left free has the value `fill`; planes that have that size already come as they are.

    Example:
        >>> import torch
        >>> from captum_clip.visualization.arrays import letterbox
        >>> letterbox(torch.zeros(1, 2, 4), (4, 4), 1.0)[0, :, 0]
        tensor([1., 0., 0., 1.])
    """
    height, width = planes.shape[-2:]
    if (height, width) == tuple(size):
        return planes
    scale = min(size[0] / height, size[1] / width)
    inner = [
        max(1, min(frame_side, round(scale * side)))
        for side, frame_side in zip((height, width), size, strict=True)
    ]
    resized = F.interpolate(planes[None], inner, mode="bilinear", antialias=True)[0]
    framed = planes.new_full((len(planes), *size), fill)
    top, left = ((side - part) // 2 for side, part in zip(size, inner, strict=True))
    framed[:, top : top + inner[0], left : left + inner[1]] = resized
    return framed


def as_array(caller: str, what: str, values: ArrayLike | Sequence[float]) -> Array:
    """Numbers of any shape; the caller's array stays as it is."""
    if isinstance(values, Tensor):
        if reason := maps.unusable(values):
            raise InputError(f"{caller}: expected {what} of plain numbers, got {reason}.")
        return values.detach().cpu().float().numpy()
    try:
        return np.array(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{caller}: expected {what} as a tensor or an array, got {type(values).__name__}."
        ) from error


def _check_range(caller: str, what: str, array: Array, cure: str) -> None:
    low, high = float(array.min()), float(array.max())
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise InputError(
            f"{caller}: expected {what} in [0, 1], got values from {low:.3g} to {high:.3g}; {cure}."
        )
