"""Image features of many files, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from ..checks import check_integer, expand
from ..errors import InputError
from ..models import ClipAdapter
from ..models.images import decode_file, read_file
from ..runs import storage_of
from ..runs.workers import iterate_workers
from .feature_cache import FeatureCache, Row, default_cache
from .file_list import list_images

Array = npt.NDArray[np.uint8]


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

    def check_any(self, caller: str = "") -> None:
        """Raise an InputError where no image could be read; `caller` begins it."""
        if not self.paths:
            path, reason = next(iter(self.skipped.items()), ("", "no file was given"))
            raise InputError(
                f"{caller}none of the {len(self.skipped)} images can be read; {path}: {reason}"
            )


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
    keys, skipped = _hashes(listed, progress)
    store = _open_cache(cache, clip)
    rows = store.find(set(keys.values()))
    failed: dict[bytes, tuple[Path, str]] = {}
    advice = "take fewer workers, and start again"
    # Again where a file changed after its sum was taken: others of that content have no row yet.
    while missing := {k: path for path, k in keys.items() if k not in rows and k not in failed}:
        with iterate_workers(_decode, list(missing.values()), workers, advice=advice) as decoded:
            bar = tqdm(
                decoded,
                total=len(missing),
                desc="image features",
                unit="image",
                disable=not progress,
                leave=False,
            )
            for batch in _batches(_pictures(bar, keys, failed, skipped), batch_size):
                computed = _encode(clip, [pixels for _, pixels in batch])
                fresh = [(key, row) for (key, _), row in zip(batch, computed, strict=True)]
                store.append(fresh)
                rows.update(fresh)
    for path, key in keys.items():
        if key in failed:  # the reason starts with the one file of this content that was decoded
            source, reason = failed[key]
            skipped[path] = reason.replace(str(source), str(path), 1)
    kept = [index for index, path in enumerate(listed) if path not in skipped]
    stacked = np.stack([rows[keys[listed[i]]] for i in kept]) if kept else np.zeros((0, 0), "f4")
    return ImageFeatures(stacked, tuple(listed[i] for i in kept), tuple(kept), skipped)


def _open_cache(cache: str | Path | bool, clip: ClipAdapter) -> FeatureCache:
    if cache is False:
        return FeatureCache(None)
    folder = default_cache() if cache is True else expand(cache)
    return FeatureCache(folder / clip.fingerprint)


def _hashes(paths: list[Path], progress: bool) -> tuple[dict[Path, bytes], dict[Path, str]]:
    """Of each file the SHA-256, or why it cannot be read."""
    keys: dict[Path, bytes] = {}
    reasons: dict[Path, str] = {}
    for path in tqdm(paths, desc="reading files", unit="image", disable=not progress, leave=False):
        try:
            keys[path] = hashlib.sha256(read_file(path)).digest()
        except InputError as error:
            reasons[path] = _reason(error)
    return keys, reasons


def _decode(path: Path) -> tuple[Path, bytes | None, Array | str]:
    """A file with the SHA-256 and the picture (H, W, 3) of what is in it now, or why not."""
    key = None
    try:
        content = read_file(path)
        key = hashlib.sha256(content).digest()
        return path, key, np.asarray(decode_file(content, path))
    except InputError as error:
        return path, key, _reason(error)


def _reason(error: InputError) -> str:
    return str(error).removeprefix("preprocess: ")


def _pictures(
    decoded: Iterable[tuple[Path, bytes | None, Array | str]],
    keys: dict[Path, bytes],
    failed: dict[bytes, tuple[Path, str]],
    skipped: dict[Path, str],
) -> Iterator[tuple[bytes, Array]]:
    """Pictures with their keys, which go to `keys`; reasons go to `failed`, or to `skipped`."""
    for path, key, picture in decoded:
        if key is None:
            skipped[path] = str(picture)
            del keys[path]
            continue
        keys[path] = key
        if isinstance(picture, str):
            failed[key] = path, picture
        else:
            yield key, picture


def _batches(
    pictures: Iterable[tuple[bytes, Array]], size: int
) -> Iterator[list[tuple[bytes, Array]]]:
    """Pictures a batch at a time."""
    batch: list[tuple[bytes, Array]] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _encode(clip: ClipAdapter, pictures: list[Array]) -> Row:
    with torch.no_grad():
        rows = clip.encode_image(clip.preprocess(pictures))  # (B, D)
    return np.asarray(rows.float().cpu().numpy())
