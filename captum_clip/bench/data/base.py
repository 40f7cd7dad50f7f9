"""What a data set of an evaluation is: samples, each an image with its truth."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class NamedRegion:
    """A part of an image that a text names.

    Attributes:
        text: names it, as "a horse"; in a sample with a caption a word of that caption.
        mask: (H, W) bool at the image's size, neither empty nor full.
        reference: another image of what the text names, for maps of an image against an image.
        label: number of its class among the data set's classes; None where it has none.
        void: (H, W) bool, pixels that count for nothing where this region is asked for, such as a
            crowd of what it names; None where all count.
    """

    text: str
    mask: Mask
    reference: Image.Image | None = None
    label: int | None = None
    void: Mask | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with its truth; what a data set does not know stays empty.

    Attributes:
        name: of the image, unique in its data set, such as the stem of its file.
        image: before any preprocessing, H x W, in any mode of eight bits.
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
    regions: tuple[NamedRegion, ...] = ()
    label: int | None = None
    caption: str | None = None
    subsets: tuple[Image.Image | None, ...] = ()
    void: Mask | None = None
    labels: npt.NDArray[np.int64] | None = None
    dropped: tuple[str, ...] = ()


class DataSet(ABC):
    """Images with their truth, read one by one; it can be sent to another process or machine.

    Attributes:
        name: how results call it, as "demo" or "coco".
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
        left_out: what belongs to no sample, such as an image without a mask, and why.
        place: what follows its name and a colon where it is read, "FOLDER" or "FILE".
        usual: number of samples that an evaluation takes where none is given.
        takes_template: whether texts of classes can be made by a template.
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
    takes_template: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            InputError: why it cannot be used; the evaluation counts it as skipped.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return all that decides its samples, as JSON, the same wherever they lie."""


def entries_digest(entries: Mapping[str, object]) -> str:
    """SHA-256 over names with their entries, such as sizes of files."""
    sha = hashlib.sha256()
    for name in sorted(entries):
        sha.update(f"{name}\0{entries[name]}\n".encode("utf-8", "surrogateescape"))
    return sha.hexdigest()
