"""The ArtEmis data set as its authors publish it: one row an utterance, one image a painting."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ..errors import InputError

EMOTIONS: Final = (
    "amusement",
    "awe",
    "contentment",
    "excitement",
    "anger",
    "disgust",
    "fear",
    "sadness",
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
            f"{count:,} {one if count == 1 else many}"
            for count, one, many in (
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
    """Read the CSV of the data set into one entry a painting.

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
    path, images = Path(path).expanduser(), Path(images).expanduser()
    if missing not in ("skip", "error"):
        raise InputError(f"read_artemis: expected missing='skip' or 'error', got {missing!r}.")
    if not path.is_file():
        raise InputError(f"read_artemis: there is no file {path}.")
    if not images.is_dir():
        raise InputError(f"read_artemis: there is no folder of images {images}.")
    try:
        votes, counts = _count_votes(path)
    except OSError as error:
        raise InputError(
            f"read_artemis: {path} cannot be read: {error.strerror or error}."
        ) from error
    paintings = []
    for style, name in sorted(votes):
        image = _image_of(images, style, name)
        if image is not None:
            cast = votes[style, name]
            listed = tuple(cast[index] for index in range(len(CLASSES)))
            paintings.append(Painting(style, name, image, listed))
        elif missing == "error":
            wanted = images / style / f"{name}.jpg"
            raise InputError(f"read_artemis: {path.name} names {wanted}, which is not there.")
    report = ReadingReport(
        rows=counts["rows"],
        paintings=len(paintings),
        missing_images=len(votes) - len(paintings),
        unknown_emotions=counts["unknown"],
        duplicate_rows=counts["duplicate"],
        bad_rows=counts["bad"],
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
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"find_artemis: there is no folder {folder}.")
    images = next((folder / n for n in IMAGE_FOLDERS if (folder / n).is_dir()), folder)
    if (folder / FILE_NAME).is_file():
        return folder / FILE_NAME, images
    files = sorted(folder.glob("*.csv"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise InputError(
            f"find_artemis: expected {FILE_NAME} or one other .csv in {folder}, found {found}; "
            "name the file itself."
        )
    return files[0], images


def _count_votes(path: Path) -> tuple[dict[tuple[str, str], Counter[int]], Counter[str]]:
    """Votes for each (art style, painting), and counts of rows by what became of them."""
    votes: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    counts: Counter[str] = Counter()
    seen: set[bytes] = set()
    place = {name: index for index, name in enumerate(CLASSES)}
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        width, (style, painting, emotion) = _read_header(path, reader)
        for row in _rows(path, reader):
            counts["rows"] += 1
            if row is None or len(row) != width or not _inside(row[style], row[painting]):
                counts["bad"] += 1
                continue
            key = blake2b("\0".join(row).encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if key in seen:
                counts["duplicate"] += 1
                continue
            seen.add(key)
            felt = row[emotion].strip()
            if felt in place:
                votes[row[style], row[painting]][place[felt]] += 1
            else:
                counts["unknown"] += 1
    return votes, counts


def _read_header(path: Path, reader: Any) -> tuple[int, tuple[int, int, int]]:
    """The number of columns, and where art style, painting and emotion are."""
    header = [cell.strip() for cell in next(_rows(path, reader), None) or []]
    if not header:
        raise InputError(
            f"read_artemis: {path} is empty or starts with no CSV line; expected a first line "
            f"{','.join(COLUMNS)}."
        )
    lacking = [name for name in COLUMNS if name not in header]
    if lacking:
        raise InputError(
            f"read_artemis: the first line of {path} lacks {', '.join(lacking)}; expected the "
            f"columns {', '.join(COLUMNS)}, in any order."
        )
    style, painting, emotion = (header.index(name) for name in COLUMNS[:3])
    return len(header), (style, painting, emotion)


def _rows(path: Path, reader: Any) -> Iterator[Sequence[str] | None]:
    """Rows that are not blank; None for one that is no CSV."""
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield None
            continue
        except UnicodeDecodeError as error:
            raise InputError(
                f"read_artemis: {path} is not UTF-8 ({error.reason} at byte {error.start} of a "
                "block); save it as UTF-8."
            ) from error
        if row:
            yield row


def _inside(*names: str) -> bool:
    """Whether names are plain: `folder / a / b` then lies in the folder."""
    return all(
        name.strip() not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"} for name in names
    )


def _image_of(folder: Path, style: str, painting: str) -> Path | None:
    """The image file; names of letters with accents match whichever way these are encoded."""
    for form in (None, "NFC", "NFD"):
        names = (style, painting)
        if form is not None:
            names = (unicodedata.normalize(form, style), unicodedata.normalize(form, painting))
        for ending in ENDINGS:
            path = folder / names[0] / f"{names[1]}{ending}"
            if os.path.isfile(path):  # unlike Path.is_file, also answers for names too long
                return path
    return None
