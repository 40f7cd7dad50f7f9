"""What a data set of an evaluation is: images with their truth, regions, classes, fixations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Region:
    """A part of an image that a text names.

    Attributes:
        text: names it, as "a horse"; in a sample with a caption a word of that caption.
        mask: (H, W) bool at the image's size, neither empty nor full.
        reference: another picture of what the text names, for maps of an image against an image.
        label: number of its class among the data set's classes; None where it has none.
    """

    text: str
    mask: Mask
    reference: Image.Image | None = None
    label: int | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with its truth; what a data set does not tell stays empty.

    Attributes:
        name: of the image, unique in its data set: the stem of its file.
        image: RGB, before any preprocessing, H x W.
        regions: parts that a text names.
        label: number of its class among the data set's classes.
        caption: a text that names the regions word by word; None where regions have own texts.
        subsets: the scene with every subset of its regions, 2^n images of one size; region i is
            there where bit i of the index is set.
        fixations: (H, W) bool, the pixels that somebody looked at, neither none nor all.
        density: (H, W) of fixations, finite and from 0 on, with some mass.
        fixated: the text that fixations and density are compared with.
        void: (H, W) bool, pixels of which no truth is known and which count for nothing.
        dropped: why parts of the sample cannot be used, such as a region whose mask is empty.
    """

    name: str
    image: Image.Image
    regions: tuple[Region, ...] = ()
    label: int | None = None
    caption: str | None = None
    subsets: tuple[Image.Image, ...] = ()
    fixations: Mask | None = None
    density: npt.NDArray[np.float64] | None = None
    fixated: str | None = None
    void: Mask | None = None
    dropped: tuple[str, ...] = ()


def mosaic_sample(
    name: str,
    cells: Sequence[npt.NDArray[np.uint8]],
    words: Sequence[str],
    labels: Sequence[int],
    named: Sequence[int],
    *,
    caption: Callable[[list[str]], str],
) -> Sample:
    """Put four pictures (S, S, 3) together row by row, those that are `named` as regions.

    Each shows a word and has a class, its label; the caption is made of the words that are named.
    """
    mosaic = np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])])
    places = np.arange(len(mosaic)) // len(cells[0])
    owners = 2 * places[:, None] + places
    regions = [Region(words[cell], owners == cell, label=labels[cell]) for cell in named]
    text = caption([words[cell] for cell in named])
    return Sample(name, Image.fromarray(mosaic), tuple(regions), caption=text)


class DataSet(ABC):
    """Images with their truth, read one by one; it can be sent to another process or machine.

    Attributes:
        name: how results call it, as "demo" or "voc".
        names: of all samples, unique, in order.
        classes: texts of the classes that labels count, for zero-shot classification; may be empty.
        tasks: what its truth serves, names of :data:`captum_clip.evaluation.tasks.TASKS`.
        place: what follows its name and a colon where it is read, "FOLDER" or "FILE".
        options: its own among those of :func:`captum_clip.evaluation.open_data`.
    """

    name: str
    names: Sequence[str]
    classes: Sequence[str]
    tasks: Sequence[str]
    place: str = ""
    options: Sequence[str] = ()

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
        """All that decides its samples, as JSON: the same data give the same, wherever they lie."""
