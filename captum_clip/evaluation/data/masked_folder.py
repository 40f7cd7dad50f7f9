"""A folder of images with masks that are named by what they show."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, final

from typing_extensions import override

from ...checks import expand
from ...errors import InputError
from .base import Sample
from .files import (
    FileData,
    digest,
    image_stems,
    list_files,
    read_mask,
    read_picture,
    usable_regions,
)

IMAGES, MASKS, ENDING = "images", "masks", ".png"
_FOLDERS: Final = (IMAGES, MASKS)


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
        self.folder = expand(folder)
        files = list_files(self.folder)
        images = image_stems(self.folder, files, under=IMAGES)
        masks: dict[str, list[str]] = defaultdict(list)
        for path in map(PurePosixPath, files):
            if path.parts[0] == MASKS and path.suffix.lower() == ENDING and len(path.parts) > 2:
                masks[str(path.parent.relative_to(MASKS))].append(str(path))
        if not any(stem in masks for stem in images):
            raise InputError(
                f"{self.folder}: expected masks in {MASKS}/, such as "
                f"{MASKS}/{next(iter(images))}/a horse{ENDING}, found none that belongs to an "
                "image."
            )
        self._take(images, limit=limit, seed=seed, files=digest(files, _FOLDERS))
        self.classes = tuple(sorted({_text(mask) for of in masks.values() for mask in of}))
        self._images = {stem: images[stem] for stem in self.names}
        self._masks = {stem: tuple(masks[stem]) for stem in self.names if stem in masks}

    @override
    def read(self, index: int) -> Sample:
        stem = self.names[index]
        image = read_picture(self.folder / self._images[stem])
        masks = [
            (_text(name), partial(read_mask, self.folder / name))
            for name in self._masks.get(stem, ())
        ]
        regions, dropped = usable_regions(stem, image.size, masks)
        return Sample(stem, image, regions, dropped=dropped)


def _text(mask: str) -> str:
    return PurePosixPath(mask).stem.replace("_", " ").strip()
