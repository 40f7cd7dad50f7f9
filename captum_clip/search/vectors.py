"""What an index keeps of each image: its vectors, made here or on Ray Data."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..attr.contributions import DirectContribution, any_target
from ..attr.registry import MethodChoice
from ..attr.removal import ReaderRemoval
from ..checks import check_choice, expect
from ..evaluation.config import RunConfig, full_name
from ..evaluation.image_batches import ImageReader, preprocess_alone, read_ahead
from ..evaluation.run import ModelLoader, map_on_ray
from ..evaluation.storage import Storage
from ..evaluation.units import Skipped
from ..explaining import photos
from ..exported.adapter import ExportedAdapter
from ..models import ClipAdapter
from ..models.identity import fixed_images, summary
from ..similarity import ClipSimilarity
from .table import File, checksum, schema

Precision = Literal["int8", "float16"]
LARGEST: Final[dict[Precision, int]] = {"int8": 127, "float16": 1}
"""What the largest number of an image's vectors becomes."""
_TINY: Final = 1e-30  # the scale of an image whose vectors are all zero


class Vectors:
    """Makes the rows of images; a process of Ray loads the model by its name.

    InputError for a method or settings whose vectors cannot be kept.
    """

    def __init__(
        self,
        images: Storage,
        clip: ClipAdapter,
        method: str,
        precision: Precision,
        **computing: Any,
    ) -> None:
        check_choice(precision, LARGEST, name="precision")
        choice = MethodChoice.of(method, tower=clip.tower)
        options = {**choice.options}
        direct = choice.method is DirectContribution and "per" not in options
        # of removal the vectors are those of maps whose cells share nothing
        fits = direct or (choice.method is ReaderRemoval and options.pop("share", "") is None)
        expect(fits, "direct without `per`, or removal:share=None, which have vectors", choice.name)
        self.images, self.options, self.precision = images, options, precision
        self.method: Any = choice.method
        self.config = RunConfig(**{"chunk_size": 512, **computing})
        self.clip: ClipAdapter | None = clip
        config = self.config
        self.models = ModelLoader(config.processor, config.tokenizer, config.image_size)
        if isinstance(clip, ExportedAdapter):
            own = clip.exported.about.method
            expect(choice.name == own, f"the exported method {own}", choice.name)
            # whose processes would load it by the name that its folder states
            expect(config.engine == "local", "a model that was loaded by name, for Ray", clip.name)
        blank = clip.preprocess(Image.new("RGB", (64, 64)))
        self.size = (blank.shape[-2], blank.shape[-1])
        self.about: dict[str, Any] = {
            "model": full_name(clip.name),
            "identity": {**clip.identity(), "preprocessing": preprocessing_of(clip)},
            "image_size": None if self.size == clip.tower.native else self.size[0],
            "method": choice.name,
            "precision": precision,
            "grid": tuple(self.split(clip, blank)[1].shape[1:]),  # (h, w, E)
        }

    def __getstate__(self) -> dict[str, Any]:
        # a model is large, and may not be picklable: a worker loads it by its name
        return {**vars(self), "clip": None}

    def split(self, clip: ClipAdapter, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings (B, E) of images, and the positions' shares in them (B, h, w, E)."""
        if isinstance(clip, ExportedAdapter):
            made = clip.exported.vectors(images.numpy())
            return torch.from_numpy(made.embedding), torch.from_numpy(made.vectors)
        method = self.method(ClipSimilarity(clip, any_target(clip)))
        images = images.to(clip.device, clip.dtype)
        shares, rest = method.vectors(images, return_rest=True, **self.options)
        return (shares.sum((1, 2)) + rest).cpu(), shares.cpu()

    def tables(self, files: Sequence[File]) -> Iterator[Any]:
        """The rows of a chunk of files at a time, as :meth:`table` makes them."""
        size = self.config.chunk_size
        chunks = [files[start : start + size] for start in range(0, len(files), size)]
        if self.config.engine == "local":
            for chunk in chunks:
                yield self.table(chunk, self.config.processes)
        elif chunks:
            yield from map_on_ray(
                self.config, lambda number: self.table(chunks[number]), len(chunks)
            )

    def table(self, files: Sequence[File], readers: int = 0) -> Any:
        """An Arrow table of the rows of files, each with a reason if it cannot be read."""
        if self.clip is None:
            model, identity = self.about["model"], {**self.about["identity"]}
            self.clip = self.models.load(model, self.config.device, identity)
        clip, size, rows = self.clip, self.config.batch_size, list[dict[str, Any]]()
        prepare = partial(preprocess_alone, clip.processor, self.size)
        reader = ImageReader(self.images, [file.file for file in files], prepare)
        with read_ahead(reader, range(len(files)), readers, batch=size) as images:
            while batch := list(islice(images, size)):
                whole = [image for image in batch if isinstance(image, Tensor)]
                kept = self._kept(*self.split(clip, torch.stack(whole))) if whole else iter(())
                for image in batch:
                    row = {"reason": image.reason} if isinstance(image, Skipped) else next(kept)
                    rows.append(files[len(rows)]._asdict() | row)
        return _arrow(rows, self.about["grid"][-1])

    def _kept(self, embeddings: Tensor, shares: Tensor) -> Iterator[dict[str, Any]]:
        embeddings = F.normalize(embeddings.float(), dim=-1)  # which in half precision they are not
        for embedding, vectors in zip(embeddings, shares.numpy(), strict=True):
            largest = float(np.abs(vectors).max())
            if not np.isfinite(largest) or not embedding.isfinite().all():
                yield {"reason": "its embedding holds NaN or infinity"}
                continue
            scale = max(largest / LARGEST[self.precision], _TINY)
            numbers = np.rint(vectors / scale) if self.precision == "int8" else vectors / scale
            row: dict[str, Any] = {"vector": embedding.numpy(), "scale": scale}
            row["contributions"] = numbers.astype(self.precision).tobytes()
            yield {**row, "checksum": checksum(**row, about=self.about), "reason": ""}


def contributions_of(rows: Any, about: Mapping[str, Any]) -> Tensor:
    """The positions' vectors (N, h, w, E) of the rows of a table."""
    numbers = np.frombuffer(b"".join(rows["contributions"].to_pylist()), about["precision"])
    scales = rows["scale"].to_numpy()[:, None, None, None]
    return torch.from_numpy(numbers.reshape(len(rows), *about["grid"]) * scales)


def preprocessing_of(clip: ClipAdapter) -> str:
    """Numbers of preprocessed fixed images, which agree where maps lie on the same pixels.

    The means of 7 x 7 tiles differ by .04 of their length for a crop that is off by a pixel, as
    that of another library may be, and by .3 for another scale. The bound of numbers that agree is
    .001, so that it is .1 of a hundredth.
    """
    pixels = (clip.preprocess(image) for image in fixed_images())
    tiles = (F.adaptive_avg_pool2d(each.float().cpu(), 7).flatten(1) for each in pixels)
    return summary(F.normalize(each) / 100 for each in tiles)


def read_unchanged(
    clip: ClipAdapter, images: Storage, files: Sequence[File]
) -> tuple[list[photos.PreprocessedImages], dict[str, str]]:
    """Images as a model takes them, and why the others were skipped: gone, damaged or changed."""
    reader = ImageReader(images, [file.file for file in files], partial(photos.preprocess, clip))
    read, skipped = list[photos.PreprocessedImages](), dict[str, str]()
    for number, file in enumerate(files):
        image = reader(number)
        if isinstance(image, Skipped):
            skipped[file.file] = image.reason
        elif File.of(images, file.file) != file:
            skipped[file.file] = "it has changed; build the index again"
        else:
            read.append(image._replace(photos=()))  # as they were, of which nobody draws one
    return read, skipped


def _arrow(rows: list[dict[str, Any]], dimension: int) -> Any:
    import pyarrow

    columns = schema(dimension).append(pyarrow.field("reason", pyarrow.string()))
    return pyarrow.Table.from_pylist(rows, schema=columns)
