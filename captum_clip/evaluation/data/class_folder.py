"""A folder of images in folders that name their class, one by one and as mosaics of four."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final, final

import numpy as np
from PIL import ImageOps
from typing_extensions import Unpack, override

from ...checks import error_context, find_repeated
from ...errors import InputError
from .base import Sample, mosaic_sample
from .class_names import TEMPLATE, class_texts
from .files import FileData, Sampling, digest, read_picture

_SIDE: Final = 224  # of a mosaic's cell, in pixels


@final
class ClassFolder(FileData):
    """``FOLDER/CLASS/*.jpg``, at any depth under the class, as torchvision's ImageFolder has it.

    The text of a class is its folder's name as it stands, with spaces for underscores: folders "a
    horse" need no template, folders "horse" take ``template="a photo of a {}"``. Folders that are
    numbers of WordNet, as ImageNet's are, get ImageNet's names, and ``FOLDER/classnames.txt`` may
    name any (:func:`.class_names.class_texts`).

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
        self, folder: str | Path, *, template: str = "{}", **sampling: Unpack[Sampling]
    ) -> None:
        super().__init__(folder, **sampling)
        files, images = self._list(under=".")
        names = sorted({_class(stem) for stem in images})
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
        self._labels = {stem: names.index(_class(stem)) for stem in self.names}

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


def _class(stem: str) -> str:
    return PurePosixPath(stem).parts[0]


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
        self, folder: str | Path, *, template: str = TEMPLATE, **sampling: Unpack[Sampling]
    ) -> None:
        super().__init__(folder, **sampling)
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
