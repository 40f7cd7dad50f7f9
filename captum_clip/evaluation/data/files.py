"""Files of a data set: which there are, which of them count, and what is in them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from typing_extensions import override

from ...checks import check_integer, expand
from ...errors import InputError
from ...files import IMAGE_ENDINGS, draw_names, image_names
from ...models.images import as_pil
from ..storage import storage_of
from .base import DataSet, Mask, Region, Sample

# what Pillow's readers raise on broken files
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError)


class FileData(DataSet):
    """A data set that is read from files, or a sample of it.

    Args:
        path: of the folder, or of the file.
        limit: take a sample of this many; None is all.
        seed: of the sample.

    A class may have a `template` too, text of a class with "{}" for its name.

    Raises:
        InputError: a limit below 1, a seed below 0, or a path that no file can have.
    """

    place = "FOLDER"

    def __init__(self, path: str | Path, *, limit: int | None = None, seed: int = 0) -> None:
        check_integer(type(self).__name__, "seed", seed, least=0)
        if limit is not None:
            check_integer(type(self).__name__, "limit", limit)
        self._path = expand(path)
        self._limit, self._seed = limit, seed

    def _take(self, images: Iterable[str] | Mapping[str, str], /, **decided_by: object) -> None:
        """Set `names`, all or a sample of :func:`captum_clip.files.draw_names`, and the identity.

        Images are files by the samples' names, or these names alone; the rest is what else decides
        the samples, as JSON.
        """
        self.names = tuple(draw_names(images, self._limit, self._seed))
        self._images = {name: images[name] for name in self.names if isinstance(images, Mapping)}
        seed = None if self._limit is None else self._seed  # which decides nothing
        self._identity = {"data": self.name, "limit": self._limit, "seed": seed, **decided_by}

    def _read_image(self, name: str) -> Image.Image:
        """The image of a sample."""
        return read_picture(self._path / self._images[name])

    @override
    def identity(self) -> dict[str, Any]:
        return dict(self._identity)

    def _list(self, under: str) -> tuple[dict[str, int], dict[str, str]]:
        """All files of the folder, with their sizes, and the images under a folder in it.

        Names are relative to the folder, and sorted; images by what is left of them below `under`
        without their ending, each once. "." is all folders in it.
        """
        files = dict(sorted(storage_of(self._path).files().items()))
        stems: dict[str, str] = {}
        for name in image_names(files):
            path = PurePosixPath(name)
            if len(path.parts) == 1 or under not in (".", path.parts[0]):
                continue
            stem = str(path.relative_to(under).with_suffix(""))
            if stem in stems:
                raise InputError(
                    f"{self._path}: {stems[stem]} and {name} would be one sample; rename one of "
                    "them."
                )
            stems[stem] = name
        if not stems:
            raise InputError(
                f"{self._path}: expected images ({', '.join(IMAGE_ENDINGS)}) in "
                f"{'folders in it' if under == '.' else f'its folder {under}/'}, found none."
            )
        return files, stems


def read_lines(path: Path) -> list[str]:
    """The lines of a text that have something in them, stripped."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    return [line.strip() for line in lines if line.strip()]


def digest(entries: Mapping[str, object], under: Collection[str] | None = None) -> str:
    """SHA-256 over names with their entries, as sizes of files; of some folders, or of all."""
    sha = hashlib.sha256()
    for name in sorted(entries):
        if under is None or name.partition("/")[0] in under:
            sha.update(f"{name}\0{entries[name]}\n".encode("utf-8", "surrogateescape"))
    return sha.hexdigest()


def read_picture(path: Path) -> Image.Image:
    """An image, RGB and the right way up."""
    try:
        return as_pil([path])[0]
    except InputError as error:
        raise InputError(str(error).removeprefix("preprocess: ")) from error


def read_mask(path: Path) -> Mask:
    """A mask (H, W): every pixel that is not 0.

    Palette images count by their indices, others by their colours; what is transparent is outside.
    """
    with open_image(path) as image:
        if image.mode in ("1", "L", "P", "F") or image.mode.startswith("I"):
            mask: Mask = np.asarray(image) != 0
        else:
            filled = np.asarray(image.convert("RGBA")) != 0
            mask = filled[..., :3].any(-1) & filled[..., 3]
        return mask


def read_indices(path: Path) -> npt.NDArray[np.uint8]:
    """The colour numbers (H, W) of a palette or grey image."""
    with open_image(path) as image:
        if image.mode not in ("P", "L"):
            raise InputError(
                f"{path}: expected numbers of classes in a palette or grey image of 8 bits, got "
                f"mode {image.mode}."
            )
        return np.asarray(image)


def read_grey(path: Path) -> npt.NDArray[np.float64]:
    """The grey values (H, W) of an image, of 8, 16 or 32 bits."""
    with open_image(path) as image:
        deep = image.mode in ("L", "F") or image.mode.startswith("I")
        return np.asarray(image if deep else image.convert("L"), dtype=np.float64)


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """An image while its file is open; what cannot be read, also inside, is an InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken metadata and the like
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                yield image
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"there is no image file {path}.") from error
    except (*_DAMAGED, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path} cannot be read as an image ({error}).") from error


def masked_sample(
    name: str, image: Image.Image, masks: Iterable[tuple[str, Callable[[], Mask]]], **truth: Any
) -> Sample:
    """A sample with the regions whose masks can be used, of texts with what reads their masks.

    It tells why each of the others was dropped: the mask cannot be read, has another size than its
    image, is empty or full, or its text was there already.

    Raises:
        InputError: no region is left.
    """
    regions: list[Region] = []
    dropped: list[str] = []
    for text, read in masks:
        try:
            mask = read()
            _check_mask(mask, image.size)
            if any(region.text == text for region in regions):
                raise InputError("the image has another region of the same text.")
        except InputError as error:
            dropped.append(f"{name}, {text!r}: {str(error).rstrip('.')}")
        else:
            regions.append(Region(text, mask))
    if not regions:
        reason = "; ".join(dropped) or f"{name} has no mask"
        raise InputError(f"there is no region to compare a map with: {reason}.")
    return Sample(name, image, tuple(regions), dropped=tuple(dropped), **truth)


def _check_mask(mask: Mask, size: tuple[int, int]) -> None:
    width, height = size
    if mask.shape != (height, width):
        shape = " x ".join(map(str, mask.shape))
        raise InputError(f"the mask has {shape} pixels, its image {height} x {width}.")
    if not mask.any():
        raise InputError("the mask is empty.")
    if mask.all():
        raise InputError("the mask is full.")
