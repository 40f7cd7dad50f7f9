"""What an evaluation knows of one image: its regions, its class, where people looked."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    text: str
    mask: Mask
    reference: Image.Image | None = None


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
    dropped: tuple[str, ...] = ()
