"""Image files -> batches of preprocessed images, each image in its own row, read ahead."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..models.images import as_pil, is_away, process
from ..runs import AGAIN, Storage
from ..runs.workers import iterate_workers


@dataclass(frozen=True, eq=False)
class Batch:
    """Images as the model takes them; where one could not be read its row holds zeros."""

    pixels: Tensor  # (B, 3, H, W), float32 on the CPU
    indices: tuple[int, ...]  # in the study's list, at most B; rows beyond them hold zeros as well
    reasons: dict[int, str]  # index of an image that could not be read -> why


@dataclass(frozen=True)
class ImageLoader:
    """Reads and preprocesses, one image at a time, so that no image depends on another."""

    images: Storage
    names: Sequence[str]  # of all files of the study
    processor: Any  # the model's own
    size: tuple[int, int]  # (H, W) of a preprocessed image
    batch_size: int  # B, of every batch

    def load(self, indices: Sequence[int]) -> Batch:
        """The images of these numbers, at most B of them, filled up with zeros to B."""
        # Always B rows: a tower rounds otherwise in a batch of another size.
        pixels = torch.zeros(self.batch_size, 3, *self.size)
        reasons = {}
        for row, index in enumerate(indices):
            name = self.names[index]
            with self.images.as_file(name) as path:
                try:
                    pixels[row] = self._read(path, name)
                except InputError as error:
                    reasons[index] = str(error)
                    if is_away(error):
                        self._check_folder()
                        reasons[index] += AGAIN
        return Batch(pixels, tuple(indices), reasons)

    def _check_folder(self) -> None:
        """Raise an InputError where not the image is away, but the whole folder."""
        root = self.images.root
        if self.images.is_local and not os.path.isdir(root):
            raise InputError(
                f"the folder {root} cannot be reached; what is done is kept; run the same command "
                "again when it is back."
            )

    def _read(self, path: Path, name: str) -> Tensor:
        """One image as the model takes it; an error calls the file by its name, wherever it is."""
        try:
            [picture] = as_pil(path)
            pixels = process(self.processor, [picture])[0]
        except InputError as error:
            reason = str(error).removeprefix("preprocess: ").replace(str(path), name)
            raise InputError(reason) from error
        except (ValueError, RuntimeError) as error:  # what processors raise on odd images
            raise InputError(f"{name} cannot be preprocessed ({error}).") from error
        if pixels.shape[-2:] != self.size:
            raise InputError(
                f"{name} becomes {tuple(pixels.shape)} and not (3, {self.size[0]}, {self.size[1]});"
                " a study needs a processor that makes images of one size."
            )
        return pixels


def load_batches(
    loader: ImageLoader, batches: Sequence[Sequence[int]], decoders: int | None
) -> AbstractContextManager[Iterator[Batch]]:
    """Batches in their order, decoded ahead in so many processes; None is a thread, one ahead."""
    if decoders is None:
        return nullcontext(_one_ahead(loader, batches))
    advice = (
        "take fewer workers or a smaller batch, and start the same command again: what is done is "
        "kept"
    )
    return iterate_workers(loader.load, batches, decoders, advice=advice)


def _one_ahead(loader: ImageLoader, batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(loader.load, batches[0])
        for indices in batches[1:]:
            batch, coming = coming.result(), pool.submit(loader.load, indices)
            yield batch
        yield coming.result()
