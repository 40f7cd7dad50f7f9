"""Targets from reference images: what makes this image similar to that one?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..models import ClipAdapter
from ..models.base import ImageLike
from .base import Target


def image(
    clip: ClipAdapter,
    images: ImageLike | Sequence[ImageLike],
    names: Sequence[str] | None = None,
) -> Target:
    """One row a reference image: its L2-normalised image embedding.

    Args:
        clip: the adapter.
        images: what :meth:`ClipAdapter.preprocess` takes.
        names: one name an image; file stems or "image 0", "image 1", ... where none is given.

    Raises:
        InputError: an image cannot be read.
        TargetError: not as many names as images.
    """
    pixels = clip.preprocess(images)
    with torch.no_grad():
        rows = clip.encode_image(pixels)
    if names is None:
        names = _names(images, len(rows))
    return Target.of(rows, [names] if isinstance(names, str) else list(names))


def _names(images: Any, count: int) -> list[str]:
    given = list(images) if isinstance(images, (list, tuple)) else [images]
    if len(given) != count:  # a batch: its images have no names of their own
        given = [None] * count
    return [
        Path(item).stem if isinstance(item, (str, Path)) else f"image {index}"
        for index, item in enumerate(given)
    ]
