"""The images of a folder: which files, and each of them preprocessed, read ahead in threads."""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..errors import InputError
from ..files import IMAGE_ENDINGS, draw_names, image_names, is_own_figure
from ..models.images import process
from ..pictures import decode_file, quiet, read_file
from .storage import Storage, storage_of
from .units import Skipped

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
            f"the results cannot go into the folder of the images, {images.root}; name another "
            "folder, such as one inside it."
        )
    sizes, root = images.files(), f"{images.root.rstrip('/')}/"
    names = image_names(sizes)
    if output is not None and output.root.startswith(root):
        inside = f"{output.root.removeprefix(root)}/"
        names = [name for name in names if not name.startswith(inside)]
    names = draw_names(names, limit, seed)
    if images.is_local:  # a store would be asked once an image
        names = [name for name in names if not is_own_figure(Path(images.path, name))]
    if not names:
        endings = ", ".join(IMAGE_ENDINGS)
        raise InputError(f"there is no image file ({endings}) in {images.root}.")
    return {name: sizes[name] for name in names}


@dataclass(frozen=True)
class ImageReader(Generic[Read]):
    """Reads images one at a time, so that none depends on another; safe in several threads."""

    images: Storage
    names: Sequence[str]  # of files in it, or whole paths of this machine
    prepare: Callable[[Image.Image], Read]  # an RGB image, as by `preprocess_alone`

    def __call__(self, number: int) -> Read | Skipped:
        """The image of a number, prepared; or why there is none."""
        try:
            return self._read(self.names[number])
        except InputError as error:
            skipped = Skipped.of(number, error)
            # Without the whole folder every image that is left would count as unreadable.
            if skipped.again and self.images.is_local and not os.path.isdir(self.images.root):
                raise InputError(
                    f"the folder {self.images.root} cannot be reached; what is done is kept; run "
                    "the same command again when it is back."
                ) from error
            return skipped

    def _read(self, name: str) -> Read:
        path, is_local = Path(self.images.path, name), self.images.is_local
        content = read_file(path, name) if is_local else self.images.read(name)
        if content is None:
            missing = FileNotFoundError(errno.ENOENT, name)
            raise InputError(f"there is no image file {name}.") from missing
        image = decode_file(content, name)
        try:
            return self.prepare(image)
        except (ValueError, RuntimeError) as error:  # what processors raise on odd images
            raise InputError(f"{name} cannot be preprocessed ({error}).") from error


def preprocess_alone(processor: Any, size: tuple[int, int], image: Image.Image) -> Tensor:
    """An image as the model takes it, (3, H, W), float32; InputError where its size is another."""
    # Some processors pad to the largest image of a batch.
    pixels = process(processor, [image])[0]
    if pixels.shape[-2:] != size:
        raise InputError(
            f"it becomes {tuple(pixels.shape)} and not (3, {size[0]}, {size[1]}); a folder "
            "needs a processor that makes images of one size"
        )
    return pixels


def readable_images(
    paths: Sequence[Path], skipped: dict[Path, str], *, workers: int = 0, progress: str = ""
) -> Iterator[Image.Image]:
    """Read images of this machine one after the other; why some cannot be goes into `skipped`."""
    reader = ImageReader(storage_of("."), [*map(str, paths)], Image.Image.copy)
    bar: Any = {"desc": progress, "unit": "image", "leave": False, "disable": not progress}
    with read_ahead(reader, range(len(paths)), workers) as read:
        for image in tqdm(read, total=len(paths), **bar):
            if isinstance(image, Skipped):
                skipped[paths[image.number]] = image.reason
            else:
                yield image
    if len(skipped) == len(paths):
        path, reason = next(iter(skipped.items()), ("", "no file was given"))
        raise InputError(f"none of the {len(skipped)} images can be read; {path}: {reason}")


@contextmanager
def read_ahead(
    read: Callable[[Item], Read], items: Iterable[Item], workers: int, *, batch: int = 1
) -> Iterator[Iterator[Read]]:
    """Read items in their order, in so many threads; with 0 of them each when it is due.

    At most two batches a thread are ahead of the item that is due. An error of `read` is raised in
    place of its result; after the context nothing runs on.
    """
    with quiet(), ThreadPoolExecutor(max(workers, 1)) as pool:

        def results() -> Iterator[Read]:
            waiting: deque[Future[Read]] = deque()
            for item in items:
                # a limit of pixels is of this thread's context
                waiting.append(pool.submit(copy_context().run, read, item))
                if len(waiting) > 2 * workers * batch:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        try:
            yield results() if workers else map(read, items)
        finally:
            pool.shutdown(cancel_futures=True)
