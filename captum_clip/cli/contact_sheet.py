"""What stands beside the figures of a folder: `scores.csv`, and `index.html` that shows them."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ..errors import InputError
from ..files import read_csv, replace_file

SCORES, INDEX = "scores.csv", "index.html"
_COLUMNS: Final = ("image", "figure", "text", "score", "probability", "model", "method")

Rows = list[dict[str, str]]


def score_rows(image: Path, figure: Path, explanation: Any) -> Rows:
    """The rows of an `Explanation` of one image: the cosine of each text, or of a reference."""
    names = explanation.names[:1] if explanation.reference is not None else explanation.names
    scores, shares = explanation.scores[0].tolist(), explanation.probabilities
    columns = [map("{:.6f}".format, scores), [""] * len(scores)]
    if shares is not None:
        columns[1] = map("{:.6f}".format, shares[0].tolist())
    files, made_by = (image.as_posix(), figure.as_posix()), (explanation.model, explanation.method)
    cells = zip(names, *columns, strict=False)
    return [dict(zip(_COLUMNS, (*files, *of_text, *made_by), strict=True)) for of_text in cells]


def read_scores(folder: Path, photos: Path) -> dict[Path, Rows]:
    """The rows of each figure that is there as its photo is; none without a file of them."""
    from ..evaluation.units import read_field

    scores: dict[Path, Rows] = {}
    with suppress(InputError, ValueError):
        for values in read_csv(folder / SCORES)[1:]:
            row = dict(zip(_COLUMNS, map(read_field, values), strict=True))
            figure = folder / row["figure"]
            if figure.is_file() and (photos / row["image"]).is_file():
                scores.setdefault(figure, []).append(row)
    return scores


def write_sheet(
    folder: Path, photos: Path, scores: Mapping[Path, Rows], left_out: Mapping[Path, str]
) -> None:
    """Write both files into a folder of figures, with what has none, and why."""
    from ..evaluation.units import to_csv

    named = sorted(scores.values(), key=lambda rows: (rows[0]["image"], rows[0]["figure"]))
    cards = sorted(named, key=lambda rows: -max(float(row["score"]) for row in rows))
    rows = [row for card in named for row in card]
    table = to_csv({column: [row[column] for row in rows] for column in _COLUMNS})
    replace_file(folder / SCORES, lambda file: file.write(table))
    why = {path.relative_to(photos): reason for path, reason in left_out.items()}
    values = {"cards": cards, "rows": rows, "left_out": why, "scores": SCORES}
    write_page(folder, photos, "contact_sheet.html", **values)


def write_page(folder: Path, photos: Path, template: str, **values: Any) -> None:
    """Write `index.html` of a folder of photos, from a template next to this file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("captum_clip.cli", ".")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    values["title"] = photos.resolve().name
    values["photos"] = Path(os.path.relpath(photos.resolve(), folder.resolve())).as_posix()
    content = pages.get_template(template).render(values).encode(errors="replace")
    replace_file(folder / INDEX, lambda file: file.write(content))
