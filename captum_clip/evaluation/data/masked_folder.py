"""A folder of images with masks that are named by what they show."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, final

from typing_extensions import Unpack, override

from ...errors import InputError
from .base import Sample
from .files import Drawn, FileData, digest, masked_sample, read_mask

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

    def __init__(self, folder: str | Path, **drawn: Unpack[Drawn]) -> None:
        super().__init__(folder, **drawn)
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
        self._take(images, files=digest(files, _FOLDERS))
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
