"""The images of a folder: which files, and batches of them preprocessed and read ahead."""

import errno
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import CaptumClipError, InputError
from ..files import IMAGE_ENDINGS, draw_names, image_names
from ..models.images import decode_file, is_away, process, read_file
from .run import AGAIN, default_environment
from .storage import Storage

Item = TypeVar("Item")
Read = TypeVar("Read")


def list_images(
    images: Storage, output: Storage | None = None, *, limit: int | None = None, seed: int = 0
) -> dict[str, int]:
    """Image files of a folder and the folders in it with their sizes, sorted by name.

    Hidden files and results are left out; the output may lie inside. A sample of `limit` is that of
    :func:`captum_clip.files.draw_names`.

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
    if not names:
        endings = ", ".join(IMAGE_ENDINGS)
        raise InputError(f"there is no image file ({endings}) in {images.root}.")
    return {name: sizes[name] for name in draw_names(names, limit, seed)}


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
                reasons[number] = str(error).removeprefix("preprocess: ")
                if is_away(error):
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
        path = Path(self.images.path, name)
        try:
            content = read_file(path) if self.images.is_local else self.images.read(name)
            if content is None:
                raise FileNotFoundError(errno.ENOENT, f"there is no image file {name}.")
            pixels = process(self.processor, [decode_file(content, path)])[0]
        except InputError as error:
            raise InputError(str(error).replace(str(path), name)) from error
        except OSError as error:
            raise InputError(f"{name} cannot be read ({error.strerror}).") from error
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
    """Read items in their order, a few ahead in worker processes; 0 workers read here.

    Errors of `read` are raised here, and an InputError when a worker died, wherever this process is
    at that moment.
    """
    loader: DataLoader[Any] = DataLoader(
        items,  # type: ignore[arg-type]  # any sequence will do
        batch_size=None,
        num_workers=min(workers, len(items)),
        collate_fn=partial(_attempt, read),  # which is called where the items are
        generator=torch.Generator(),  # it draws a seed for its workers from the caller's otherwise
    )
    results = _results(loader)
    # Hugging Face's tokenizers print a warning in processes that are forked after their use.
    with default_environment(TOKENIZERS_PARALLELISM="false"):
        try:
            yield results
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise _died() from error.with_traceback(None)
        finally:
            results.close()  # ends the workers


def _attempt(read: Callable[[Item], Read], item: Item) -> Read | CaptumClipError:
    """An error is a result too: raised in a worker it would arrive with a traceback for a text."""
    try:
        return read(item)
    except CaptumClipError as error:
        return error


def _results(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    try:
        for item in loader:
            if isinstance(item, CaptumClipError):
                raise item
            yield item
    except (ConnectionError, EOFError) as error:  # it died while it handed an item over
        with suppress(RuntimeError):  # PyTorch reports it too, whenever the signal arrives
            time.sleep(1)
        raise _died() from error.with_traceback(None)


def _died() -> InputError:
    """Raised from an error without its traceback, which would keep the dead worker's iterator."""
    return InputError(
        "a process that decodes images died, perhaps for want of memory (or of shared memory, "
        "/dev/shm); take fewer workers or a smaller batch, and start the same command again: "
        "what is done is kept."
    )
