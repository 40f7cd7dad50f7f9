"""The images of a folder: which files, and batches of them preprocessed and read ahead."""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import InputError
from ..files import IMAGE_ENDINGS, draw_names, image_names, is_own_figure
from ..models.images import decode_file, is_io_error, process, quiet, read_file
from .run import AGAIN
from .storage import Storage

Item = TypeVar("Item")
Read = TypeVar("Read")


def list_images(
    images: Storage, output: Storage | None = None, *, limit: int | None = None, seed: int = 0
) -> dict[str, int]:
    """Image files of a folder and the folders in it with their sizes, sorted by name.

    Hidden files and results are left out; the output may lie inside. A sample of `limit` is that of
    :func:`captum_clip.files.draw_names`. On this machine figures of this package are known by their
    metadata, and left out too.

    Raises:
        InputError: there is no folder or no image file in it, or the output is the same folder.
    """
    if output is not None and output.root == images.root:
        raise InputError(
            f"the results cannot go into the folder of the images, {images.root}; name another, "
            "such as one in it."
        )
    sizes = images.files()
    names = image_names(sizes)
    if output is not None and output.root.startswith(f"{images.root.rstrip('/')}/"):
        inside = output.root.removeprefix(f"{images.root.rstrip('/')}/")
        names = [name for name in names if not name.startswith(f"{inside}/")]
    names = draw_names(names, limit, seed)
    if images.is_local:  # a store would be asked once an image
        names = [name for name in names if not is_own_figure(Path(images.path, name))]
    if not names:
        endings = ", ".join(IMAGE_ENDINGS)
        raise InputError(f"there is no image file ({endings}) in {images.root}.")
    return {name: sizes[name] for name in names}


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images as the model takes them; where one could not be read its row holds zeros."""

    pixels: Tensor  # (B, 3, H, W), float32 on the CPU
    numbers: tuple[int, ...]  # in the list of images, at most B; further rows hold zeros as well
    reasons: dict[int, str]  # number of an image that could not be read -> why


@dataclass(frozen=True)
class ImageReader:
    """Reads and preprocesses, one image at a time, so that no image depends on another."""

    images: Storage
    names: Sequence[str]  # of all files
    processor: Any  # the model's own
    size: tuple[int, int]  # (H, W) of a preprocessed image
    batch_size: int  # B, of every batch

    def __call__(self, numbers: Sequence[int]) -> ImageBatch:
        """The images of these numbers, at most B of them, filled up with zeros to B."""
        # Always B rows: a tower rounds otherwise in a batch of another size.
        pixels = torch.zeros(self.batch_size, 3, *self.size)
        reasons = {}
        for row, number in enumerate(numbers):
            try:
                pixels[row] = self._read(self.names[number])
            except InputError as error:
                reasons[number] = str(error)
                if is_io_error(error):
                    self._check_folder()
                    reasons[number] += AGAIN
        return ImageBatch(pixels, tuple(numbers), reasons)

    def _check_folder(self) -> None:
        """Raise an InputError where not the image is away, but the whole folder."""
        if self.images.is_local and not os.path.isdir(self.images.root):
            raise InputError(
                f"the folder {self.images.root} cannot be reached; what is done is kept; run the "
                "same command again when it is back."
            )

    def _read(self, name: str) -> Tensor:
        """One image as the model takes it; an error calls the file by its name in the folder."""
        path, is_local = Path(self.images.path, name), self.images.is_local
        content = read_file(path, name) if is_local else self.images.read(name)
        if content is None:
            missing = FileNotFoundError(errno.ENOENT, name)
            raise InputError(f"there is no image file {name}.") from missing
        image = decode_file(content, name)
        try:
            pixels = process(self.processor, [image])[0]
        except (ValueError, RuntimeError) as error:  # what processors raise on odd images
            raise InputError(f"{name} cannot be preprocessed ({error}).") from error
        if pixels.shape[-2:] != self.size:
            raise InputError(
                f"{name} becomes {tuple(pixels.shape)} and not (3, {self.size[0]}, {self.size[1]});"
                " a study needs a processor that makes images of one size."
            )
        return pixels


@contextmanager
def read_ahead(
    read: Callable[[Item], Read], items: Sequence[Item], workers: int
) -> Iterator[Iterator[Read]]:
    """Read items in their order, so many at a time ahead in threads; 0 reads each when it is due.

    An error of `read` is raised in place of its result; after the context nothing runs on.
    """
    with quiet(), ThreadPoolExecutor(max(workers, 1)) as pool:

        def results() -> Iterator[Read]:
            waiting: deque[Future[Read]] = deque()
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        try:
            yield results() if workers else map(read, items)
        finally:
            pool.shutdown(cancel_futures=True)
