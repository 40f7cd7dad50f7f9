"""ImageNet-S: images of ImageNet with the exact mask of their object."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Final, final

import numpy as np
import numpy.typing as npt
from PIL import Image
from typing_extensions import override

from ...checks import expand
from ...errors import InputError
from .base import Sample
from .class_names import class_texts
from .files import (
    FileData,
    digest,
    image_stems,
    list_files,
    load_image,
    read_picture,
    usable_regions,
)

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
        self,
        folder: str | Path,
        *,
        limit: int | None = None,
        seed: int = 0,
        template: str = "a photo of a {}",
    ) -> None:
        self.folder = expand(folder)
        files = list_files(self.folder)
        images = image_stems(self.folder, files, under=IMAGES)
        masks = {name for name in files if name.startswith(f"{MASKS}/")}
        if not any(_mask_of(stem) in masks for stem in images):
            raise InputError(
                f"{self.folder}: expected masks such as {_mask_of(next(iter(images)))}, found none "
                "that belongs to an image."
            )
        places = (self.folder / MASKS, self.folder / IMAGES)
        names = sorted({p.name for place in places for p in place.iterdir() if p.is_dir()})
        self._numbers = {name: number for number, name in enumerate(names, start=1)}
        self._texts = class_texts(names, self.folder, template=template)
        self.classes = tuple(dict.fromkeys(self._texts.values()))
        used = digest(files, (IMAGES, MASKS))
        self._take(images, limit=limit, seed=seed, texts=list(self.classes), files=used)
        self._images = {stem: images[stem] for stem in self.names}

    @override
    def read(self, index: int) -> Sample:
        stem = self.names[index]
        own = PurePosixPath(stem).parts[0]
        image = read_picture(self.folder / self._images[stem])
        numbers = load_image(self.folder / _mask_of(stem), _numbers)
        highest = int(numbers[numbers != _IGNORED].max(initial=0))
        if highest > len(self._numbers):
            raise InputError(
                f"{_mask_of(stem)}: a pixel is of class {highest}, but there are folders of "
                f"{len(self._numbers)} classes only; all of the set are needed to number them."
            )
        text, mask = self._texts[own], numbers == self._numbers[own]
        regions, dropped = usable_regions(stem, image.size, [(text, lambda: mask)])
        void = numbers == _IGNORED
        label = self.classes.index(text)
        return Sample(stem, image, regions, label=label, void=void, dropped=dropped)


def _mask_of(stem: str) -> str:
    return f"{MASKS}/{stem}.png"


def _numbers(image: Image.Image) -> npt.NDArray[np.int64]:
    colours = np.asarray(image.convert("RGB"), dtype=np.int64)
    numbers: npt.NDArray[np.int64] = colours[..., 0] + 256 * colours[..., 1]
    return numbers
