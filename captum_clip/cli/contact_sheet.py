"""What stands beside the figures of a folder: `scores.csv`, and `index.html` that shows them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

from ..errors import InputError
from ..files import read_csv, replace_file

if TYPE_CHECKING:
    from ..explaining.explanation import Explanation

SCORES: Final = "scores.csv"
INDEX: Final = "index.html"


class Score(NamedTuple):
    """A row of `scores.csv`; image and figure are relative to their folders."""

    image: str
    text: str
    score: str
    model: str
    method: str
    figure: str


def score_rows(image: str, figure: str, found: "Explanation") -> list[Score]:
    """The rows of one image: the cosine of each text, or of a reference."""
    shown = found.names[:1] if found.reference is not None else found.names
    scores = zip(shown, found.scores[0].tolist(), strict=False)
    return [Score(image, t, f"{s:.6f}", found.model, found.method, figure) for t, s in scores]


def read_scores(folder: Path) -> dict[str, list[Score]]:
    """The rows of each figure that is in a folder; none without a file that can be read."""
    rows: dict[str, list[Score]] = {}
    with suppress(InputError, TypeError):  # what is no row has other columns
        for row in map(Score._make, read_csv(folder / SCORES)[1:]):
            if (folder / row.figure).is_file():
                rows.setdefault(row.figure, []).append(row)
    return rows


def write_sheet(
    folder: Path, photos: Path, rows: Mapping[str, Sequence[Score]], left_out: Mapping[Path, str]
) -> None:
    """Write both files into a folder of figures.

    Args:
        folder: of the figures.
        photos: the folder of the images.
        rows: the scores of each figure.
        left_out: files of `photos` without a figure, and why.
    """
    from jinja2 import StrictUndefined, Template

    from ..evaluation.units import to_csv

    listed = [row for figure in sorted(rows) for row in rows[figure]]
    columns = dict(zip(Score._fields, zip(*listed, strict=True), strict=True))
    table = to_csv(columns).decode(errors="replace").encode()  # of names that are no UTF-8
    replace_file(folder / SCORES, lambda file: file.write(table))
    text = Path(__file__).with_suffix(".html").read_text("utf-8")
    page = Template(text, autoescape=True, undefined=StrictUndefined).render(
        title=photos.resolve().name,
        cards=[*_cards(folder, photos, rows)],
        texts=dict.fromkeys(row.text for row in listed),
        made_by=dict.fromkeys(f"{row.model} \N{MIDDLE DOT} {row.method}" for row in listed),
        left_out={
            path.relative_to(photos): reason.removeprefix(str(path))
            for path, reason in left_out.items()
        },
        scores=SCORES,
    )
    replace_file(folder / INDEX, lambda file: file.write(page.encode(errors="replace")))


def _cards(
    folder: Path, photos: Path, rows: Mapping[str, Sequence[Score]]
) -> Iterator[tuple[str, str, tuple[int, int], Sequence[Score]]]:
    """Of each figure its address, that of its photo, its width and height, and its scores."""
    from PIL import Image

    for figure, scores in sorted(rows.items(), key=lambda item: (item[1][0].image, item[0])):
        with Image.open(folder / figure) as drawn:
            size = drawn.size
        photo = os.path.relpath((photos / scores[0].image).resolve(), folder.resolve())
        yield quote(os.fsencode(figure)), quote(os.fsencode(photo)), size, scores
