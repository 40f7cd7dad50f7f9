"""Targets from embeddings: those that somebody already has, or those of reference images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import as_list
from ..errors import TargetError
from ..models import ClipAdapter
from ..models.adapter import ImageLike
from .base import Target


def embedding(rows: Tensor | Any, names: Sequence[str] | None = None) -> Target:
    """Targets from rows (K, D) or one row (D,), tensor or array, of any length.

    Args:
        rows: directions in the model's embedding space.
        names: one name per row; "embedding 0", "embedding 1", ... where none is given.

    Raises:
        TargetError: not numbers, wrong shape, not finite, or a row of zeros.

    Example:
        >>> import torch
        >>> from captum_clip import targets
        >>> targets.embedding(torch.eye(3)[:2], ["first", "second"]).norms
        tensor([1., 1.])
    """
    try:
        tensor = torch.as_tensor(rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TargetError(
            f"targets.embedding: expected numbers (K, D) or (D,), got {type(rows).__name__}."
        ) from error
    tensor = tensor[None] if tensor.ndim == 1 else tensor
    if not tensor.is_floating_point() and not tensor.is_complex():
        tensor = tensor.float()
    if names is None:
        names = [f"embedding {index}" for index in range(len(tensor) if tensor.ndim else 0)]
    return Target.of(tensor, as_list(names))


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
