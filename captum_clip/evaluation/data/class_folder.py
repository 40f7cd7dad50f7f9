"""Images in folders that name their class, one by one and as mosaics; what classes are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, final

import numpy as np
from PIL import ImageOps
from typing_extensions import override

from ...checks import error_context, find_repeated
from ...errors import InputError
from .base import Sample, mosaic_sample
from .files import FileData, digest, read_lines, read_picture

FILE: Final = "classnames.txt"
TEMPLATE: Final = "a photo of a {}"
"""The template of data whose classes have names only."""
_SYNSET: Final = re.compile(r"n\d{8}")
_SIDE: Final = 224  # of a mosaic's cell, in pixels


@final
class ClassFolder(FileData):
    """``FOLDER/CLASS/*.jpg``, at any depth under the class, as torchvision's ImageFolder has it.

    The text of a class is its folder's name as it stands, with spaces for underscores: folders "a
    horse" need no template, folders "horse" take ``template="a photo of a {}"``. Folders that are
    numbers of WordNet, as ImageNet's are, get ImageNet's names, and ``FOLDER/classnames.txt`` may
    name any (:func:`class_texts`).

    Args:
        folder: that holds the folders of the classes.
        limit: take a sample of this many images; None is all. All classes stay.

    Raises:
        InputError: there is no such folder, fewer than two classes with images in it, two classes
            with one text, an unreadable ``classnames.txt``, or a number out of range.
    """

    name = "classes"
    tasks = ("perturbation", "faithfulness", "fixlip", "sanity")
    options = ("template",)

    def __init__(
        self,
        folder: str | Path,
        *,
        limit: int | None = None,
        seed: int = 0,
        template: str = "{}",
    ) -> None:
        super().__init__(folder, limit=limit, seed=seed)
        files, images = self._list(under=".")
        names = sorted({stem.partition("/")[0] for stem in images})
        if len(names) < 2:
            raise InputError(
                f"{self._path}: expected images in folders of two or more classes, as CLASS/*.jpg,"
                f" found {len(names)}."
            )
        self.classes = tuple(class_texts(names, self._path, template=template).values())
        repeated = find_repeated(self.classes)
        if repeated:
            raise InputError(f"{self._path}: two classes have the same text, {repeated!r}.")
        sizes = {name: files[name] for name in images.values()}
        self.folders: Final = tuple(names)
        self._take(images, texts=list(self.classes), files=digest(sizes))
        self._labels = {stem: names.index(stem.partition("/")[0]) for stem in self.names}

    @override
    def read(self, index: int) -> Sample:
        stem = self.names[index]
        return Sample(stem, self._read_image(stem), label=self._labels[stem])

    def files_by_class(self) -> list[list[str]]:
        """The files of each class, relative to the folder, in order."""
        files: list[list[str]] = [[] for _ in self.classes]
        for stem, label in self._labels.items():
            files[label].append(self._images[stem])
        return files


@final
class ClassMosaics(FileData):
    """Mosaics of 2 x 2 pictures of a class folder (:class:`ClassFolder`), each of another class.

    Each picture is cropped to the square in its middle. A mosaic is drawn from its own number, as
    many as there are pictures for. Captions name one to four cells, and are the names of the
    classes side by side, as in FIxLIP's pointing game; the template makes the texts of the classes,
    which GridPG explains.

    Args:
        folder: that holds the folders of the classes.
        limit: take so many mosaics; None is all.

    Raises:
        InputError: what a class folder cannot be made of, or fewer than four classes.
    """

    name = "mosaics"
    tasks = ("words", "grid")
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
        pictures = ClassFolder(folder, template=template)
        self.classes = pictures.classes
        self._words = tuple(class_texts(pictures.folders, self._path, template="{}").values())
        if len(self._words) < 4:
            raise InputError(
                f"{self._path}: a mosaic needs four classes, there are {len(self._words)}."
            )
        numbers = range(max(1, len(pictures) // 4))
        self._take([f"{number:05d}" for number in numbers], pictures=pictures.identity())
        files = pictures.files_by_class()
        with error_context(str(self._path)):
            self._cells = {name: _draw(files, self._words, int(name)) for name in self.names}

    @override
    def read(self, index: int) -> Sample:
        name = self.names[index]
        files, labels = zip(*self._cells[name], strict=True)
        pictures = [read_picture(self._path / file) for file in files]
        return mosaic_sample(
            name,
            [np.asarray(ImageOps.fit(picture, (_SIDE, _SIDE))) for picture in pictures],
            [self._words[label] for label in labels],
            labels,
            _generator(int(name), 1).permutation(4)[: 1 + int(name) % 4].tolist(),
            caption=" ".join,
        )


def _draw(
    files: Sequence[Sequence[str]], words: Sequence[str], number: int
) -> list[tuple[str, int]]:
    """File and class of four pictures, of classes of which no name is part of another."""
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
    check_template(template)
    path = folder / FILE
    lines = read_lines(path) if path.exists() else []
    rows = [[part.strip() for part in line.split("\t")] for line in lines]
    wrong = [row for row in rows if len(row) != 2 or not all(row)]
    if wrong:
        raise InputError(
            f"{path}: expected a class and its name per line, with a tab between them, got "
            f"{' '.join(wrong[0])!r}."
        )
    known = dict(rows)
    return {name: template.replace("{}", known.get(name) or _name(name)) for name in names}


def check_template(template: object) -> None:
    """A text with one "{}" for the name of a class."""
    if not isinstance(template, str) or template.count("{}") != 1:
        raise InputError(f'expected a template with one "{{}}" for the name, got {template!r}.')


def _name(name: str) -> str:
    if not _SYNSET.fullmatch(name):
        return name.replace("_", " ").strip()
    known = _imagenet().get(name) or _wordnet().get(name)
    if known is None:
        raise InputError(
            f"the class {name} is not one of ImageNet's; give its name in a file {FILE}: {name}, a "
            "tab, the name."
        )
    return known


@lru_cache(maxsize=1)
def _imagenet() -> dict[str, str]:
    """Number -> name of the thousand classes."""
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    return dict(zip(ImageNetInfo("imagenet-1k").label_names(), IMAGENET_CLASSNAMES, strict=True))


@lru_cache(maxsize=1)
def _wordnet() -> dict[str, str]:
    """Number -> first name of the 21 thousand classes of the whole ImageNet."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-22k")
    named = zip(info.label_names(), info.label_descriptions(), strict=True)
    return {number: description.partition(",")[0].strip() for number, description in named}
