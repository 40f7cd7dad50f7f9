"""ImageNet-S: images of ImageNet with the exact mask of their object."""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, final

import numpy as np
from typing_extensions import Unpack, override

from ...errors import InputError
from .base import Sample
from .class_names import TEMPLATE, class_texts
from .files import Drawn, FileData, digest, masked_sample, open_image

IMAGES, MASKS = "validation", "validation-segmentation"
_IGNORED: Final = 1000


@final
class ImageNetS(FileData):
    """``validation/n01440764/NAME.JPEG`` with ``validation-segmentation/n01440764/NAME.png``.

    A mask numbers the classes of its pixels, red + 256 green, in the order of the folders' names
    from 1 on; 0 is anything else, and 1000 is left out. The region is the class of the image's own
    folder, so all folders of the set must be there, be there images in them or not.

    Args:
        folder: ``ImageNetS919``, ``ImageNetS300`` or ``ImageNetS50``.

    Raises:
        InputError: there is no such folder, no image or no mask in it, or an unknown class.

    Source: Gao et al. 2022, *Large-scale Unsupervised Semantic Segmentation* (arXiv:2106.03149).
    """

    name = "imagenet-s"
    tasks = ("localization", "faithfulness", "fixlip", "sanity")
    options = ("template",)

    def __init__(
        self, folder: str | Path, *, template: str = TEMPLATE, **drawn: Unpack[Drawn]
    ) -> None:
        super().__init__(folder, **drawn)
        files, images = self._list(under=IMAGES)
        masks = {name for name in files if name.startswith(f"{MASKS}/")}
        if not any(_mask_of(stem) in masks for stem in images):
            raise InputError(
                f"{self._path}: expected masks such as {_mask_of(next(iter(images)))}, found none "
                "that belongs to an image."
            )
        places = (self._path / MASKS, self._path / IMAGES)
        names = sorted({p.name for place in places for p in place.iterdir() if p.is_dir()})
        self._numbers = {name: number for number, name in enumerate(names, start=1)}
        self._texts = class_texts(names, self._path, template=template)
        self.classes = tuple(dict.fromkeys(self._texts.values()))
        used = digest(files, (IMAGES, MASKS))
        self._take(images, texts=list(self.classes), files=used)

    @override
    def read(self, index: int) -> Sample:
        stem = self.names[index]
        own = PurePosixPath(stem).parts[0]
        image = self._read_image(stem)
        with open_image(self._path / _mask_of(stem)) as mask:
            red, green, _ = np.moveaxis(np.asarray(mask.convert("RGB"), dtype=np.int64), -1, 0)
        numbers = red + 256 * green
        highest = int(numbers[numbers != _IGNORED].max(initial=0))
        if highest > len(self._numbers):
            raise InputError(
                f"{_mask_of(stem)}: a pixel is of class {highest}, but there are folders of "
                f"{len(self._numbers)} classes only; all of the set are needed to number them."
            )
        text = self._texts[own]
        masks = [(text, partial(np.equal, numbers, self._numbers[own]))]
        label = self.classes.index(text)
        return masked_sample(stem, image, masks, label=label, void=numbers == _IGNORED)


def _mask_of(stem: str) -> str:
    return f"{MASKS}/{stem}.png"
