"""Public data sets with masks, in the files that they come in."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, final

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from ...checks import check_choice, error_context, expect, find_file
from ...errors import InputError
from ...pictures import as_pil, open_image
from ..storage import storage_of
from .base import FileData, Sample, digest, masked_sample, read_lines, read_numbers
from .formats import TEMPLATE, class_texts

_IMAGES, _MASKS = "validation", "validation-segmentation"
_IGNORED: Final = 1000
_BROKEN = (OSError, KeyError, IndexError, ValueError, TypeError, AttributeError)  # by h5py

VOC_CLASSES: Final = (
    "an aeroplane", "a bicycle", "a bird", "a boat", "a bottle", "a bus", "a car", "a cat",
    "a chair", "a cow", "a dining table", "a dog", "a horse", "a motorbike", "a person",
    "a potted plant", "a sheep", "a sofa", "a train", "a tv monitor",
)  # fmt: skip
"""Texts of the classes 1 to 20 of Pascal VOC's masks."""
_VOID: Final = 255
_NEEDED: Final = ("JPEGImages", "SegmentationClass", "ImageSets")


@final
class ImageNetS(FileData):
    """``validation/n01440764/NAME.JPEG`` with ``validation-segmentation/n01440764/NAME.png``.

    The folder is ``ImageNetS919``, ``ImageNetS300`` or ``ImageNetS50``. A mask numbers the classes
    of its pixels, red + 256 green, in the order of the folders' names from 1 on; 0 is anything
    else, and 1000 is left out. The region is the class of the image's own folder, so all folders of
    the set must be there, be there images in them or not.

    Raises:
        InputError: there is no such folder, no image or no mask in it, or an unknown class.

    Source: Gao et al. 2022, *Large-scale Unsupervised Semantic Segmentation* (arXiv:2106.03149).
    """

    name = "imagenet-s"
    truth = ("masks",)
    options: ClassVar = {"template": TEMPLATE}

    @override
    def find(self) -> None:
        files, images = self.list_images(_IMAGES)
        masks = [f"{_MASKS}/{stem}.png" for stem in images]
        self.check_belonging((mask in files for mask in masks), f"masks such as {masks[0]}")
        places = (self.path / _MASKS, self.path / _IMAGES)
        folders = sorted({p.name for place in places for p in place.iterdir() if p.is_dir()})
        self._numbers = {name: number for number, name in enumerate(folders, start=1)}
        self._texts = class_texts(folders, self.path, template=self.settings["template"])
        self.classes = tuple(dict.fromkeys(self._texts.values()))
        used = digest(files, (_IMAGES, _MASKS))
        self.take(images, texts=list(self.classes), files=used)

    @override
    def read(self, index: int) -> Sample:
        stem = self.names[index]
        folder, image = stem.partition("/")[0], self.read_image(stem)
        path = self.path / f"{_MASKS}/{stem}.png"
        with open_image(path) as file:
            red, green, _ = np.moveaxis(np.asarray(file.convert("RGB"), dtype=np.int64), -1, 0)
        numbers = red + 256 * green
        highest = int(numbers[numbers != _IGNORED].max(initial=0))
        expected = f"{path} with numbers up to {len(self._numbers)}, the folders of classes"
        expect(highest <= len(self._numbers), expected, highest, "all of the set are needed")
        text = self._texts[folder]
        masks = [(text, partial(np.equal, numbers, self._numbers[folder]))]
        label = self.classes.index(text)
        return masked_sample(stem, image, masks, label=label, void=numbers == _IGNORED)


@final
class ImageNetSegmentation(FileData):
    """The file ``gtsegs_ijcv.mat`` (MATLAB 7.3): 4,276 images, each with a mask and a class.

    The file holds a structure `value` with a cell array each for `img` (images), `gt` (a cell with
    the mask of the object, first of several) and `target` (the number of its class in WordNet). The
    text of the region is a template around the name of the class: of a file ``classnames.txt``
    next to the .mat file, or ImageNet's own (:func:`class_texts`).

    Raises:
        InputError: there is no such file, it holds something else, or h5py is not installed.

    Source: Guillaumin, Küttel, Ferrari 2014, *ImageNet auto-annotation with segmentation
    propagation*; as a test of saliency maps: Chefer et al. 2021 (arXiv:2012.09838).
    """

    name = "imagenet-segmentation"
    truth = ("masks",)
    place = "FILE"
    options: ClassVar = {"template": TEMPLATE}

    @override
    def find(self) -> None:
        with _opened(self.path) as content:
            images, masks, targets = (_cells(content, name) for name in ("img", "gt", "target"))
            counts = [len(images), len(masks), len(targets)]
            expected = f"as many masks and classes as images in {self.path}, one or more"
            expect(counts[0] and len({*counts}) == 1, expected, counts)
            self._synsets = ["".join(map(chr, _array(content, t).ravel())) for t in targets]
        names = sorted({*self._synsets})
        self._texts = class_texts(names, self.path.parent, template=self.settings["template"])
        self.classes = tuple(dict.fromkeys(self._texts.values()))  # two may have one name
        numbers = [f"{number:05d}" for number in range(len(images))]
        self.take(numbers, texts=list(self.classes), bytes=self.path.stat().st_size)

    @override
    def read(self, index: int) -> Sample:
        name = self.names[index]
        text = self._texts[self._synsets[int(name)]]
        # Opened for each sample, since an open HDF5 file cannot be sent to another process.
        with _opened(self.path) as content:
            cells = [_cells(content, kind)[int(name)] for kind in ("img", "gt")]
            pixels, marks = (_array(content, cell) for cell in cells)
            mask = marks != 0
        with error_context(name):
            image = as_pil(pixels)[0]
        label = self.classes.index(text)
        return masked_sample(name, image, [(text, lambda: mask)], label=label)


def _cells(content: Any, name: str) -> Any:
    """A cell array of MATLAB: references to what is in its cells."""
    return np.ravel(content[f"value/{name}"][()])


def _array(content: Any, reference: Any) -> npt.NDArray[Any]:
    """The array in a cell, or in the first cell of a cell; h5py shows its axes reversed."""
    cell = content[reference]
    if cell.dtype == object:
        cell = content[np.ravel(cell[()])[0]]
    return np.asarray(cell[()]).T


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, while it is open; what is wrong in it is an InputError."""
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


@final
class PascalVoc(FileData):
    """The folder ``VOCdevkit/VOC2012``, its images of ``ImageSets/Segmentation/val.txt``.

    The folder is ``VOC2012`` itself or one above it, such as ``VOCdevkit``. A region is all of a
    class in the image, however many objects that is. The outlines of objects and what is too
    difficult, which the masks number 255, are void: metrics leave these pixels out, as the
    benchmark's own segmentation accuracy does. The option ``void="background"`` counts them as
    outside of every region instead.

    Raises:
        InputError: there is no such folder, no such list in it, nothing in the list, or a
            number out of range.

    Source: Everingham et al. 2010; http://host.robots.ox.ac.uk/pascal/VOC/voc2012.
    """

    name = "voc"
    classes = VOC_CLASSES
    truth = ("masks", "objects")
    options: ClassVar = {"void": "out"}

    @override
    def find(self) -> None:
        check_choice(self.settings["void"], ("out", "background"), name="void")
        inside = [self.path / place for place in (".", "VOC2012", "VOCdevkit/VOC2012")]
        complete = [p for p in inside if all((p / needed).is_dir() for needed in _NEEDED)]
        if not complete:
            raise InputError(
                f"{self.path} is not Pascal VOC 2012: expected folders {', '.join(_NEEDED)} in it, "
                "in its VOC2012 or its VOCdevkit/VOC2012."
            )
        self.path = complete[0]
        path = self.path / "ImageSets" / "Segmentation" / "val.txt"
        listed = sorted({*read_lines(find_file(path, what="list of images"))})
        if not listed:
            raise InputError(f"{path} lists no image.")
        images = {name: f"JPEGImages/{name}.jpg" for name in listed}
        self.take(images, void=self.settings["void"])
        files = storage_of(self.path).files()
        needed = [*self.files.values(), *(f"SegmentationClass/{n}.png" for n in self.names)]
        sizes = {place: files.get(place, -1) for place in needed}
        self.check_belonging((size >= 0 for size in sizes.values()), f"files such as {needed[0]}")
        self._identity["files"] = digest(sizes)

    @override
    def read(self, index: int) -> Sample:
        name = self.names[index]
        image, path = self.read_image(name), self.path / f"SegmentationClass/{name}.png"
        numbers = read_numbers(path)
        present = [int(number) for number in np.unique(numbers) if number not in (0, _VOID)]
        expected = f"{path} with numbers of classes from 0 to {len(VOC_CLASSES)} and {_VOID}"
        highest = max(present, default=0)
        expect(highest <= len(VOC_CLASSES), expected, highest)
        masks = [(VOC_CLASSES[n - 1], partial(np.equal, numbers, n)) for n in present]
        void = numbers == _VOID if self.settings["void"] == "out" else None
        return masked_sample(name, image, masks, void=void)
