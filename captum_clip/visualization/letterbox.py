"""Pictures of different sizes made fit to stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from .arrays import Array, ArrayLike, as_array, as_images

REFERENCE: Final = "target image"
"""The heading over pictures that are targets themselves."""


def letterbox(planes: Tensor, size: tuple[int, int], fill: float) -> Tensor:
    """Resize planes to fit into a frame, their shape kept, and centre them in it.

    Args:
        planes: (C, H, W), such as an image or maps.
        size: (H', W') of the frame in pixels.
        fill: value of what is left free.

    Returns:
        (C, H', W'); `planes` itself where it has that size already.

    Example:
        >>> import torch
        >>> from captum_clip.visualization.letterbox import letterbox
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


def as_references(
    caller: str, references: Sequence[ArrayLike | None] | None, count: int, size: tuple[int, int]
) -> list[Array | None]:
    """Pictures that are targets themselves, (3, h, w) each -> (H, W, 3); None for the others.

    Raises:
        InputError: another shape, colours out of range, or not as many as there are targets.
    """
    if references is None:
        return [None] * count
    if len(references) != count:
        raise InputError(f"{caller}: expected {count} references, got {len(references)}.")
    return [None if given is None else _reference(caller, given, size) for given in references]


def _reference(caller: str, given: ArrayLike, size: tuple[int, int]) -> Array:
    [picture] = as_images(caller, as_array(caller, "references", given)[None])
    planes = torch.from_numpy(picture).movedim(-1, 0)
    framed: Array = letterbox(planes, size, 1.0).movedim(0, -1).numpy().clip(0, 1)
    return framed
