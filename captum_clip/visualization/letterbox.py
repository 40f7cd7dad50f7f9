"""Pictures of different sizes made fit to stand side by side."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def letterbox(planes: Tensor, size: tuple[int, int], fill: float) -> Tensor:
    """Resize planes (C, H, W) to fit into a frame, their shape kept, and centre them in it.

    What is left free has the value `fill`; planes that have that size already come as they are.

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
