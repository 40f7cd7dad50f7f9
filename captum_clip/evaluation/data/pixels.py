"""Images with the pixels that people looked at."""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from ...errors import InputError
from ...files import DAMAGED
from .base import Sample
from .files import FileData, digest, read_grey

IMAGES, FIXATIONS, TEXTS = "images", "fixations", "texts.csv"
_ENDINGS: Final = (".png", ".npy")
_TEXT_COLUMNS: Final = ("file", "text")


@final
class FixationFolder(FileData):
    """``images/STEM.jpg`` with ``fixations/STEM.png``, ``fixations/STEM.npy`` or both.

    A PNG file is a density, its grey values. An NPY file (H, W) holds points if it is bool or has
    no other values than 0 and 1, and is a density otherwise. The metrics NSS and AUC-Judd need
    points, CC and SIM a density; with one of them only the two that need the other cannot be
    measured: to blur points takes a width that no file tells, and a density no longer knows its
    points.

    Args:
        folder: that has both, and texts.csv with the columns file (with or without its ending) and
            text, where not all images have the same text.
        text: that the fixations on all images are compared with which texts.csv does not name.

    Raises:
        InputError: there is no such folder, no image or no fixations in it, no text, an unreadable
            texts.csv, or a number out of range.
    """

    name = "fixations"
    classes = ()
    tasks = ("fixation",)
    options = ("text",)

    def __init__(
        self,
        folder: str | Path,
        *,
        limit: int | None = None,
        seed: int = 0,
        text: str | None = None,
    ) -> None:
        super().__init__(folder, limit=limit, seed=seed)
        files, images = self._list(under=IMAGES)
        places = {stem: [f"{FIXATIONS}/{stem}{end}" for end in _ENDINGS] for stem in images}
        maps = {stem: [place for place in own if place in files] for stem, own in places.items()}
        if not any(maps.values()):
            raise InputError(
                f"{self._path}: expected {FIXATIONS}/{next(iter(images))}.png or .npy and so on, "
                "found no fixations that belong to an image."
            )
        if text is not None and not text.strip():
            raise InputError(f"FixationFolder: expected a text with something in it, got {text!r}.")
        texts = _texts(self._path / TEXTS) if TEXTS in files else {}
        if not texts and text is None:
            raise InputError(
                f"{self._path}: there is no text to compare fixations with; give one for all "
                f"images, or {TEXTS} with the columns {' and '.join(_TEXT_COLUMNS)}."
            )
        self._take(images)
        self._maps = {stem: maps[stem] for stem in self.names}
        self._texts = {stem: texts.get(stem, text) for stem in self.names}
        self._identity |= {
            "texts": digest(self._texts),
            "files": digest(files, (IMAGES, FIXATIONS)),
        }

    @override
    def read(self, index: int) -> Sample:
        stem = self.names[index]
        text = self._texts[stem]
        if text is None:
            raise InputError(f"{stem}: {TEXTS} has no text for it.")
        image = self._read_image(stem)
        truth: dict[str, Any] = {}
        dropped: list[str] = []
        for place in self._maps[stem]:
            try:
                kind, values = _read_fixations(self._path / place, image.size)
                if kind in truth:
                    raise InputError(f"{place}: the image has another {kind}.")
                truth[kind] = values
            except InputError as error:
                dropped.append(str(error).rstrip("."))
        if not truth:
            reason = "; ".join(dropped) or f"{stem} has none"
            raise InputError(f"there are no fixations to compare a map with: {reason}.")
        return Sample(stem, image, fixated=text, dropped=tuple(dropped), **truth)


def _texts(path: Path) -> dict[str, str]:
    """Stem of each image -> its text."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    if tuple(header) != _TEXT_COLUMNS:
        raise InputError(f"{path}: expected the columns {', '.join(_TEXT_COLUMNS)}, got {header}.")
    texts = {}
    for row in rows:
        image = PurePosixPath(row[0].strip())
        if len(row) != 2 or not row[1].strip() or not image.name:
            raise InputError(f"{path}: expected a file and a text per line, got {row}.")
        if image.parts[0] == IMAGES and len(image.parts) > 1:
            image = image.relative_to(IMAGES)
        texts[str(image.with_suffix(""))] = row[1]
    return texts


def _read_fixations(path: Path, size: tuple[int, int]) -> tuple[str, npt.NDArray[Any]]:
    """What a file has of a sample, "fixations" (bool) or "density", with its values."""
    values: npt.NDArray[Any] = read_grey(path) if path.suffix == ".png" else _load(path)
    width, height = size
    if values.shape != (height, width):
        shape = " x ".join(map(str, values.shape))
        raise InputError(f"{path} has {shape} values, its image {height} x {width} pixels.")
    if not np.isfinite(values).all() or (values < 0).any():
        raise InputError(f"{path}: expected finite values from 0 on.")
    if not values.any():
        raise InputError(f"{path}: nobody looked at the image.")
    if path.suffix == ".png" or not np.isin(values, (0, 1)).all():
        return "density", values.astype(np.float64)
    if values.all():
        raise InputError(f"{path}: every pixel is a fixation.")
    return "fixations", values.astype(np.bool_)


def _load(path: Path) -> npt.NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except DAMAGED as error:
        raise InputError(f"{path} cannot be read as an array ({error}).") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise InputError(f"{path}: expected an array of numbers.")
    return array
