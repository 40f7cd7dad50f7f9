"""ImageNet-Segmentation: 4,276 images of ImageNet with a mask of their object (Guillaumin)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
from typing_extensions import Unpack, override

from ...checks import find_file
from ...errors import InputError
from ...models.images import as_pil
from .base import Mask, Sample
from .class_names import TEMPLATE, class_texts
from .files import Drawn, FileData, masked_sample

_INSTALL = "pip install h5py"
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
        self, file: str | Path, *, template: str = TEMPLATE, **drawn: Unpack[Drawn]
    ) -> None:
        super().__init__(file, **drawn)
        with _opened(self._path) as cells:
            images, masks, targets = (cells(name) for name in ("img", "gt", "target"))
            if not len(images) == len(masks) == len(targets) or not len(images):
                raise InputError(
                    f"{self._path}: expected as many masks and classes as images, one or more, got "
                    f"{len(masks)} and {len(targets)} for {len(images)}."
                )
            self._classes = [_text(target) for target in targets]
        names = [f"{number:05d}" for number in range(len(images))]
        beside = self._path.parent
        self._texts = class_texts(sorted(set(self._classes)), beside, template=template)
        self.classes = tuple(dict.fromkeys(self._texts.values()))  # two may have one name
        self._take(names, texts=list(self.classes), bytes=self._path.stat().st_size)

    @override
    def read(self, index: int) -> Sample:
        name = self.names[index]
        text = self._texts[self._classes[int(name)]]
        with _opened(self._path) as cells:
            pixels = cells("img")[int(name)]
            mask: Mask = cells("gt")[int(name)] != 0
        if pixels.ndim not in (2, 3) or pixels.dtype != np.uint8:
            raise InputError(
                f"{name}: expected an image (H, W, 3) of uint8, got {pixels.shape} of "
                f"{pixels.dtype}."
            )
        label = self.classes.index(text)
        return masked_sample(name, as_pil(pixels)[0], [(text, lambda: mask)], label=label)


class _Cells(Sequence[npt.NDArray[Any]]):
    """A cell array of MATLAB: references to arrays, which h5py shows with their axes reversed."""

    def __init__(self, file: Any, name: str) -> None:
        self._file, self._references = file, np.ravel(file[f"value/{name}"][()])

    @override
    def __len__(self) -> int:
        return len(self._references)

    @override
    def __getitem__(self, number: Any) -> Any:
        """The array in a cell, or in the first cell of a cell."""
        cell = self._file[self._references[number]]
        if cell.dtype == object:
            cell = self._file[np.ravel(cell[()])[0]]
        return np.asarray(cell[()]).T


def _text(codes: npt.NDArray[Any]) -> str:
    if codes.dtype.kind not in "iu":
        raise TypeError("the class of an image is no text")
    return "".join(map(chr, codes.ravel()))


@contextmanager
def _opened(path: Path) -> Iterator[Callable[[str], _Cells]]:
    """Cell arrays of the file by name, while it is open; what is wrong in it is said."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise InputError(f"reading {path.name} needs h5py: {_INSTALL}.") from error
    find_file(path)
    try:
        with h5py.File(path, "r") as file:
            yield partial(_Cells, file)
    except InputError:
        raise
    except _BROKEN as error:
        raise InputError(
            f"{path} cannot be read as gtsegs_ijcv.mat, which is a file of MATLAB 7.3 with "
            f"value/img, value/gt and value/target ({error})."
        ) from error
