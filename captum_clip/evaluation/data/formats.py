"""Your own folders: classes, mosaics of them, masks."""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import ClassVar, Final, final

import numpy as np
import numpy.typing as npt
from PIL import ImageOps
from typing_extensions import override

from ...checks import error_context, expect, find_repeated
from ...errors import InputError
from ...pictures import as_pil, open_image
from .base import FileData, Sample, digest, masked_sample, mosaic_sample, read_lines

TEMPLATE: Final = "a photo of a {}"
"""The template of data whose classes have names only."""
_CLASS_NAMES: Final = "classnames.txt"
_SYNSET: Final = re.compile(r"n\d{8}")
_SIDE: Final = 224  # of a mosaic's cell, in pixels


@final
class ClassFolder(FileData):
    """``FOLDER/CLASS/*.jpg``, at any depth under the class, as torchvision's ImageFolder has it.

    The text of a class is its folder's name as it stands, with spaces for underscores. Folders "a
    horse" need no template, folders "horse" take ``template="a photo of a {}"``. Several templates
    are the lines of ``FOLDER/templates.txt``; their mean embedding is the class's. Folders that are
    numbers of WordNet, as ImageNet's are, get ImageNet's names, and ``FOLDER/classnames.txt`` may
    name any (:func:`class_texts`). A limit takes so many images, of which all classes stay.

    Raises:
        InputError: there is no such folder, fewer than two classes with images in it, two classes
            with one text, an unreadable ``classnames.txt``, or a number out of range.
    """

    name = "classes"
    truth = ("classes",)
    options: ClassVar = {"template": None}

    @override
    def find(self) -> None:
        files, images = self.list_images(".")
        self.folders = sorted({stem.partition("/")[0] for stem in images})
        expected = f"images in folders of two or more classes, as {self.path}/CLASS/*.jpg"
        expect(len(self.folders) > 1, expected, self.folders)
        templates = templates_of(self.path, self.settings["template"], "{}")
        texts = [class_texts(self.folders, self.path, template=t) for t in ("{}", *templates)]
        self.classes = tuple(texts[len(templates) == 1].values())
        self.prompts = {
            text: [of_one[folder] for of_one in texts[1:]]
            for text, folder in zip(self.classes, self.folders, strict=True)
        }
        if repeated := find_repeated(self.classes):
            raise InputError(f"{self.path}: two classes have the same text, {repeated!r}.")
        sizes = {name: files[name] for name in images.values()}
        self.take(images, texts=self.prompts, files=digest(sizes))

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
    truth = ("captions", "cells")
    options: ClassVar = {"template": TEMPLATE}

    @override
    def find(self) -> None:
        images = ClassFolder(self.path, template=self.settings["template"])
        self.classes = images.classes
        self._words = [*class_texts(images.folders, self.path, template="{}").values()]
        expected = f"four classes or more for mosaics in {self.path}"
        expect(len(self._words) >= 4, expected, self._words)
        numbers = range(max(1, len(images) // 4))
        self.take([f"{number:05d}" for number in numbers], images=images.identity())
        listed = images.files.values()
        files = [[f for f in listed if f.startswith(f"{name}/")] for name in images.folders]
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
        raise InputError("expected four classes, none with a name that is part of another name.")
    pairs = ((files[label], label) for label in chosen[:4])
    return [(images[int(generator.integers(len(images)))], label) for images, label in pairs]


def _generator(number: int, use: int) -> np.random.Generator:
    # A stream for each use: one more draw of images leaves the captions as they were.
    return np.random.default_rng(np.random.SeedSequence(number, spawn_key=(use,)))


def templates_of(folder: Path, template: str | None, usual: str) -> list[str]:
    """The template that is given, else the lines of ``templates.txt`` in the folder, else one."""
    path = folder / "templates.txt"
    if template is None and path.exists():
        lines = read_lines(path) or [""]
        with error_context(str(path)):
            return [_template(line) for line in lines]
    return [usual if template is None else template]


def _template(text: str) -> str:
    expect(text.count("{}") == 1, 'a template with one "{}" for the name', text)
    return text


def class_texts(names: Sequence[str], folder: Path, *, template: str) -> dict[str, str]:
    """A text for each class.

    The name of a class comes from ``classnames.txt`` in the folder, if it is there (per line a
    class and its name, with a tab between them). Otherwise a number of WordNet such as "n02084071"
    gets ImageNet's name, and any other class is its own name, with spaces for underscores.
    ImageNet's names are those that OpenAI chose for CLIP for the thousand classes of ILSVRC 2012,
    and for others the first of WordNet's.

    Raises:
        InputError: a template without "{}", a file that cannot be read, an unknown number.
    """
    _template(template)
    path = folder / _CLASS_NAMES
    lines = read_lines(path) if path.exists() else []
    rows = [[field.strip() for field in line.split("\t")] for line in lines]
    for row in rows:
        expected = f"a class and its name per line of {path}, with a tab between them"
        expect(len(row) == 2 and all(row), expected, " ".join(row))
    named = dict(rows)
    return {name: template.replace("{}", named.get(name) or _name(name)) for name in names}


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


class MaskedFolder(FileData):
    """``images/STEM.jpg`` with ``masks/STEM/a horse.png``, one mask per text.

    The mask's name is the text, as it stands but with spaces for underscores; every pixel of it
    that is not 0 is inside. An image without masks is a sample that cannot be read.

    Raises:
        InputError: there is no such folder, no image or no mask in it, or a number out of range.
    """

    name = "masks"
    truth: Collection[str] = ("masks", "objects")

    @override
    def find(self) -> None:
        files, images = self.list_images("images")
        masks: dict[str, list[str]] = defaultdict(list)
        for path in map(PurePosixPath, files):
            if path.parts[0] == "masks" and path.suffix.lower() == ".png" and len(path.parts) > 2:
                masks[str(path.parent.relative_to("masks"))].append(str(path))
        example = f"masks in masks/, such as masks/{next(iter(images))}/a horse.png"
        self.check_belonging((stem in masks for stem in images), example)
        self.take(images, files=digest(files, ("images", "masks")))
        self.classes = tuple(sorted({mask_text(name) for name in chain(*masks.values())}))
        self._masks = {stem: tuple(masks[stem]) for stem in self.names if stem in masks}

    @override
    def read(self, index: int) -> Sample:
        stem = self.names[index]
        files = self._masks.get(stem, ())
        masks = [(mask_text(name), partial(_read_mask, self.path / name)) for name in files]
        return masked_sample(stem, self.read_image(stem), masks)


def mask_text(mask: str) -> str:
    """What a mask is of, by the name of its file."""
    return PurePosixPath(mask).stem.replace("_", " ").strip()


def _read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """A mask (H, W): every pixel that is not 0.

    Palette images count by their indices, others by their colors; what is transparent is outside.
    """
    with open_image(path) as image:
        if image.mode in ("1", "L", "P", "F") or image.mode.startswith("I"):
            mask: npt.NDArray[np.bool_] = np.asarray(image) != 0
        else:
            filled = np.asarray(image.convert("RGBA")) != 0
            mask = filled[..., :3].any(-1) & filled[..., 3]
        return mask
