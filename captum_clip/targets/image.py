"""Targets from reference images: what makes this image similar to that one?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..checks import as_list
from ..models import ClipAdapter
from ..models.base import ImageLike
from .base import Target


def image(
    clip: ClipAdapter,
    images: ImageLike | Sequence[ImageLike],
    names: Sequence[str] | None = None,
) -> Target:
    """One row per reference image: its L2-normalised image embedding.

    Args:
        clip: the adapter.
        images: what :meth:`ClipAdapter.preprocess` takes.
        names: one name per image; file stems or "image 0", "image 1", ... where none is given.

    Raises:
        InputError: an image cannot be read.
        TargetError: not as many names as images.
    """
    pixels = clip.preprocess(images)
    with torch.no_grad():
        rows = clip.encode_image(pixels)
    if names is None:
        names = _names(images, len(rows))
    return Target.of(rows, as_list(names), "image")


def _names(images: Any, count: int) -> list[str]:
    sources = list(images) if isinstance(images, (list, tuple)) else [images]
    if len(sources) != count:  # a batch: its images have no names of their own
        sources = [None] * count
    return [
        Path(source).stem if isinstance(source, (str, Path)) else f"image {index}"
        for index, source in enumerate(sources)
    ]
