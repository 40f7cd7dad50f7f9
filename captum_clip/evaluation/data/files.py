"""Files of a data set: which there are, which of them count, and what is in them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from typing_extensions import override

from ...checks import check_integer
from ...errors import InputError
from ...files import IMAGE_ENDINGS, draw_names, image_names
from ...models.images import as_pil
from ...runs import storage_of
from .base import DataSet, Mask, Region

Loaded = TypeVar("Loaded")

# what Pillow's readers raise on broken files
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError)


class FileData(DataSet):
    """A data set that is read from files, or a sample of it.

    Its arguments, where a class says nothing else of them: `limit`, take a sample of this many,
    None is all; `seed` of the sample; `template`, text of a class with "{}" for its name.
    """

    place = "FOLDER"

    def _take(
        self, names: Iterable[str], *, limit: int | None, seed: int, **decided_by: object
    ) -> None:
        """Set `names`, all or a sample of :func:`captum_clip.files.draw_names`, and the identity.

        Args:
            names: of all samples.
            limit: number of names; None is all.
            seed: of the sample.
            decided_by: what else decides the samples, as JSON.

        Raises:
            InputError: a limit below 1, or a seed below 0.
        """
        check_integer(type(self).__name__, "seed", seed, least=0)
        if limit is not None:
            check_integer(type(self).__name__, "limit", limit)
        self.names = tuple(draw_names(names, limit, seed))
        drawn = {"limit": limit, "seed": None if limit is None else seed}  # which decides nothing
        self._identity = {"data": self.name, **drawn, **decided_by}

    @override
    def identity(self) -> dict[str, Any]:
        return dict(self._identity)


def list_files(folder: str | Path) -> dict[str, int]:
    """Names of all files, relative to their folder and sorted, with their sizes in bytes.

    Raises:
        InputError: there is no such folder, or it cannot be read.
    """
    return dict(sorted(storage_of(folder).files()))


def image_stems(folder: str | Path, names: Iterable[str], *, under: str) -> dict[str, str]:
    """The images in a folder of a data set: name of each in it without its ending -> file.

    Args:
        folder: of the data set, for the message.
        names: of all its files.
        under: the folder in it, as "images"; "." is all of its folders.

    Raises:
        InputError: there is no image, or two have the same stem.
    """
    stems: dict[str, str] = {}
    for name in image_names(names):
        path = PurePosixPath(name)
        if len(path.parts) == 1 or under not in (".", path.parts[0]):
            continue
        stem = str(path.relative_to(under).with_suffix(""))
        if stem in stems:
            raise InputError(
                f"{folder}: {stems[stem]} and {name} would be one sample; rename one of them."
            )
        stems[stem] = name
    if not stems:
        raise InputError(
            f"{folder}: expected images ({', '.join(IMAGE_ENDINGS)}) in "
            f"{'folders in it' if under == '.' else f'its folder {under}/'}, found none."
        )
    return stems


def digest(entries: Mapping[str, object], under: Collection[str] | None = None) -> str:
    """SHA-256 over names with their entries, as sizes of files; of some folders, or of all."""
    sha = hashlib.sha256()
    for name in sorted(entries):
        if under is None or name.partition("/")[0] in under:
            sha.update(f"{name}\0{entries[name]}\n".encode("utf-8", "surrogateescape"))
    return sha.hexdigest()


def read_picture(path: Path) -> Image.Image:
    """An image, RGB and the right way up.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    try:
        return as_pil([path])[0]
    except InputError as error:
        raise InputError(str(error).removeprefix("preprocess: ")) from error


def read_mask(path: Path) -> Mask:
    """A mask (H, W): every pixel that is not 0.

    Palette images count by their indices, others by their colours; what is transparent is outside.

    Raises:
        InputError: there is none, or it cannot be read.
    """

    def load(image: Image.Image) -> Mask:
        if image.mode in ("1", "L", "P", "F") or image.mode.startswith("I"):
            mask: Mask = np.asarray(image) != 0
            return mask
        values = np.asarray(image.convert("RGBA"))
        inside: Mask = (values[..., :3] != 0).any(-1) & (values[..., 3] != 0)
        return inside

    return load_image(path, load)


def read_indices(path: Path) -> npt.NDArray[np.uint8]:
    """The colour numbers (H, W) of a palette or grey image.

    Raises:
        InputError: there is none, it cannot be read, or it is of another kind.
    """

    def load(image: Image.Image) -> npt.NDArray[np.uint8]:
        if image.mode not in ("P", "L"):
            raise InputError(
                f"{path}: expected numbers of classes in a palette or grey image of 8 bits, got "
                f"mode {image.mode}."
            )
        return np.asarray(image)

    return load_image(path, load)


def read_grey(path: Path) -> npt.NDArray[np.float64]:
    """The grey values (H, W) of an image, of 8, 16 or 32 bits.

    Raises:
        InputError: there is none, or it cannot be read.
    """

    def load(image: Image.Image) -> npt.NDArray[np.float64]:
        deep = image.mode in ("L", "F") or image.mode.startswith("I")
        return np.asarray(image if deep else image.convert("L"), dtype=np.float64)

    return load_image(path, load)


def load_image(path: Path, load: Callable[[Image.Image], Loaded]) -> Loaded:
    """What `load` makes of an image file.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken metadata and the like
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return load(image)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"there is no image file {path}.") from error
    except (*_DAMAGED, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path} cannot be read as an image ({error}).") from error


def usable_regions(
    sample: str, size: tuple[int, int], masks: Iterable[tuple[str, Callable[[], Mask]]]
) -> tuple[tuple[Region, ...], tuple[str, ...]]:
    """Read masks, and keep those that can be used.

    Args:
        sample: its name, for the messages.
        size: (width, height) of the image, as Pillow has it.
        masks: text of each region, and what reads its mask.

    Returns:
        The regions, and a reason for each mask that was left out: it cannot be read, has another
        size than its image, is empty or full, or its text was there already.

    Raises:
        InputError: no region is left.
    """
    regions: list[Region] = []
    dropped: list[str] = []
    for text, read in masks:
        try:
            mask = read()
            _check_mask(mask, size)
            if any(region.text == text for region in regions):
                raise InputError("the image has another region of the same text.")
        except InputError as error:
            dropped.append(f"{sample}, {text!r}: {str(error).rstrip('.')}")
        else:
            regions.append(Region(text, mask))
    if not regions:
        reason = "; ".join(dropped) or f"{sample} has no mask"
        raise InputError(f"there is no region to compare a map with: {reason}.")
    return tuple(regions), tuple(dropped)


def _check_mask(mask: Mask, size: tuple[int, int]) -> None:
    width, height = size
    if mask.shape != (height, width):
        shape = " x ".join(map(str, mask.shape))
        raise InputError(f"the mask has {shape} pixels, its image {height} x {width}.")
    if not mask.any():
        raise InputError("the mask is empty.")
    if mask.all():
        raise InputError("the mask is full.")
