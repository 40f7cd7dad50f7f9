"""Images with masks of what is in them: a folder of one's own, and Pascal VOC 2012."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, final

import numpy as np
from typing_extensions import override

from ...checks import check_choice, find_file
from ...errors import InputError
from ..storage import storage_of
from .base import Sample
from .files import FileData, digest, masked_sample, read_indices, read_lines, read_mask

IMAGES, MASKS, ENDING = "images", "masks", ".png"
CLASSES: Final = (
    "an aeroplane", "a bicycle", "a bird", "a boat", "a bottle", "a bus", "a car", "a cat",
    "a chair", "a cow", "a dining table", "a dog", "a horse", "a motorbike", "a person",
    "a potted plant", "a sheep", "a sofa", "a train", "a tv monitor",
)  # fmt: skip
"""Texts of the classes 1 to 20 of the masks."""

_VOID: Final = 255
_NEEDED: Final = ("JPEGImages", "SegmentationClass", "ImageSets")
_INSIDE: Final = (".", "VOC2012", "VOCdevkit/VOC2012")


@final
class MaskedFolder(FileData):
    """``images/STEM.jpg`` with ``masks/STEM/a horse.png``, one mask per text.

    The mask's name is the text, as it stands but with spaces for underscores; every pixel of it
    that is not 0 is inside. An image without masks is a sample that cannot be read.

    Args:
        folder: that has both.

    Raises:
        InputError: there is no such folder, no image or no mask in it, or a number out of range.
    """

    name = "masks"
    tasks = ("localization", "signs", "faithfulness", "fixlip", "sanity")

    def __init__(self, folder: str | Path, *, limit: int | None = None, seed: int = 0) -> None:
        super().__init__(folder, limit=limit, seed=seed)
        files, images = self._list(under=IMAGES)
        masks: dict[str, list[str]] = defaultdict(list)
        for path in map(PurePosixPath, files):
            if path.parts[0] == MASKS and path.suffix.lower() == ENDING and len(path.parts) > 2:
                masks[str(path.parent.relative_to(MASKS))].append(str(path))
        if not any(stem in masks for stem in images):
            raise InputError(
                f"{self._path}: expected masks in {MASKS}/, such as "
                f"{MASKS}/{next(iter(images))}/a horse{ENDING}, found none that belongs to an "
                "image."
            )
        self._take(images, files=digest(files, (IMAGES, MASKS)))
        self.classes = tuple(sorted({_text(mask) for of in masks.values() for mask in of}))
        self._masks = {stem: tuple(masks[stem]) for stem in self.names if stem in masks}

    @override
    def read(self, index: int) -> Sample:
        stem = self.names[index]
        own = self._masks.get(stem, ())
        masks = [(_text(name), partial(read_mask, self._path / name)) for name in own]
        return masked_sample(stem, self._read_image(stem), masks)


def _text(mask: str) -> str:
    return PurePosixPath(mask).stem.replace("_", " ").strip()


@final
class PascalVoc(FileData):
    """The folder ``VOCdevkit/VOC2012``, its images of ``ImageSets/Segmentation/val.txt``.

    A region is all of a class in the image, however many objects that is. The outlines of objects
    and what is too difficult, which the masks number 255, are void: metrics leave these pixels out,
    as the benchmark's own segmentation accuracy does, unless they are to be background.

    Args:
        folder: ``VOC2012`` itself or a folder above it, such as ``VOCdevkit``.
        split: "val", "train" or "trainval".
        void: "out", or "background" to count these pixels as beside every region.

    Raises:
        InputError: there is no such folder, no list of the split in it, nothing in the list, or a
            number out of range.

    Source: Everingham et al. 2010; http://host.robots.ox.ac.uk/pascal/VOC/voc2012.
    """

    name = "voc"
    tasks = ("localization", "signs", "faithfulness", "fixlip", "sanity")
    options = ("void",)

    def __init__(
        self,
        folder: str | Path,
        *,
        split: str = "val",
        limit: int | None = None,
        seed: int = 0,
        void: str = "out",
    ) -> None:
        super().__init__(folder, limit=limit, seed=seed)
        check_choice("PascalVoc", void, ("out", "background"), name="void")
        self._void = void
        self._path = _find(self._path)
        path = self._path / "ImageSets" / "Segmentation" / f"{split}.txt"
        listed = sorted({*read_lines(find_file(path, what="list of images"))})
        if not listed:
            raise InputError(f"{path} lists no image.")
        self._take({name: f"JPEGImages/{name}.jpg" for name in listed}, split=split, void=void)
        self.classes = CLASSES
        files = dict(storage_of(self._path).files())
        needed = [*self._images.values(), *map(_mask_of, self.names)]
        own = {place: files.get(place, -1) for place in needed}
        if not any(size >= 0 for size in own.values()):
            raise InputError(
                f"{self._path}: none of the {len(self.names)} images of {split}.txt is there."
            )
        self._identity["files"] = digest(own)

    @override
    def read(self, index: int) -> Sample:
        name = self.names[index]
        image, path = self._read_image(name), self._path / _mask_of(name)
        numbers = read_indices(path)
        present = [int(number) for number in np.unique(numbers) if number not in (0, _VOID)]
        if any(number > len(CLASSES) for number in present):
            raise InputError(
                f"{path}: expected numbers of classes from 0 to {len(CLASSES)} and {_VOID}, "
                f"got {max(present)}."
            )
        masks = [(CLASSES[number - 1], partial(np.equal, numbers, number)) for number in present]
        void = numbers == _VOID if self._void == "out" else None
        return masked_sample(name, image, masks, void=void)


def _mask_of(name: str) -> str:
    return f"SegmentationClass/{name}.png"


def _find(folder: Path) -> Path:
    for path in (folder / inside for inside in _INSIDE):
        if all((path / needed).is_dir() for needed in _NEEDED):
            return path
    raise InputError(
        f"{folder} is not Pascal VOC 2012: expected folders {', '.join(_NEEDED)} in it, in its "
        "VOC2012 or its VOCdevkit/VOC2012."
    )
