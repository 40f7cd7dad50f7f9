"""What an index keeps of each image: its vectors, made here or on Ray Data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..attr.contributions import DirectContribution, any_target
from ..attr.registry import MethodChoice
from ..errors import CaptumClipError, InputError
from ..evaluation.config import RunConfig, full_name
from ..evaluation.image_batches import ImageReader, preprocess_alone, read_ahead
from ..evaluation.run import RESUME, ModelLoader, map_on_ray, threads
from ..evaluation.storage import Storage
from ..evaluation.units import Skipped
from ..models import ClipAdapter
from ..similarity import ClipSimilarity
from .table import File, schema

Precision = Literal["int8", "float16"]
LARGEST: Final[dict[Precision, int]] = {"int8": 127, "float16": 1}
"""What the largest number of an image's vectors becomes."""
_TINY: Final = 1e-30


@dataclass
class Vectors:
    """Makes the rows of images; in a process of Ray it loads the model there, by its name."""

    images: Storage
    method: MethodChoice
    precision: Precision
    config: RunConfig
    clip: ClipAdapter | None

    def __post_init__(self) -> None:
        assert self.clip is not None
        config, blank = self.config, self.clip.preprocess(Image.new("RGB", (64, 64)))
        self.models = ModelLoader(config.processor, config.tokenizer, config.image_size)
        self.model, self.identity = full_name(self.clip.name), self.clip.identity()
        self.size = (blank.shape[-2], blank.shape[-1])
        self.shape = tuple(self.split(self.clip, blank)[1].shape[1:])  # (h, w, E)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "clip": None}

    def split(self, clip: ClipAdapter, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings (B, E) of images, and the positions' shares in them (B, h, w, E)."""
        direct = DirectContribution(ClipSimilarity(clip, any_target(clip)))
        images = images.to(clip.device, clip.dtype)
        shares, rest = direct.vectors(images, return_rest=True, **self.method.options)
        return (shares.sum((1, 2)) + rest).cpu(), shares.cpu()

    def tables(self, files: Sequence[File]) -> Iterator[Any]:
        """The rows of a chunk of files at a time, as :meth:`table` makes them."""
        size = self.config.chunk_size
        chunks = [files[start : start + size] for start in range(0, len(files), size)]
        if self.config.engine == "local":
            for chunk in chunks:
                yield self.table(chunk, self.config.processes)
        elif chunks:
            for table in map_on_ray(self.config, _Worker, (self, chunks), len(chunks)):
                if not table["file"][0].as_py():  # an error travels as text
                    raise InputError(f"{table['reason'][0].as_py().rstrip('.')}; {RESUME}")
                yield table

    def table(self, files: Sequence[File], readers: int = 0) -> Any:
        """An Arrow table of the rows of files, each with a reason if it cannot be read."""
        if self.clip is None:
            self.clip = self.models.load(self.model, self.config.device, {**self.identity})
        clip, size, rows = self.clip, self.config.batch_size, list[dict[str, Any]]()
        prepare = partial(preprocess_alone, clip.processor, self.size)
        reader = ImageReader(self.images, [file.file for file in files], prepare)
        with read_ahead(reader, range(len(files)), readers, batch=size) as images:
            while batch := list(islice(images, size)):
                whole = [image for image in batch if isinstance(image, Tensor)]
                made = self._kept(*self.split(clip, torch.stack(whole))) if whole else iter(())
                for image in batch:
                    why = {"reason": image.reason} if isinstance(image, Skipped) else next(made)
                    rows.append(files[len(rows)]._asdict() | why)
        return _arrow(rows, self.shape[-1])

    def _kept(self, embeddings: Tensor, shares: Tensor) -> Iterator[dict[str, Any]]:
        for embedding, vectors in zip(embeddings, shares.numpy(), strict=True):
            largest = float(np.abs(vectors).max())
            if not np.isfinite(largest) or not embedding.isfinite().all():
                yield {"reason": "its embedding holds NaN or infinity"}
                continue
            scale = max(largest / LARGEST[self.precision], _TINY)
            numbers = np.rint(vectors / scale) if self.precision == "int8" else vectors / scale
            row = {"vector": embedding.numpy(), "scale": scale, "reason": ""}
            yield {**row, "contributions": numbers.astype(self.precision).tobytes()}


class _Worker:
    """An actor of Ray Data: makes the rows of a chunk of files at a time."""

    def __init__(self, vectors: Vectors, chunks: Sequence[Sequence[File]]) -> None:
        self._vectors, self._chunks = vectors, chunks

    def __call__(self, rows: dict[str, Any]) -> Any:
        """The rows of the chunk of a number."""
        try:
            with threads(self._vectors.config.thread_count):
                return self._vectors.table(self._chunks[int(rows["unit"][0])])
        except CaptumClipError as error:
            return _arrow([{"file": "", "reason": error.reason}], self._vectors.shape[-1])


def _arrow(rows: list[dict[str, Any]], dimension: int) -> Any:
    import pyarrow

    columns = schema(dimension).append(pyarrow.field("reason", pyarrow.string()))
    return pyarrow.Table.from_pylist(rows, schema=columns)
