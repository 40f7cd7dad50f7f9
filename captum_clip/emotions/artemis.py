"""The ArtEmis data set as its authors publish it: one row per utterance, one image per painting."""

from __future__ import annotations

import csv
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from ..checks import check_choice, find_file, find_folder, find_repeated
from ..errors import InputError

EMOTIONS: Final = (
    *("amusement", "awe", "contentment", "excitement"),
    *("anger", "disgust", "fear", "sadness"),
)
"""The eight emotions, positive ones first."""
SOMETHING_ELSE: Final = "something else"
CLASSES: Final = (*EMOTIONS, SOMETHING_ELSE)
"""What an annotator could choose: the columns of all votes."""
COLUMNS: Final = ("art_style", "painting", "emotion", "utterance", "repetition")
"""The columns of the file, in the order of the official one."""
FILE_NAME: Final = "artemis_dataset_release_v0.csv"
"""What the authors call the file."""
IMAGE_FOLDERS: Final = ("images", "wikiart")
ENDINGS: Final = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Painting:
    """One painting with what its annotators felt.

    Attributes:
        art_style: the folder of its image.
        painting: the name of its image without the ending.
        image: the file.
        votes: how many chose each of :data:`CLASSES`.
    """

    art_style: str
    painting: str
    image: Path
    votes: tuple[int, ...]


@dataclass(frozen=True)
class ReadingReport:
    """What was in the file, and what of it could not be used.

    Attributes:
        rows: all rows below the header.
        paintings: with an image and at least one vote; these were kept.
        missing_images: paintings with votes but without an image.
        unknown_emotions: rows whose emotion is none of the nine.
        duplicate_rows: rows equal to an earlier one in every cell; each counts once.
        bad_rows: rows with another number of cells than the header, without an art style or a
            painting, with names that would leave the folder of the images, or that are no CSV.
    """

    rows: int
    paintings: int
    missing_images: int
    unknown_emotions: int
    duplicate_rows: int
    bad_rows: int

    def __str__(self) -> str:
        left_out = [
            f"{count:,} {singular if count == 1 else plural}"
            for count, singular, plural in (
                (self.missing_images, "painting without an image", "paintings without an image"),
                (self.unknown_emotions, "row of an unknown emotion", "rows of unknown emotions"),
                (self.duplicate_rows, "duplicate row", "duplicate rows"),
                (self.bad_rows, "bad row", "bad rows"),
            )
            if count
        ]
        read = f"{self.rows:,} rows read, {self.paintings:,} paintings kept; left out: "
        return read + (", ".join(left_out) or "nothing") + "."


@dataclass(frozen=True)
class Artemis:
    """Paintings, sorted by art style and name, and how the reading went."""

    paintings: tuple[Painting, ...]
    report: ReadingReport

    @property
    def votes(self) -> npt.NDArray[np.int64]:
        """(N, 9), columns as :data:`CLASSES`."""
        listed = [painting.votes for painting in self.paintings]
        return np.array(listed, dtype=np.int64).reshape(-1, len(CLASSES))

    @property
    def images(self) -> tuple[Path, ...]:
        """The N image files."""
        return tuple(painting.image for painting in self.paintings)


def read_artemis(
    path: str | Path, images: str | Path, *, missing: Literal["skip", "error"] = "skip"
) -> Artemis:
    """Read the CSV of the data set into one entry per painting.

    A row is one utterance: its emotion is one vote for its painting. Columns may come in any order
    and among others; utterances and repetitions are not needed and not kept.

    Args:
        path: the CSV file, UTF-8, with a header that names art_style, painting, emotion,
            utterance and repetition.
        images: the folder that holds ``art_style/painting.jpg`` (or .jpeg, .png).
        missing: what to do with paintings without an image: count them, or raise.

    Returns:
        The paintings that have an image and a vote; ``.report`` counts what was left out.

    Raises:
        InputError: no such file or folder, a file that cannot be read or is no such CSV, no usable
            painting, or, with ``missing="error"``, a painting without an image.

    Source: Achlioptas et al. 2021, ArtEmis (arXiv:2101.07396).
    """
    caller = "read_artemis"
    check_choice(caller, missing, ("skip", "error"), name="missing")
    path = find_file(path, caller=caller)
    images = find_folder(images, caller=caller, what="folder of images")
    try:
        votes, counts = _count_votes(path)
    except UnicodeDecodeError as error:
        raise InputError(
            f"read_artemis: {path} is not UTF-8 ({error.reason} at byte {error.start} of a block); "
            "save it as UTF-8."
        ) from error
    except OSError as error:
        raise InputError(
            f"read_artemis: {path} cannot be read: {error.strerror or error}."
        ) from error
    paintings = []
    for (style, name), cast in votes.items():
        image = _image_of(images, style, name)
        if image is not None:
            paintings.append(Painting(style, name, image, cast))
        elif missing == "error":
            wanted = images / style / f"{name}.jpg"
            raise InputError(f"read_artemis: {path.name} names {wanted}, which is not there.")
    report = ReadingReport(
        paintings=len(paintings), missing_images=len(votes) - len(paintings), **counts
    )
    if not paintings:
        raise InputError(
            f"read_artemis: no painting of {path} has a vote and an image in {images} ({report})"
        )
    return Artemis(tuple(paintings), report)


def find_artemis(folder: str | Path) -> tuple[Path, Path]:
    """The CSV file and the folder of images of a data set in one folder.

    Returns:
        The file of the official name, or else the only .csv; ``images``, ``wikiart`` or the folder
        itself.

    Raises:
        InputError: there is no folder, no such file, or several.
    """
    folder = find_folder(folder, caller="find_artemis")
    images = next((folder / n for n in IMAGE_FOLDERS if (folder / n).is_dir()), folder)
    if (folder / FILE_NAME).is_file():
        return folder / FILE_NAME, images
    files = sorted(folder.glob("*.csv"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise InputError(
            f"find_artemis: expected {FILE_NAME} or one other .csv in {folder}, found {names}; "
            "name the file itself."
        )
    return files[0], images


def _count_votes(path: Path) -> tuple[dict[tuple[str, str], tuple[int, ...]], dict[str, int]]:
    """The votes of each (art style, painting), sorted, and how many rows could not be used."""
    import pandas as pd

    rows = _read_rows(path)
    header = [cell.strip() for cell in rows.pop(0)] if rows else []
    if lacking := [name for name in COLUMNS if name not in header]:
        raise InputError(
            f"read_artemis: {path} {'is empty' if not header else 'has another first line'}; it "
            f"lacks {', '.join(lacking)}, expected the columns {', '.join(COLUMNS)}, in any order."
        )
    if twice := find_repeated([name for name in header if name in COLUMNS]):
        raise InputError(
            f"read_artemis: {path} has two columns {twice}; leave the one that counts."
        )
    style, painting, emotion = (header.index(name) for name in COLUMNS[:3])
    table = pd.DataFrame(
        [row for row in rows if len(row) == len(header)], columns=range(len(header))
    )
    plain = [_is_plain(*names) for names in zip(table[style], table[painting], strict=True)]
    usable = table.loc[np.array(plain, dtype=np.bool_)]
    single = usable.drop_duplicates()
    felt = single[emotion].str.strip()
    known = felt.isin(CLASSES)
    votes = pd.crosstab([single[style][known], single[painting][known]], felt[known])
    votes = votes.reindex(columns=list(CLASSES), fill_value=0)
    counts = {
        "rows": len(rows),
        "unknown_emotions": int((~known).sum()),
        "duplicate_rows": len(usable) - len(single),
        "bad_rows": len(rows) - len(usable),
    }
    return {names: tuple(cast) for names, *cast in votes.itertuples()}, counts


def _read_rows(path: Path) -> list[list[str]]:
    """The rows that are not blank, the header first; one without cells for each that is no CSV."""
    rows: list[list[str]] = []
    with open(path, encoding="utf-8-sig", newline="") as file:
        # pandas would drop what is no CSV without counting it
        reader, lines = csv.reader(file, strict=True), 0
        while True:
            try:
                for row in reader:
                    rows += [row] if row else []
                    lines = reader.line_num
                return rows
            except csv.Error as error:
                if "unexpected end" in str(error):
                    raise InputError(
                        f"read_artemis: {path}, line {lines + 1}: a quote is opened and never "
                        "closed, which would swallow all the rows that follow; close it."
                    ) from error
                rows += [[]] * (reader.line_num - lines)  # of all that an open quote swallowed
                lines = reader.line_num


def _is_plain(*names: str) -> bool:
    """Whether names are plain: `folder / a / b` then lies in the folder."""
    return all(
        name.strip() not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"} for name in names
    )


def _image_of(folder: Path, style: str, painting: str) -> Path | None:
    """The image file; names of letters with accents match whichever way these are encoded."""
    for form in (None, "NFC", "NFD"):
        inner, name = (
            n if form is None else unicodedata.normalize(form, n) for n in (style, painting)
        )
        for ending in ENDINGS:
            path = folder / inner / f"{name}{ending}"
            if os.path.isfile(path):  # unlike Path.is_file, also answers for names too long
                return path
    return None
