"""Images of ImageNet with the mask of their object: ImageNet-S and ImageNet-Segmentation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from ...checks import find_file
from ...errors import InputError
from ...models.images import as_pil
from .base import Mask, Sample
from .class_folder import TEMPLATE, class_texts
from .files import FileData, digest, masked_sample, open_image

IMAGES, MASKS = "validation", "validation-segmentation"
_IGNORED: Final = 1000
_BROKEN = (OSError, KeyError, IndexError, ValueError, TypeError, AttributeError)  # by h5py


@final
class ImageNetS(FileData):
    """``validation/n01440764/NAME.JPEG`` with ``validation-segmentation/n01440764/NAME.png``.

    A mask numbers the classes of its pixels, red + 256 green, in the order of the folders' names
    from 1 on; 0 is anything else, and 1000 is left out. The region is the class of the image's own
    folder, so all folders of the set must be there, be there images in them or not.

    Args:
        folder: ``ImageNetS919``, ``ImageNetS300`` or ``ImageNetS50``.

    Raises:
        InputError: there is no such folder, no image or no mask in it, or an unknown class.

    Source: Gao et al. 2022, *Large-scale Unsupervised Semantic Segmentation* (arXiv:2106.03149).
    """

    name = "imagenet-s"
    tasks = ("localization", "faithfulness", "fixlip", "sanity")
    options = ("template",)

    def __init__(
        self,
        folder: str | Path,
        *,
        limit: int | None = None,
        seed: int = 0,
        template: str = TEMPLATE,
    ) -> None:
        super().__init__(folder, limit=limit, seed=seed)
        files, images = self._list(under=IMAGES)
        if not any(_mask_of(stem) in files for stem in images):
            raise InputError(
                f"{self._path}: expected masks such as {_mask_of(next(iter(images)))}, found none "
                "that belongs to an image."
            )
        places = (self._path / MASKS, self._path / IMAGES)
        names = sorted({p.name for place in places for p in place.iterdir() if p.is_dir()})
        self._numbers = {name: number for number, name in enumerate(names, start=1)}
        self._texts = class_texts(names, self._path, template=template)
        self.classes = tuple(dict.fromkeys(self._texts.values()))
        used = digest(files, (IMAGES, MASKS))
        self._take(images, texts=list(self.classes), files=used)

    @override
    def read(self, index: int) -> Sample:
        stem = self.names[index]
        own = stem.partition("/")[0]
        image = self._read_image(stem)
        with open_image(self._path / _mask_of(stem)) as file:
            red, green, _ = np.moveaxis(np.asarray(file.convert("RGB"), dtype=np.int64), -1, 0)
        numbers = red + 256 * green
        highest = int(numbers[numbers != _IGNORED].max(initial=0))
        if highest > len(self._numbers):
            raise InputError(
                f"{_mask_of(stem)}: a pixel is of class {highest}, but there are folders of "
                f"{len(self._numbers)} classes only; all of the set are needed to number them."
            )
        text = self._texts[own]
        masks = [(text, partial(np.equal, numbers, self._numbers[own]))]
        label = self.classes.index(text)
        return masked_sample(stem, image, masks, label=label, void=numbers == _IGNORED)


def _mask_of(stem: str) -> str:
    return f"{MASKS}/{stem}.png"


@final
class ImageNetSegmentation(FileData):
    """The file ``gtsegs_ijcv.mat`` (MATLAB 7.3): 4,276 images, each with a mask and a class.

    The file holds a structure `value` with a cell array each for `img` (images), `gt` (a cell with
    the mask of the object, first of several) and `target` (the number of its class in WordNet). The
    text of the region is a template around the name of the class: of a file ``classnames.txt``
    beside the .mat file, or ImageNet's own (:func:`.class_folder.class_texts`).

    Args:
        file: the .mat file.

    Raises:
        InputError: there is no such file, it holds something else, or h5py is not installed.

    Source: Guillaumin, Küttel, Ferrari 2014, *ImageNet auto-annotation with segmentation
    propagation*; as a test of saliency maps: Chefer et al. 2021 (arXiv:2012.09838).
    """

    name = "imagenet-segmentation"
    tasks = ("localization", "faithfulness", "fixlip", "sanity")
    place = "FILE"
    options = ("template",)

    def __init__(
        self,
        file: str | Path,
        *,
        limit: int | None = None,
        seed: int = 0,
        template: str = TEMPLATE,
    ) -> None:
        super().__init__(file, limit=limit, seed=seed)
        with _opened(self._path) as content:
            images, masks, targets = (_cells(content, name) for name in ("img", "gt", "target"))
            if not len(images) == len(masks) == len(targets) or not len(images):
                raise InputError(
                    f"{self._path}: expected as many masks and classes as images, one or more, got "
                    f"{len(masks)} and {len(targets)} for {len(images)}."
                )
            self._classes = [_text(_array(content, target)) for target in targets]
        names = sorted({*self._classes})
        self._texts = class_texts(names, self._path.parent, template=template)
        self.classes = tuple(dict.fromkeys(self._texts.values()))  # two may have one name
        numbers = [f"{number:05d}" for number in range(len(images))]
        self._take(numbers, texts=list(self.classes), bytes=self._path.stat().st_size)

    @override
    def read(self, index: int) -> Sample:
        name = self.names[index]
        text = self._texts[self._classes[int(name)]]
        with _opened(self._path) as content:
            cells = [_cells(content, kind)[int(name)] for kind in ("img", "gt")]
            pixels, marks = (_array(content, cell) for cell in cells)
            mask: Mask = marks != 0
        if pixels.ndim not in (2, 3) or pixels.dtype != np.uint8:
            raise InputError(
                f"{name}: expected an image (H, W, 3) of uint8, got {pixels.shape} of "
                f"{pixels.dtype}."
            )
        label = self.classes.index(text)
        return masked_sample(name, as_pil(pixels)[0], [(text, lambda: mask)], label=label)


def _cells(content: Any, name: str) -> npt.NDArray[Any]:
    """A cell array of MATLAB: references to what is in its cells."""
    cells: npt.NDArray[Any] = np.ravel(content[f"value/{name}"][()])
    return cells


def _array(content: Any, reference: Any) -> npt.NDArray[Any]:
    """The array in a cell, or in the first cell of a cell; h5py shows its axes reversed."""
    cell = content[reference]
    if cell.dtype == object:
        cell = content[np.ravel(cell[()])[0]]
    return np.asarray(cell[()]).T


def _text(codes: npt.NDArray[Any]) -> str:
    if codes.dtype.kind not in "iu":
        raise TypeError("the class of an image is no text")
    return "".join(map(chr, codes.ravel()))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, while it is open; what is wrong in it is said."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise InputError(f"reading {path.name} needs h5py: pip install h5py.") from error
    find_file(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except _BROKEN as error:
        raise InputError(
            f"{path} cannot be read as gtsegs_ijcv.mat, which is a file of MATLAB 7.3 with "
            f"value/img, value/gt and value/target ({error})."
        ) from error
