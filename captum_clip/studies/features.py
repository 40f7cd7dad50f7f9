"""Image features of many files, computed once and kept on disk; emotion probes from them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from ..checks import check_integer, expand
from ..emotions import STRENGTH, Artemis, EmotionProbe, ProbeScores, check_fit, fit_probe
from ..errors import InputError
from ..models import ClipAdapter
from ..models.images import decode_file, read_file
from ..runs import storage_of
from ..runs.workers import iterate_workers
from .feature_cache import FeatureCache, Row, default_cache
from .file_list import list_images

Array = npt.NDArray[np.uint8]
_NO_ROWS: Final = np.zeros((0, 0), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of those files that could be read.

    Attributes:
        rows: unit rows (N, D), float32.
        paths: of the N images, in the order they were given.
        indices: of these N in what was given.
        skipped: file -> why it could not be read.
    """

    rows: npt.NDArray[np.float32]
    paths: tuple[Path, ...]
    indices: tuple[int, ...]
    skipped: dict[Path, str]

    def check_any(self, caller: str = "") -> ImageFeatures:
        """These; or an InputError, which `caller` begins, where no image could be read."""
        if not self.paths:
            path, reason = next(iter(self.skipped.items()), ("", "no file was given"))
            raise InputError(
                f"{caller}none of the {len(self.skipped)} images can be read; {path}: {reason}"
            )
        return self


def find_images(folder: str | Path) -> list[Path]:
    """All image files in a folder and those in it, sorted; hidden ones and results are left out.

    Raises:
        InputError: there is no folder, or no image file in it.
    """
    folder = expand(folder)
    return sorted(folder / name for name in list_images(storage_of(folder)).names)


def image_features(
    clip: ClipAdapter,
    paths: Sequence[str | Path],
    *,
    cache: str | Path | bool = True,
    batch_size: int = 16,
    workers: int = 0,
    progress: bool = False,
) -> ImageFeatures:
    """L2-normalised image features of files; a file that cannot be read is left out, with a reason.

    They are kept under the model's fingerprint and the SHA-256 of the file's content, so a file
    may move, and a changed file or model is computed again. In which batch an image is computed
    changes its features by rounding.

    Args:
        clip: the adapter.
        paths: N image files.
        cache: the folder to keep features in; True for ``~/.cache/captum_clip/features`` (or
            ``$XDG_CACHE_HOME``, or ``$CAPTUM_CLIP_CACHE``), False to keep none. Several processes
            may use one at the same time.
        batch_size: images in a forward.
        workers: processes that read and decode the files; 0 does so here.
        progress: show a bar.

    Raises:
        InputError: an option out of range, a cache that cannot be written to, or a model without a
            processor.
    """
    check_integer("image_features", "batch_size", batch_size)
    check_integer("image_features", "workers", workers, least=0)
    listed = [Path(os.path.expanduser(path)) for path in paths]
    folder = None
    if cache is not False:
        folder = (default_cache() if cache is True else expand(cache)) / clip.fingerprint
    rows = FeatureCache(folder)
    keys: dict[Path, bytes] = {}
    skipped: dict[Path, str] = {}
    read = partial(_read, frozenset(rows))
    files = list(dict.fromkeys(listed))
    bar: Any = {"desc": "image features", "unit": "image", "leave": False, "disable": not progress}
    with iterate_workers(
        read, files, workers, advice="take fewer workers, and start again"
    ) as found:
        pictures = _missing(tqdm(found, total=len(files), **bar), keys, skipped)
        while batch := list(islice(pictures, batch_size)):
            computed = _encode(clip, [pixels for _, pixels in batch])
            rows.append([(key, row) for (key, _), row in zip(batch, computed, strict=True)])
    kept = [index for index, path in enumerate(listed) if path not in skipped]
    readable = tuple(listed[index] for index in kept)
    stacked = np.stack([rows[keys[path]] for path in readable]) if readable else _NO_ROWS
    return ImageFeatures(stacked, readable, tuple(kept), skipped)


def fit_emotions(
    clip: ClipAdapter,
    data: Artemis,
    *,
    seed: int = 0,
    held_out: float = 0.2,
    strength: float = STRENGTH,
    **options: Any,
) -> tuple[EmotionProbe, dict[Path, str]]:
    """Fit a probe on the images of a data set.

    Args:
        clip: the adapter; the probe keeps its name and its fingerprint.
        data: from :func:`captum_clip.emotions.read_artemis`.
        seed: of the split by painting.
        held_out: share of the paintings kept for the scores.
        strength: of the penalty.
        **options: of :func:`image_features`.

    Returns:
        The probe, and the images that could not be read with the reason.

    Raises:
        InputError: no image could be read, or what :func:`captum_clip.emotions.fit_probe` says.
    """
    settings: Any = {"seed": seed, "held_out": held_out, "strength": strength}
    check_fit(**settings)
    features = image_features(clip, data.images, **options).check_any()
    votes = data.votes[list(features.indices)]
    settings |= {"model": clip.name, "fingerprint": clip.fingerprint}
    return fit_probe(features.rows, votes, **settings), features.skipped


def score_emotions(
    clip: ClipAdapter, probe: EmotionProbe, data: Artemis, **options: Any
) -> tuple[ProbeScores, dict[Path, str]]:
    """Score a probe on the images of another data set.

    Args:
        clip: the adapter.
        probe: fitted on features of the same model.
        data: paintings that the probe was not fitted on.
        **options: of :func:`image_features`.

    Returns:
        The scores, and the images that could not be read with the reason.

    Raises:
        InputError: no image could be read, or the probe takes other features.
    """
    features = image_features(clip, data.images, **options).check_any()
    return probe.score(features.rows, data.votes[list(features.indices)]), features.skipped


def _read(known: frozenset[bytes], path: Path) -> tuple[Path, bytes, Array | None, str]:
    """Of a file, read once: the SHA-256 and, unless known, the picture (H, W, 3); or why not."""
    try:
        content = read_file(path)
        key = hashlib.sha256(content).digest()
        picture = None if key in known else np.asarray(decode_file(content, path))
        return path, key, picture, ""
    except InputError as error:
        return path, b"", None, str(error).removeprefix("preprocess: ")


def _missing(
    files: Iterable[tuple[Path, bytes, Array | None, str]],
    keys: dict[Path, bytes],
    skipped: dict[Path, str],
) -> Iterator[tuple[bytes, Array]]:
    """Pictures to compute with their keys, each content once; fills `keys` and `skipped`."""
    seen = set()
    for path, key, picture, reason in files:
        if reason:
            skipped[path] = reason
            continue
        keys[path] = key
        if picture is not None and key not in seen:
            seen.add(key)
            yield key, picture


def _encode(clip: ClipAdapter, pictures: list[Array]) -> Row:
    with torch.no_grad():
        rows = clip.encode_image(clip.preprocess(pictures))  # (B, D)
    return np.asarray(rows.float().cpu().numpy())
