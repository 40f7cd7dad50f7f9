"""Data sets in files: public ones with masks, and folders of one's own."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Final, final

import numpy as np
import numpy.typing as npt
from PIL import ImageOps
from typing_extensions import override

from ...checks import check_choice, error_context, find_file, find_repeated
from ...errors import InputError
from ...files import DAMAGED, read_csv
from ...models.images import as_pil, open_image
from ..storage import storage_of
from .base import (
    FileData,
    Mask,
    Sample,
    check_belonging,
    digest,
    masked_sample,
    mosaic_sample,
    read_lines,
    read_numbers,
)

TEMPLATE: Final = "a photo of a {}"
"""The template of data whose classes have names only."""
_CLASS_NAMES: Final = "classnames.txt"
_SYNSET: Final = re.compile(r"n\d{8}")
_SIDE: Final = 224  # of a mosaic's cell, in pixels


@final
class ClassFolder(FileData):
    """``FOLDER/CLASS/*.jpg``, at any depth under the class, as torchvision's ImageFolder has it.

    The text of a class is its folder's name as it stands, with spaces for underscores: folders "a
    horse" need no template, folders "horse" take ``template="a photo of a {}"``. Folders that are
    numbers of WordNet, as ImageNet's are, get ImageNet's names, and ``FOLDER/classnames.txt`` may
    name any (:func:`class_texts`). A limit takes so many images, of which all classes stay.

    Raises:
        InputError: there is no such folder, fewer than two classes with images in it, two classes
            with one text, an unreadable ``classnames.txt``, or a number out of range.
    """

    name = "classes"
    tasks = ("perturbation", "faithfulness", "fixlip", "sanity")
    options: ClassVar = {"template": "{}"}

    @override
    def find(self) -> None:
        files, images = self.list_images(".")
        self.folders = sorted({stem.partition("/")[0] for stem in images})
        if len(self.folders) < 2:
            raise InputError(
                f"{self.path}: expected images in folders of two or more classes, as CLASS/*.jpg,"
                f" found {len(self.folders)}."
            )
        texts = class_texts(self.folders, self.path, template=self.given["template"])
        self.classes = tuple(texts.values())
        repeated = find_repeated(self.classes)
        if repeated:
            raise InputError(f"{self.path}: two classes have the same text, {repeated!r}.")
        sizes = {name: files[name] for name in images.values()}
        self.take(images, texts=list(self.classes), files=digest(sizes))

    @override
    def read(self, index: int) -> Sample:
        name = self.names[index]
        label = self.folders.index(name.partition("/")[0])
        return Sample(name, self.read_image(name), label=label)


@final
class ClassMosaics(FileData):
    """Mosaics of 2 x 2 images of a class folder (:class:`ClassFolder`), each of another class.

    Each image is cropped to the square in its middle. A mosaic is drawn from its own number, as
    many as there are images for. Captions name one to four cells, and are the names of the
    classes side by side, as in FIxLIP's pointing game; the template makes the texts of the classes,
    which GridPG explains. A limit takes so many mosaics.

    Raises:
        InputError: what a class folder cannot be made of, or fewer than four classes.
    """

    name = "mosaics"
    tasks = ("words", "grid")
    options: ClassVar = {"template": TEMPLATE}

    @override
    def find(self) -> None:
        images = ClassFolder(self.path, template=self.given["template"])
        self.classes = images.classes
        self._words = [*class_texts(images.folders, self.path, template="{}").values()]
        if len(self._words) < 4:
            raise InputError(
                f"{self.path}: a mosaic needs four classes, there are {len(self._words)}."
            )
        numbers = range(max(1, len(images) // 4))
        self.take([f"{number:05d}" for number in numbers], images=images.identity())
        known = images.files.values()
        files = [[f for f in known if f.startswith(f"{name}/")] for name in images.folders]
        with error_context(str(self.path)):
            self._cells = {name: _draw(files, self._words, int(name)) for name in self.names}

    @override
    def read(self, index: int) -> Sample:
        name = self.names[index]
        files, labels = zip(*self._cells[name], strict=True)
        images = [ImageOps.fit(as_pil(self.path / file)[0], (_SIDE, _SIDE)) for file in files]
        words = [self._words[label] for label in labels]
        named = _generator(int(name), 1).permutation(4)[: 1 + int(name) % 4].tolist()
        return mosaic_sample(
            name, [np.asarray(image) for image in images], words, labels, named, caption=" ".join
        )


def _draw(
    files: Sequence[Sequence[str]], words: Sequence[str], number: int
) -> list[tuple[str, int]]:
    """File and class of four images, of classes of which no name is part of another."""
    generator = _generator(number, 0)
    chosen: list[int] = []
    for label in generator.permutation(len(words)).tolist():
        parts = [words[label], *(words[other] for other in chosen)]
        if not any(a != b and f" {a} " in f" {b} " for a in parts for b in parts):
            chosen.append(label)
    if len(chosen) < 4:
        raise InputError("expected four classes of which no name is part of another.")
    drawn = ((files[label], label) for label in chosen[:4])
    return [(own[int(generator.integers(len(own)))], label) for own, label in drawn]


def _generator(number: int, use: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(number, spawn_key=(use,)))


def class_texts(names: Sequence[str], folder: Path, *, template: str) -> dict[str, str]:
    """A text for each class.

    The name of a class comes from ``classnames.txt`` in the folder, if it is there (a class and its
    name a line, with a tab between them), else from ImageNet, if it is a number of WordNet such as
    "n02084071", else it is the class itself with spaces for underscores. ImageNet's names are those
    that OpenAI chose for CLIP for the thousand classes of ILSVRC 2012, and for others the first of
    WordNet's.

    Raises:
        InputError: a template without "{}", a file that cannot be read, an unknown number.
    """
    if template.count("{}") != 1:
        raise InputError(f'expected a template with one "{{}}" for the name, got {template!r}.')
    path = folder / _CLASS_NAMES
    lines = read_lines(path) if path.exists() else []
    rows = [[part.strip() for part in line.split("\t")] for line in lines]
    for row in rows:
        if len(row) != 2 or not all(row):
            raise InputError(
                f"{path}: expected a class and its name per line, with a tab between them, got "
                f"{' '.join(row)!r}."
            )
    known = dict(rows)
    return {name: template.replace("{}", known.get(name) or _name(name)) for name in names}


def _name(name: str) -> str:
    if not _SYNSET.fullmatch(name):
        return name.replace("_", " ").strip()
    if name not in _imagenet():
        raise InputError(
            f"the class {name} is not one of ImageNet's; give its name in a file {_CLASS_NAMES}: "
            f"{name}, a tab, the name."
        )
    return _imagenet()[name]


@lru_cache(maxsize=1)
def _imagenet() -> dict[str, str]:
    """Number -> name of the 21 thousand classes of the whole ImageNet."""
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    whole, thousand = ImageNetInfo("imagenet-22k"), ImageNetInfo("imagenet-1k").label_names()
    described = zip(whole.label_names(), whole.label_descriptions(), strict=True)
    named = {number: text.partition(",")[0].strip() for number, text in described}
    return {**named, **dict(zip(thousand, IMAGENET_CLASSNAMES, strict=True))}


@final
class MaskedFolder(FileData):
    """``images/STEM.jpg`` with ``masks/STEM/a horse.png``, one mask per text.

    The mask's name is the text, as it stands but with spaces for underscores; every pixel of it
    that is not 0 is inside. An image without masks is a sample that cannot be read.

    Raises:
        InputError: there is no such folder, no image or no mask in it, or a number out of range.
    """

    name = "masks"
    tasks = ("localization", "signs", "faithfulness", "fixlip", "sanity")

    @override
    def find(self) -> None:
        files, images = self.list_images("images")
        masks: dict[str, list[str]] = defaultdict(list)
        for path in map(PurePosixPath, files):
            if path.parts[0] == "masks" and path.suffix.lower() == ".png" and len(path.parts) > 2:
                masks[str(path.parent.relative_to("masks"))].append(str(path))
        example = f"masks in masks/, such as masks/{next(iter(images))}/a horse.png"
        check_belonging(self.path, (stem in masks for stem in images), example)
        self.take(images, files=digest(files, ("images", "masks")))
        self.classes = tuple(sorted({_text(mask) for of in masks.values() for mask in of}))
        self._masks = {stem: tuple(masks[stem]) for stem in self.names if stem in masks}

    @override
    def read(self, index: int) -> Sample:
        stem = self.names[index]
        own = self._masks.get(stem, ())
        masks = [(_text(name), partial(_read_mask, self.path / name)) for name in own]
        return masked_sample(stem, self.read_image(stem), masks)


def _text(mask: str) -> str:
    return PurePosixPath(mask).stem.replace("_", " ").strip()


def _read_mask(path: Path) -> Mask:
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


@final
class FixationFolder(FileData):
    """``images/STEM.jpg`` with ``fixations/STEM.png``, ``fixations/STEM.npy`` or both.

    A PNG file is a density, its grey values. An NPY file (H, W) holds points if it is bool or has
    no other values than 0 and 1, and is a density otherwise. The metrics NSS and AUC-Judd need
    points, CC and SIM a density; with one of them only the two that need the other cannot be
    measured: to blur points takes a width that no file has, and a density no longer knows its
    points.

    ``FOLDER/texts.csv``, with the columns file (with or without its ending) and text, has the texts
    that the fixations on images are compared with; the option `text` is that of all others.

    Raises:
        InputError: there is no such folder, no image or no fixations in it, no text, an unreadable
            texts.csv, or a number out of range.
    """

    name = "fixations"
    classes = ()
    tasks = ("fixation",)
    options: ClassVar = {"text": None}

    @override
    def find(self) -> None:
        files, images = self.list_images("images")
        places = {s: [f"fixations/{s}{end}" for end in (".png", ".npy")] for s in images}
        maps = {stem: [place for place in own if place in files] for stem, own in places.items()}
        example = f"fixations/{next(iter(images))}.png or .npy and so on"
        check_belonging(self.path, maps.values(), example)
        text = self.given["text"]
        if text is not None and not text.strip():
            raise InputError(f"expected a text with something in it, got {text!r}.")
        texts = _read_texts(self.path / "texts.csv") if "texts.csv" in files else {}
        if not texts and text is None:
            raise InputError(
                f"{self.path}: there is no text to compare fixations with; give one for all "
                "images, or texts.csv with the columns file and text."
            )
        self._texts = {stem: texts.get(stem, text) for stem in images}
        used = digest(files, ("images", "fixations"))
        self.take(images, texts=digest(self._texts), files=used)
        self._maps = {stem: maps[stem] for stem in self.names}

    @override
    def read(self, index: int) -> Sample:
        stem = self.names[index]
        text = self._texts[stem]
        if text is None:
            raise InputError(f"{stem}: texts.csv has no text for it.")
        image = self.read_image(stem)
        truth: dict[str, Any] = {}
        dropped: list[str] = []
        for place in self._maps[stem]:
            try:
                kind, values = _read_fixations(self.path / place, (image.height, image.width))
                if kind in truth:
                    raise InputError(f"{place}: the image has another {kind}.")
                truth[kind] = values
            except InputError as error:
                dropped.append(str(error).rstrip("."))
        if not truth:
            reason = "; ".join(dropped) or f"{stem} has none"
            raise InputError(f"there are no fixations to compare a map with: {reason}.")
        return Sample(stem, image, fixated=text, dropped=tuple(dropped), **truth)


def _read_texts(path: Path) -> dict[str, str]:
    """Stem of each image -> its text."""
    header, *rows = read_csv(path) or [[]]
    if header != ["file", "text"]:
        raise InputError(f"{path}: expected the columns file, text, got {header}.")
    texts = {}
    for row in rows:
        image = PurePosixPath(row[0].strip())
        if len(row) != 2 or not row[1].strip() or not image.name:
            raise InputError(f"{path}: expected a file and a text per line, got {row}.")
        if image.parts[0] == "images" and len(image.parts) > 1:
            image = image.relative_to("images")
        texts[str(image.with_suffix(""))] = row[1]
    return texts


def _read_fixations(path: Path, size: tuple[int, int]) -> tuple[str, npt.NDArray[Any]]:
    """Whether a file has "fixations" (bool) or a "density", and its values (H, W)."""
    values: npt.NDArray[Any]
    if path.suffix == ".png":
        with open_image(path) as image:  # of 8, 16 or 32 bits
            deep = image.mode in ("L", "F") or image.mode.startswith("I")
            values = np.asarray(image if deep else image.convert("L"), dtype=np.float64)
    else:
        try:
            values = np.load(path, allow_pickle=False)
        except DAMAGED as error:
            raise InputError(f"{path} cannot be read as an array ({error}).") from error
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
            raise InputError(f"{path}: expected an array of numbers.")
    if values.shape != size:
        shape = " x ".join(map(str, values.shape))
        raise InputError(f"{path} has {shape} values, its image {size[0]} x {size[1]} pixels.")
    if not np.isfinite(values).all() or (values < 0).any():
        raise InputError(f"{path}: expected finite values from 0 on.")
    if not values.any():
        raise InputError(f"{path}: nobody looked at the image.")
    if path.suffix == ".png" or not np.isin(values, (0, 1)).all():
        return "density", values.astype(np.float64)
    if values.all():
        raise InputError(f"{path}: every pixel is a fixation.")
    return "fixations", values.astype(np.bool_)


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
    tasks = ("localization", "faithfulness", "fixlip", "sanity")
    options: ClassVar = {"template": TEMPLATE}

    @override
    def find(self) -> None:
        files, images = self.list_images(_IMAGES)
        masks = [f"{_MASKS}/{stem}.png" for stem in images]
        check_belonging(self.path, (mask in files for mask in masks), f"masks such as {masks[0]}")
        places = (self.path / _MASKS, self.path / _IMAGES)
        folders = sorted({p.name for place in places for p in place.iterdir() if p.is_dir()})
        self._numbers = {name: number for number, name in enumerate(folders, start=1)}
        self._texts = class_texts(folders, self.path, template=self.given["template"])
        self.classes = tuple(dict.fromkeys(self._texts.values()))
        used = digest(files, (_IMAGES, _MASKS))
        self.take(images, texts=list(self.classes), files=used)

    @override
    def read(self, index: int) -> Sample:
        stem = self.names[index]
        own, image = stem.partition("/")[0], self.read_image(stem)
        path = self.path / f"{_MASKS}/{stem}.png"
        with open_image(path) as file:
            red, green, _ = np.moveaxis(np.asarray(file.convert("RGB"), dtype=np.int64), -1, 0)
        numbers = red + 256 * green
        highest = int(numbers[numbers != _IGNORED].max(initial=0))
        if highest > len(self._numbers):
            raise InputError(
                f"{path}: a pixel is of class {highest}, but there are folders of "
                f"{len(self._numbers)} classes only; all of the set are needed to number them."
            )
        text = self._texts[own]
        masks = [(text, partial(np.equal, numbers, self._numbers[own]))]
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
    tasks = ("localization", "faithfulness", "fixlip", "sanity")
    place = "FILE"
    options: ClassVar = {"template": TEMPLATE}

    @override
    def find(self) -> None:
        with _opened(self.path) as content:
            images, masks, targets = (_cells(content, name) for name in ("img", "gt", "target"))
            if not len(images) == len(masks) == len(targets) or not len(images):
                raise InputError(
                    f"{self.path}: expected as many masks and classes as images, one or more, got "
                    f"{len(masks)} and {len(targets)} for {len(images)}."
                )
            self._synsets = ["".join(map(chr, _array(content, t).ravel())) for t in targets]
        names = sorted({*self._synsets})
        self._texts = class_texts(names, self.path.parent, template=self.given["template"])
        self.classes = tuple(dict.fromkeys(self._texts.values()))  # two may have one name
        numbers = [f"{number:05d}" for number in range(len(images))]
        self.take(numbers, texts=list(self.classes), bytes=self.path.stat().st_size)

    @override
    def read(self, index: int) -> Sample:
        name = self.names[index]
        text = self._texts[self._synsets[int(name)]]
        with _opened(self.path) as content:
            cells = [_cells(content, kind)[int(name)] for kind in ("img", "gt")]
            pixels, marks = (_array(content, cell) for cell in cells)
            mask = marks != 0
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
    tasks = ("localization", "signs", "faithfulness", "fixlip", "sanity")
    options: ClassVar = {"void": "out"}

    @override
    def find(self) -> None:
        check_choice(self.given["void"], ("out", "background"), name="void")
        inside = [self.path / place for place in (".", "VOC2012", "VOCdevkit/VOC2012")]
        found = [p for p in inside if all((p / needed).is_dir() for needed in _NEEDED)]
        if not found:
            raise InputError(
                f"{self.path} is not Pascal VOC 2012: expected folders {', '.join(_NEEDED)} in it, "
                "in its VOC2012 or its VOCdevkit/VOC2012."
            )
        self.path = found[0]
        path = self.path / "ImageSets" / "Segmentation" / "val.txt"
        listed = sorted({*read_lines(find_file(path, what="list of images"))})
        if not listed:
            raise InputError(f"{path} lists no image.")
        images = {name: f"JPEGImages/{name}.jpg" for name in listed}
        self.take(images, void=self.given["void"])
        files = storage_of(self.path).files()
        needed = [*self.files.values(), *(f"SegmentationClass/{n}.png" for n in self.names)]
        own = {place: files.get(place, -1) for place in needed}
        if not any(size >= 0 for size in own.values()):
            raise InputError(
                f"{self.path}: none of the {len(self.names)} images of {path.name} is there."
            )
        self._identity["files"] = digest(own)

    @override
    def read(self, index: int) -> Sample:
        name = self.names[index]
        image, path = self.read_image(name), self.path / f"SegmentationClass/{name}.png"
        numbers = read_numbers(path)
        present = [int(number) for number in np.unique(numbers) if number not in (0, _VOID)]
        if any(number > len(VOC_CLASSES) for number in present):
            raise InputError(
                f"{path}: expected numbers of classes from 0 to {len(VOC_CLASSES)} and {_VOID}, "
                f"got {max(present)}."
            )
        masks = [(VOC_CLASSES[n - 1], partial(np.equal, numbers, n)) for n in present]
        void = numbers == _VOID if self.given["void"] == "out" else None
        return masked_sample(name, image, masks, void=void)
