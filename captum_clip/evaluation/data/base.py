"""Data sets of an evaluation: images with their truth, drawn or read from files."""

import csv
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, ClassVar
from unicodedata import normalize

import numpy as np
import numpy.typing as npt
from PIL import Image
from typing_extensions import override

from ...checks import check_integer, expand, expect
from ...demo.copies import draw_subsets
from ...errors import InputError, naming
from ...files import IMAGE_ENDINGS, draw_names, image_names
from ...pictures import as_pil, open_image
from ..storage import storage_of

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Region:
    """A part of an image that a text names.

    Attributes:
        text: names it, as "a horse"; in a sample with a caption a word of that caption.
        mask: (H, W) bool at the image's size, neither empty nor full.
        reference: another image of what the text names, for maps of an image against an image.
        label: number of its class among the data set's classes; None where it has none.
    """

    text: str
    mask: Mask
    reference: Image.Image | None = None
    label: int | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with its truth; what a data set does not know stays empty.

    Attributes:
        name: of the image, unique in its data set: the stem of its file.
        image: RGB, before any preprocessing, H x W.
        regions: parts that a text names.
        label: number of its class among the data set's classes.
        caption: a text that names the regions word by word; None where regions have own texts.
        subsets: the scene with every subset of its regions, 2^n images of one size; region i is
            there where bit i of the index is set; None where there is no such image.
        void: (H, W) bool, pixels of which no truth is known and which count for nothing.
        labels: (H, W) number of each pixel's class among the data set's classes, as many as there
            are where it is background, -1 where it counts for nothing.
        dropped: why parts of the sample cannot be used, such as a region whose mask is empty.
    """

    name: str
    image: Image.Image
    regions: tuple[Region, ...] = ()
    label: int | None = None
    caption: str | None = None
    subsets: tuple[Image.Image | None, ...] = ()
    void: Mask | None = None
    labels: npt.NDArray[np.int64] | None = None
    dropped: tuple[str, ...] = ()


class DataSet(ABC):
    """Images with their truth, read one by one; it can be sent to another process or machine.

    Attributes:
        name: how results call it, as "demo" or "voc".
        names: of all samples, unique, in order.
        classes: texts of the classes that labels count, for zero-shot classification; may be empty.
        prompts: class -> the texts whose mean embedding stands for it, where that is not its own.
        background: whether label images have a further class, where no text supports a pixel.
        truth: what is known of its samples; a task fits if it takes any of it. "masks" of what
            texts name, of several "objects" in an image, "scenes" redrawn with every subset of
            them. "classes" of images, or "counts" of objects with the class of the first.
            "captions" of mosaics, "cells" with a class each. "label images". "points" as masks.
            "phrases" of a caption. "retrieval" of captions, which are the classes. "thirds" or
            "identical", three copies of one thing, redrawn with every subset.
        groups: of its samples by name, for figures of each group; may be empty.
        left_out: what belongs to no sample, such as a line of a file, and why.
        place: what follows its name and a colon where it is read, "FOLDER" or "FILE".
        usual: number of samples that an evaluation takes where none is given.
        options: its own options of :func:`captum_clip.evaluation.open_data`, with their defaults.
    """

    name: str
    names: Sequence[str]
    classes: Sequence[str]
    truth: Collection[str]
    prompts: Mapping[str, Sequence[str]] = MappingProxyType({})
    groups: Mapping[str, str] = MappingProxyType({})
    left_out: Mapping[str, str] = MappingProxyType({})
    background: bool = False
    place: str = ""
    usual: ClassVar[int] = 100
    options: ClassVar[Mapping[str, str | None]] = {}

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def check_options(cls, options: Mapping[str, str | None]) -> dict[str, str]:
        """The options that are given; InputError for one that the data set does not have."""
        chosen = {option: value for option, value in options.items() if value is not None}
        for option in chosen.keys() - cls.options:
            raise InputError(f"the data set {cls.name} takes no {option}.")
        return chosen

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            InputError: why it cannot be used; the evaluation counts it as skipped.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return all that decides its samples, as JSON, the same wherever they lie."""


class FileData(DataSet):
    """A data set that is read from files, or a sample of it.

    Args:
        path: of the folder, or of the file; :attr:`path` has its ``~`` expanded.
        limit: take a sample of this many; None is all.
        seed: of the sample.
        **options: of the data set's own; :attr:`settings` has them with their defaults.

    Raises:
        InputError: a limit below 1, a seed below 0, a path that no file can have, an option that
            the data set does not have, or what :meth:`find` refuses.
    """

    place = "FOLDER"

    def __init__(
        self, path: str | Path, *, limit: int | None = None, seed: int = 0, **options: str | None
    ) -> None:
        with naming(type(self).__name__):
            check_integer("seed", seed, least=0)
            check_integer("limit", 1 if limit is None else limit)
        self.path = expand(path)
        self.limit, self.seed = limit, seed
        self.settings: dict[str, Any] = {**self.options, **self.check_options(options)}
        self.left_out: dict[str, str] = {}
        self.find()

    @abstractmethod
    def find(self) -> None:
        """Find all samples: set `classes`, and :meth:`take` the names."""

    def take(self, images: Iterable[str] | Mapping[str, str], /, **decided_by: object) -> None:
        """Set `names`, all or a sample of :func:`captum_clip.files.draw_names`, and the identity.

        Images are files by the samples' names, or these names alone; the rest is what else decides
        the samples, as JSON.
        """
        self.names = tuple(draw_names(images, self.limit, self.seed))
        self.files = {name: images[name] for name in self.names if isinstance(images, Mapping)}
        seed = None if self.limit is None else self.seed  # which decides nothing
        decided_by |= {"groups": digest(self.groups)} if self.groups else {}
        self._identity = {"data": self.name, "limit": self.limit, "seed": seed, **decided_by}

    def read_image(self, name: str) -> Image.Image:
        """The image of a sample, RGB and the right way up."""
        return as_pil(self.path / self.files[name])[0]

    @override
    def identity(self) -> dict[str, Any]:
        return dict(self._identity)

    def check_belonging(self, belonging: Iterable[object], what: str) -> None:
        """Raise InputError unless something was found for one image at least."""
        if not any(belonging):
            raise InputError(f"{self.path}: expected {what}, found none that belongs to an image.")

    def list_images(self, under: str) -> tuple[dict[str, int], dict[str, str]]:
        """All files of the folder, with their sizes, and the images under a folder in it.

        Names are relative to the folder, and sorted; images by what is left of them below `under`
        without their ending, each once. "." is all folders in it. ``groups.csv``, with the columns
        image and group, has the `groups` of some of them.
        """
        files = dict(sorted(storage_of(self.path).files().items()))
        stems: dict[str, str] = {}
        for name in image_names(files):
            path = PurePosixPath(name)
            if len(path.parts) == 1 or under not in (".", path.parts[0]):
                continue
            stem = str(path.relative_to(under).with_suffix(""))
            if stem in stems:
                both = f"{stems[stem]} and {name}"
                raise InputError(f"{self.path}: {both} would be one sample; rename one of them.")
            stems[stem] = name
        place = "folders in it" if under == "." else f"its folder {under}/"
        if not stems:
            kinds = f"expected images ({', '.join(IMAGE_ENDINGS)})"
            raise InputError(f"{self.path}: {kinds} in {place}, found none.")
        if "groups.csv" in files:
            rows = read_table(self.path / "groups.csv", stems, self.left_out, "image", "group")
            self.groups = {stem: row["group"] for _, stem, row, _ in rows}
        return files, stems


def digest(entries: Mapping[str, object], under: Collection[str] | None = None) -> str:
    """SHA-256 over names with their entries, as sizes of files; of some folders, or of all."""
    sha = hashlib.sha256()
    for name in sorted(entries):
        if under is None or name.partition("/")[0] in under:
            sha.update(f"{name}\0{entries[name]}\n".encode("utf-8", "surrogateescape"))
    return sha.hexdigest()


def read_lines(path: Path, *, numbered: bool = False) -> list[str]:
    """The lines of a text, stripped: those that have something in them, or all up to the last."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    return [line.strip() for line in lines if numbered or line.strip()]


def read_table(
    path: Path,
    images: Collection[str],
    left_out: dict[str, str],
    *columns: str,
    numbers: Sequence[str] = (),
) -> Iterator[tuple[str, str, dict[str, str], tuple[float, ...]]]:
    """Rows of a CSV file in UTF-8: where each stands, its image, values by column, its numbers.

    The first of the columns that it needs names an image, with or without an ending or "images/"
    before it; rows of images that are not there go to `left_out`. A row has no numbers if any is
    missing or not finite.

    Raises:
        InputError: it cannot be read, a column is missing or doubled, or has no value in a row.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, strict=True, skipinitialspace=True)
            header = [*filter(None, table.fieldnames or ())]
            rows = [(f"{path}, line {table.line_num}", row) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV in UTF-8 ({error}).") from error
    wanted = f"the columns {', '.join(columns)}, each once, in {path}"
    expect(all(header.count(name) == 1 for name in (*columns, *header)), wanted, header)
    stems = {normalize("NFC", image): image for image in images}  # some disks write accents apart
    for where, row in rows:
        if None in row or not all((row.get(column) or "").strip() for column in columns):
            raise InputError(f"{where}: expected {', '.join(columns)}, got {row}.")
        row = {column: value and value.strip() for column, value in row.items()}
        name = normalize("NFC", row[columns[0]].removeprefix("images/"))
        image = PurePosixPath(name)  # "." and "/" have no name, nor ending
        stem = stems.get(name) or stems.get(str(image.with_suffix("") if image.name else image))
        try:
            values = tuple(float(row[column]) for column in numbers)
        except (KeyError, TypeError, ValueError):
            values = ()
        if stem is None:
            left_out[where] = f"there is no image {row[columns[0]]!r}"
        else:
            yield where, stem, row, values if np.isfinite(values).all() else ()


def read_numbers(path: Path) -> npt.NDArray[np.uint8]:
    """The numbers (H, W) of classes in a palette or gray image."""
    expected = f"{path} with numbers of classes in a palette or gray image of 8 bits"
    with open_image(path) as file:
        expect(file.mode in ("P", "L"), expected, file.mode)
        return np.asarray(file)


def check_size(what: object, shape: tuple[int, ...], image: Image.Image) -> None:
    """Raise InputError unless an array has the size of its image."""
    if shape != (image.height, image.width):
        pixels = " x ".join(map(str, shape))
        raise InputError(f"{what} has {pixels} pixels, its image {image.height} x {image.width}.")


def masked_sample(
    name: str, image: Image.Image, masks: Iterable[tuple[str, Callable[[], Mask]]], **truth: Any
) -> Sample:
    """A sample with the regions whose masks can be used, of texts with what reads their masks.

    `dropped` has why each of the others was left out: the mask cannot be read, has another size
    than its image, is empty or full, or its text was there already.

    Raises:
        InputError: no region is left.
    """
    regions: dict[str, Region] = {}
    dropped: list[str] = []
    for text, read in masks:
        try:
            mask = read()
            check_size("the mask", mask.shape, image)
            if not mask.any() or mask.all():
                raise InputError(f"the mask is {'full' if mask.any() else 'empty'}")
            if text in regions:
                raise InputError("the image has another region of the same text")
            regions[text] = Region(text, mask)
        except InputError as error:
            dropped.append(f"{name}, {text!r}: {error.reason.rstrip('.')}")
    if not regions:
        reason = "; ".join(dropped) or f"{name} has no mask"
        raise InputError(f"there is no region to compare a map with: {reason}.")
    return Sample(name, image, tuple(regions.values()), dropped=tuple(dropped), **truth)


def mosaic_sample(
    name: str,
    cells: Sequence[npt.NDArray[np.uint8]],
    words: Sequence[str],
    labels: Sequence[int],
    named: Sequence[int],
    *,
    caption: Callable[[list[str]], str],
) -> Sample:
    """Put four images (S, S, 3) together row by row, those that are `named` as regions.

    Each shows a word and has a class, its label; the caption is made of the words that are named.
    """
    mosaic = np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])])
    owners = np.kron([[0, 1], [2, 3]], np.ones(cells[0].shape[:2], dtype=int))
    regions = [Region(words[cell], owners == cell, label=labels[cell]) for cell in named]
    text = caption([words[cell] for cell in named])
    return Sample(name, Image.fromarray(mosaic), tuple(regions), caption=text)


def copies_sample(
    name: str,
    text: str,
    sprites: Sequence[npt.NDArray[np.uint8]],
    background: npt.NDArray[np.uint8],
    generator: np.random.Generator,
) -> Sample:
    """Copies of a thing, RGBA, on a circle on a square background: each a region of one text."""
    drawn, masks = draw_subsets(sprites, background, generator)
    subsets = tuple(map(Image.fromarray, drawn))
    return Sample(name, subsets[-1], tuple(Region(text, mask) for mask in masks), subsets=subsets)
