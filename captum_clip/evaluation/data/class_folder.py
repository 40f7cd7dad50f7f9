"""A folder of images in folders that name their class."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Final, final

from typing_extensions import Unpack, override

from ...checks import find_repeated
from ...errors import InputError
from .base import Sample
from .class_names import class_texts
from .files import Drawn, FileData, digest


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

    def __init__(self, folder: str | Path, *, template: str = "{}", **drawn: Unpack[Drawn]) -> None:
        super().__init__(folder, **drawn)
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
