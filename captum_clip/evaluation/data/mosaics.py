"""Mosaics of 2 x 2 pictures of different classes, of which captions name one to four."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from PIL import Image, ImageOps
from typing_extensions import Unpack, override

from ...checks import error_context
from ...errors import InputError
from .base import Region, Sample
from .class_folder import ClassFolder
from .class_names import TEMPLATE, class_texts
from .files import Drawn, FileData, read_picture

_SIDE: Final = 224  # of a cell, in pixels


@final
class ClassMosaics(FileData):
    """Mosaics of the pictures of a class folder (:class:`.ClassFolder`), each of another class.

    Each picture is cropped to the square in its middle. A mosaic is drawn from its own number, as
    many as there are pictures for. Captions are the names of the classes side by side, as in
    FIxLIP's pointing game; the template makes the texts of the classes, which GridPG explains.

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
        self, folder: str | Path, *, template: str = TEMPLATE, **drawn: Unpack[Drawn]
    ) -> None:
        super().__init__(folder, **drawn)
        pictures = ClassFolder(folder, template=template)
        self.classes = pictures.classes
        bare = class_texts(pictures.folders, self._path, template="{}")
        self._words = tuple(bare.values())
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
        cells = [ImageOps.fit(picture, (_SIDE, _SIDE)) for picture in pictures]
        return mosaic_sample(
            name,
            np.stack([np.asarray(cell) for cell in cells]),
            [self._words[label] for label in labels],
            labels,
            _generator(int(name), 1).permutation(4)[: 1 + int(name) % 4].tolist(),
            caption=" ".join,
        )


def mosaic_sample(
    name: str,
    cells: Any,
    words: Sequence[str],
    labels: Sequence[int],
    named: Sequence[int],
    *,
    caption: Callable[[list[str]], str],
) -> Sample:
    """Put four pictures (4, S, S, 3) of uint8 together row by row, the `named` ones as regions.

    Each shows a word and has a class, its label; the caption is made of the words that are named.
    """
    side = cells.shape[1]
    mosaic = cells.reshape(2, 2, side, side, 3).swapaxes(1, 2).reshape(2 * side, 2 * side, 3)
    places = np.arange(2 * side) // side
    owners = 2 * places[:, None] + places
    regions = [Region(words[cell], owners == cell, label=labels[cell]) for cell in named]
    text = caption([words[cell] for cell in named])
    return Sample(name, Image.fromarray(mosaic), tuple(regions), caption=text)


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
