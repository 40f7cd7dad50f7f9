"""Image features of many files, and emotion probes fitted on them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..checks import check_integer
from ..emotions import STRENGTH, Artemis, EmotionProbe, check_fit, fit_probe
from ..errors import public
from ..models import ClipAdapter
from .image_batches import readable_images


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of those files that could be read.

    Attributes:
        embeddings: (N, D), L2-normalized, float32.
        paths: of the N images, in the order they were given.
        indices: (N,), of these in what was given.
        skipped: file -> why it could not be read.
    """

    embeddings: npt.NDArray[np.float32]
    paths: tuple[Path, ...]
    indices: npt.NDArray[np.int64]
    skipped: dict[Path, str]


@public("image_features")
def image_features(
    clip: ClipAdapter,
    paths: Sequence[str | Path],
    *,
    batch_size: int = 16,
    workers: int = 0,
    progress: bool = False,
) -> ImageFeatures:
    """L2-normalized image features of files; a file that cannot be read is left out, with a reason.

    In which batch an image is computed changes its features by rounding.

    Args:
        clip: the adapter.
        paths: N image files.
        batch_size: images in a forward.
        workers: images read ahead at a time; 0 reads each when it is due.
        progress: show a bar.

    Raises:
        InputError: an option out of range, a model without a processor, or no image that can be
            read.
    """
    check_integer("batch_size", batch_size)
    check_integer("workers", workers, least=0)
    listed, skipped = [Path(os.path.expanduser(path)) for path in paths], dict[Path, str]()
    bar = "image features" * progress
    images = readable_images(listed, skipped, workers=workers, progress=bar)
    embeddings = list[npt.NDArray[np.float32]]()
    with torch.no_grad():
        while batch := list(islice(images, batch_size)):
            encoded = clip.encode_image(clip.preprocess(batch))  # (B, D)
            embeddings.append(encoded.float().cpu().numpy())
    indices = np.flatnonzero([path not in skipped for path in listed])
    kept = tuple(listed[index] for index in indices)
    return ImageFeatures(np.concatenate(embeddings), kept, indices, skipped)


def fit_emotions(
    clip: ClipAdapter,
    data: Artemis,
    *,
    seed: int = 0,
    held_out: float = 0.2,
    strength: float = STRENGTH,
    **options: Any,
) -> tuple[EmotionProbe, dict[Path, str]]:
    """Fit a probe on the images of a data set; it keeps the model's name and identity.

    Args:
        clip: the adapter.
        data: from :func:`captum_clip.emotions.read_artemis`.
        seed: of the split by painting.
        held_out: share of the paintings kept for the scores.
        strength: of the penalty.
        **options: of :func:`image_features`.

    Returns:
        The probe, and the images that could not be read with the reason.

    Raises:
        InputError: as :func:`image_features` and :func:`captum_clip.emotions.fit_probe`.
    """
    settings: Any = {"seed": seed, "held_out": held_out, "strength": strength}
    check_fit(**settings)
    features = image_features(clip, data.images, **options)
    settings |= {"model": clip.name, "identity": clip.identity(texts=False)}
    probe = fit_probe(features.embeddings, data.votes[features.indices], **settings)
    return probe, features.skipped
