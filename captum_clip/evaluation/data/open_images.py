"""Points of Open Images V7: yes or no, is this pixel of that class?"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from typing_extensions import Unpack, override

from ...errors import InputError
from .base import LabelledPoints, Mask, Sample
from .class_names import TEMPLATE, check_template
from .files import FileData, Sampling, digest

IMAGES: Final = "images"
_POINTS, _NAMES = "point-labels.csv", "class-descriptions"
_COLUMNS: Final = ("ImageId", "X", "Y", "Label", "EstimatedYesNo")

Points = list[tuple[float, float, bool]]
"""x and y from 0 to 1, and whether it is of the class."""


@final
class OpenImagesPoints(FileData):
    """``oidv7-val-annotations-point-labels.csv`` with ``images/ID.jpg``.

    A class counts in an image where a point says yes; the points that say no are beside it, those
    of which nobody is sure are left out. Texts are made of the names in
    ``oidv7-class-descriptions.csv``, in small letters, where that is there, else of the column
    TextLabel.

    Args:
        folder: that has them; any one ``*point-labels.csv`` will do.
        limit: take a sample of this many images; None is all of which there are points.

    Raises:
        InputError: there is no such folder or table, no image with points, or a class without name.

    Source: Benenson and Ferrari 2022 (arXiv:2210.14142); as a test of saliency maps: Bousselham et
    al. 2025, LeGrad (arXiv:2404.03214).
    """

    name = "open-images"
    tasks = ("points",)
    options = ("template",)

    def __init__(
        self, folder: str | Path, *, template: str = TEMPLATE, **sampling: Unpack[Sampling]
    ) -> None:
        super().__init__(folder, **sampling)
        check_template(template)
        files, images = self._list(under=IMAGES)
        rows, names = _read(self._path, files)
        points: dict[str, dict[str, Points]] = {}
        for (image, label), own in rows[rows["ImageId"].isin(images)].groupby(["ImageId", "Label"]):
            if not own["yes"].any():
                continue
            if not names.get(label):
                raise InputError(f"{self._path}: no table says what the class {label} is called.")
            text = template.replace("{}", names[label])
            marked = own[["X", "Y", "yes"]].itertuples(index=False, name=None)
            points.setdefault(image, {})[text] = list(marked)
        if not points:
            raise InputError(f"{self._path}: no image in {IMAGES}/ has points that say yes.")
        pointed = {stem: images[stem] for stem in points}
        self._take(pointed, files=digest(files), template=template)
        self._points = {stem: points[stem] for stem in self.names}
        self.classes = tuple(sorted({text for own in self._points.values() for text in own}))

    @override
    def read(self, index: int) -> Sample:
        stem = self.names[index]
        image = self._read_image(stem)
        points = [
            LabelledPoints(text, _marked(image.size, own, True), _marked(image.size, own, False))
            for text, own in self._points[stem].items()
        ]
        return Sample(stem, image, points=tuple(points))


def _read(folder: Path, files: Collection[str]) -> tuple[Any, dict[str, str]]:
    """The points that say yes or no, as a table, and what each label is called."""
    points, described = (
        [name for name in files if ending in name and name.endswith(".csv")]
        for ending in (_POINTS, _NAMES)
    )
    if len(points) != 1:
        raise InputError(
            f"{folder}: expected one table oidv7-val-annotations-{_POINTS} or the like, found "
            f"{len(points)}."
        )
    rows = _table(folder / points[0], _COLUMNS)
    names = {}
    if "TextLabel" in rows:
        told = rows.dropna(subset=["TextLabel"])
        names = dict(zip(told["Label"], told["TextLabel"].str.strip(), strict=True))
    for name in described:
        table = _table(folder / name, ("LabelName", "DisplayName"))
        names |= dict(zip(table["LabelName"], table["DisplayName"].str.lower(), strict=True))
    said = rows["EstimatedYesNo"].str.lower()
    return rows.assign(yes=said == "yes")[said.isin(("yes", "no"))], names


def _table(path: Path, columns: tuple[str, ...]) -> Any:
    import pandas as pd

    try:
        wanted = {*columns, "TextLabel"}
        texts = dict.fromkeys(("ImageId", "Label", "TextLabel"), str)
        table = pd.read_csv(path, dtype=texts, usecols=lambda name: name in wanted)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{path} cannot be read: {error}.") from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise InputError(f"{path}: expected the columns {', '.join(columns)}; {missing[0]} is not.")
    places = [column for column in ("X", "Y") if column in columns]
    if places and not table[places].apply(lambda column: column.between(0, 1)).all(axis=None):
        raise InputError(f"{path}: expected X and Y from 0 to 1.")
    return table


def _marked(size: tuple[int, int], points: Points, wanted: bool) -> Mask:
    """The pixels (H, W) of the points that say yes, or no."""
    width, height = size
    mask = np.zeros((height, width), dtype=bool)
    for x, y, yes in points:
        if yes == wanted:
            mask[min(int(y * height), height - 1), min(int(x * width), width - 1)] = True
    return mask
