"""ImageNet-Segmentation: 4,276 images of ImageNet with a mask of their object (Guillaumin)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
from PIL import Image
from typing_extensions import override

from ...errors import InputError
from ...models.images import as_pil
from ..sample import Mask, Sample
from .class_names import class_texts
from .files import FileData
from .regions import usable_regions

_INSTALL = "pip install 'captum-clip[evaluation]'"
_BROKEN = (OSError, KeyError, IndexError, ValueError, TypeError, AttributeError)  # by h5py


@final
class ImageNetSegmentation(FileData):
    """The file ``gtsegs_ijcv.mat`` (MATLAB 7.3): an image, a mask and a class each.

    The file holds a structure `value` with a cell array each for `img` (images), `gt` (a cell with
    the mask of the object, first of several) and `target` (the number of its class in WordNet). The
    text of the region is a template around the name of the class: of a file ``classnames.txt``
    beside the .mat file, or ImageNet's own (:func:`.class_names.class_texts`).

    Args:
        file: the .mat file.
        limit: take a sample of this many; None is all.
        seed: of the sample.
        template: text of a class, with "{}" for its name.

    Raises:
        InputError: there is no such file, it holds something else, or h5py is not installed.

    Source: Guillaumin, Küttel, Ferrari 2014, *ImageNet auto-annotation with segmentation
    propagation*; as a test of saliency maps: Chefer et al. 2021 (arXiv:2012.09838).
    """

    name = "imagenet-segmentation"
    tasks = ("localization", "faithfulness", "sanity")
    place = "FILE"
    options = ("template",)

    def __init__(
        self,
        file: str | Path,
        *,
        limit: int | None = None,
        seed: int = 0,
        template: str = "a photo of a {}",
    ) -> None:
        self.file = Path(file).expanduser()
        with _opened(self.file) as (images, masks, targets):
            if not len(images) == len(masks) == len(targets) or not len(images):
                raise InputError(
                    f"{self.file}: expected as many masks and classes as images, one or more, got "
                    f"{len(masks)} and {len(targets)} for {len(images)}."
                )
            names = [f"{number:05d}" for number in range(len(images))]
            self._take(names, limit=limit, seed=seed)
            self._classes = [targets.text(number) for number in range(len(images))]
        texts = class_texts(sorted(set(self._classes)), self.file.parent, template=template)
        self.classes = tuple(dict.fromkeys(texts.values()))  # two classes may have one name
        self._texts = texts
        self._identity |= {"texts": list(self.classes), "bytes": self.file.stat().st_size}

    @override
    def read(self, index: int) -> Sample:
        name = self.names[index]
        number = int(name)
        text = self._texts[self._classes[number]]
        with _opened(self.file) as (images, masks, _):
            pixels = images.read(number)
            mask: Mask = masks.read(number) != 0
        image = _picture(name, pixels)
        regions, dropped = usable_regions(name, image.size, [(text, lambda: mask)])
        label = self.classes.index(text)
        return Sample(name, image, regions, label=label, dropped=dropped)


def _picture(name: str, pixels: npt.NDArray[Any]) -> Image.Image:
    if pixels.ndim not in (2, 3) or pixels.dtype != np.uint8:
        raise InputError(
            f"{name}: expected an image (H, W, 3) of uint8, got {pixels.shape} of {pixels.dtype}."
        )
    return as_pil(pixels)[0]


class _Cells:
    """A cell array of MATLAB: references to arrays, which h5py shows with their axes reversed."""

    def __init__(self, path: Path, file: Any, name: str) -> None:
        self.path = path
        self.file = file
        try:
            self.references = np.ravel(file[f"value/{name}"][()])
        except _BROKEN as error:
            raise _other(path, error) from error

    def __len__(self) -> int:
        return len(self.references)

    def read(self, number: int) -> npt.NDArray[Any]:
        """The array in a cell, or in the first cell of a cell."""
        try:
            cell = self.file[self.references[number]]
            if cell.dtype == object:
                cell = self.file[np.ravel(cell[()])[0]]
            return np.asarray(cell[()]).T
        except _BROKEN as error:
            raise _other(self.path, error) from error

    def text(self, number: int) -> str:
        """The characters in a cell."""
        codes = self.read(number).ravel()
        if codes.dtype.kind not in "iu":
            raise _other(self.path, f"the class of image {number} is no text")
        return "".join(map(chr, codes))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[_Cells, _Cells, _Cells]]:
    """Images, masks and classes of the file, which is closed again."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise InputError(f"reading {path.name} needs h5py: {_INSTALL}.") from error
    if not path.is_file():
        raise InputError(f"there is no file {path}.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise _other(path, error) from error
    with file:
        images, masks, targets = (_Cells(path, file, name) for name in ("img", "gt", "target"))
        yield images, masks, targets


def _other(path: Path, reason: object) -> InputError:
    return InputError(
        f"{path} cannot be read as gtsegs_ijcv.mat, which is a file of MATLAB 7.3 with value/img, "
        f"value/gt and value/target ({reason})."
    )
