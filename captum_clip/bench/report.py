"""The summary as files: figures in CSV, tables in Markdown, curves, one HTML page with it all."""

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from ..files import slug, to_csv
from ..folders.bootstrap import FEWEST, LEVEL, interval_of, resample
from ..visualization.charts import Curve, curves
from .methods import CEILINGS
from .table import UNIFORM, Metric, Summary, Table

TABLES: Final = "results.md"
REPORT: Final = "report.html"
SIGNIFICANT: Final = 0.05
RELIABLE: Final = 0.7
"""Rank correlation of halves of the images below which a metric with a rival orders no methods."""
_DAGGER: Final = "\N{DAGGER}"
CONSTANT: Final = "a constant answer"
_BLANK: Final = "\N{EN DASH}"
_ARROWS: Final = {"high": " \N{UPWARDS ARROW}", "low": " \N{DOWNWARDS ARROW}", "none": ""}
_SHOWN: Final = {"legrad": "LeGrad", "map": "mAP", "iou": "IoU", "miou": "mIoU", "aacc": "aAcc"}
_HEADLINES: Final = {
    "Which copy carries the score?": "(thirds|identical)_(adds|removal)_rank",
    "Where is it?": "pointing",
    "What does an object add, and what would be lost (ranks)?": "(effect|removal)_spearman_scene",
    "Where is each of four words?": "words_4",
    "Which pixels does the class need?": "gap_[a-z]+_predicted",
}
"""Question -> pattern of the metrics that answer it."""
_ROUNDED: Final = ("mean", "low", "high", "difference", "difference_low", "difference_high")


def results_csv(summary: Summary) -> bytes:
    """One row for each method and metric.

    Figures have three decimals, or as many as give the metric's largest three digits where all are
    below 0.01; p values have three digits. A field without a figure is empty.
    """
    figures = summary.figures.copy()
    places = figures.groupby("metric")["mean"].transform(_decimals).astype(int)
    for name in _ROUNDED:
        pairs = zip(figures[name].tolist(), places, strict=True)
        figures[name] = [round(value, count) + 0.0 for value, count in pairs]  # no minus zero
    figures["p_holm"] = figures["p_holm"].map("{:.3g}".format).astype(float)
    return to_csv({name: figures[name].tolist() for name in figures})


@dataclass(frozen=True)
class Cell:
    """A figure as it is printed; its text is without the marks, as "0.850 [0.800, 0.900]"."""

    mean: str
    interval: str = ""  # none over one image
    count: str = ""  # as "(n = 64)", over fewer images than others in the column
    bold: bool = False
    differs: bool = False  # from the reference, after Holm's correction

    def __str__(self) -> str:
        return " ".join(filter(None, (self.mean, self.interval, self.count)))


@dataclass(frozen=True)
class Column:
    """A metric in a table of a report, as data for every format."""

    metric: Metric
    head: str  # what it is called
    figures: Mapping[str, Any]  # method -> the named fields of its row of `Summary.figures`
    cells: Mapping[str, Cell]  # of each method
    places: int  # decimals of its figures
    size: str  # the number of its images
    reference: str  # the method that the others are compared with
    bold: tuple[str, ...]  # the best methods, and the baselines that are as good
    winner: str | None  # the best method, of several the first
    rival: str  # the best predictor without a map, or CONSTANT; what is no better is not bold
    note: str = ""  # of a metric with a rival, whether its order can be trusted


def report_tables(summary: Summary) -> dict[str, Sequence[Column]]:
    """Title -> columns, of all groups."""
    by_metric = {
        name: {figure.method: figure for figure in rows.itertuples()}
        for name, rows in summary.figures.groupby("metric")
    }
    return {
        group: [_column(summary, metric, by_metric[metric.name]) for metric in metrics]
        for group, metrics in summary.groups.items()
    }


def findings(summary: Summary) -> list[str]:
    """List what to take away, in plain text: a line a question with its winners, and a caution.

    The questions are those of `_HEADLINES`; where none of their metrics was measured, each table
    has a line with its first metric. Data that the model does not know get a warning alone.
    """
    silent = summary.unknown
    tables = {
        title: [c for c in columns if c.metric.better != "none" and c.metric.name not in silent]
        for title, columns in report_tables(summary).items()
    }
    warnings = [str(gate) for gate in summary.gates if not gate.is_above_chance]
    judged = [column for columns in tables.values() for column in columns]
    asked = {
        question: [column for column in judged if re.fullmatch(pattern, column.metric.name)]
        for question, pattern in _HEADLINES.items()
    }
    if not any(asked.values()):
        asked = {title: columns[:1] for title, columns in tables.items()}
    lines = [
        f"{question} {'; '.join(_finding(summary, column) for column in columns)}."
        for question, columns in asked.items()
        if columns
    ]
    images = int(summary.figures["images"].max())
    references = " or ".join(summary.figures["reference"].unique())
    caution = (
        f"What not to conclude: all tests are against {references}, so the first method need "
        "not differ from the second. P values are corrected within a column, not over columns. "
        f"And {images} {'image' if images == 1 else 'images'} and one model tell little about "
        "others, above all if the model is embedded and knows only drawn scenes."
    )
    return [*warnings, *lines, *([caution] if lines else [])]


def _finding(summary: Summary, column: Column) -> str:
    """The winner of a column, its difference to the reference, and what is not told apart."""
    what, winner = shown(column.metric.name), column.winner
    reference, rival = column.reference, column.rival
    if summary.reliability.get(column.metric.name, RELIABLE) < RELIABLE:
        return f"{what} ranks nothing, since two halves of the images disagree"
    if rival in column.cells:
        at_no_map = "uses no map and " * (rival in summary.without_map)
        rival += f", which {at_no_map}has {column.cells[rival]}"
    if winner is None:
        tested = f" that differs from {reference} after Holm's correction"
        return f"by {what} no method{tested * bool(column.metric.rival)} beats {rival}"
    name = f"{winner} (the reference)" if winner == reference else winner
    text = f"{name}, with {what} {column.cells[winner]}"
    figure = column.figures[winner]
    if not math.isnan(figure.difference):
        gap = (figure.difference, figure.difference_low, figure.difference_high)
        plus = "+" * (figure.difference > 0)
        text += f", {plus}{_printed(column.places, *gap)} against {reference}"
    rivals = [n for n in summary.methods if n not in (*summary.baselines, reference)]
    alike = [name for name in rivals if column.figures[name].p_holm >= SIGNIFICANT]
    if alike:
        text += f", not significantly different from {reference}: {', '.join(alike)}"
    elif figure.images_paired < FEWEST:
        text += f", not tested on fewer than {FEWEST} images"
    equal = [name for name in summary.baselines if name in column.bold]
    text += f", but {', '.join(equal)} is no worse" if equal else ""
    return text + (f"; for comparison, {rival}" if column.rival in column.cells else "")


def shown(name: str) -> str:
    """A metric's name as it is read: "legrad_map" is "LeGrad mAP"."""
    return " ".join(_SHOWN.get(word, word) for word in name.split("_"))


def _decimals(means: Iterable[float]) -> int:
    """Decimals of a metric: three, more where these would leave its largest figure one digit."""
    largest = max((abs(mean) for mean in means if abs(mean) > 0), default=1.0)
    return 3 if largest >= 0.01 else 2 - math.floor(math.log10(largest))


def _blocks(columns: Sequence[Column], summary: Summary) -> dict[str, list[str]]:
    """Title -> methods of a table, the competing ones first, under ""; predictors that answer."""
    blocks: dict[str, list[str]] = {"": [], "Baselines": [], "Without a map": [], "Ceilings": []}
    for name in summary.methods:
        if name not in summary.without_map:
            blocks["Baselines" if name in summary.baselines else ""].append(name)
        elif any(column.figures[name].images for column in columns):
            blocks["Ceilings" if name in CEILINGS else "Without a map"].append(name)
    return {title: names for title, names in blocks.items() if names}


def _pipe_table(columns: Sequence[Column], summary: Summary) -> str:
    """A table in Markdown, set so that its source can be read as well."""
    rows = [["Method", *(column.head for column in columns)]]
    for block, methods in _blocks(columns, summary).items():
        if block:
            rows.append([f"*{block}*", *("" for _ in columns)])
        for name in methods:
            row = [_text(name) + " (reference)" * (name == columns[0].reference)]
            for cell in (column.cells[name] for column in columns):
                mean = f"**{cell.mean}**" if cell.bold else cell.mean
                mark = _DAGGER * cell.differs
                row.append(" ".join(filter(None, (mean, cell.interval, cell.count, mark))))
            rows.append(row)
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in rows
    )


def _column(summary: Summary, metric: Metric, figures: Mapping[str, Any]) -> Column:
    places = _decimals(figure.mean for figure in figures.values())
    sign = {"high": 1, "low": -1, "none": 0}[metric.better]
    most = max(figure.images for figure in figures.values())
    # Compared as printed: what reads the same is equally good. A mean over fewer images is of
    # other images, and does not compete.
    values = {
        method: sign * round(figure.mean, places)
        for method, figure in figures.items()
        if not math.isnan(figure.mean) and figure.images == most and method not in CEILINGS
    }
    rivals = [value for method, value in values.items() if method not in summary.baselines]
    without = (*summary.without_map, metric.rival)
    bars = {name: values[name] for name in without if name in values}
    fixed = [] if metric.constant is None else [sign * metric.constant]
    bars[CONSTANT] = max([*fixed, values.get(UNIFORM, -math.inf)])
    rival = max(bars, key=lambda name: bars[name])
    best = max(rivals) if sign and rivals else -math.inf
    reliability = summary.reliability.get(metric.name, math.nan)
    decides = metric.name not in summary.unknown and not reliability < RELIABLE
    bar = bars[rival] if decides else math.inf
    tested = [n for n in values if not metric.rival or figures[n].p_holm < SIGNIFICANT]
    bold = tuple(name for name in tested if values[name] >= best > bar)
    head, note = shown(metric.name) + _ARROWS[metric.better], ""
    if not math.isnan(reliability):
        note = f"{head}: the rank correlation between halves of the images is {reliability:.2f}"
        note += f", below {RELIABLE}, so it ranks nothing" * (reliability < RELIABLE)
    cells = {
        name: _printed(
            *(places, figure.mean, figure.low, figure.high),
            count=f"(n = {figure.images})" * (figure.images < most),
            bold=name in bold,
            differs=figure.p_holm < SIGNIFICANT,
        )
        for name, figure in figures.items()
    }
    size = f"{most} image{'s' * (most != 1)}"
    winner = next((name for name in bold if name not in summary.baselines), None)
    reference = metric.rival or summary.reference
    facts = (metric, head, figures, cells, places, size)
    return Column(*facts, reference, bold, winner, rival, note)


def _printed(places: int, mean: float, low: float, high: float, **about: Any) -> Cell:
    if math.isnan(mean):
        return Cell(_BLANK)
    # + 0.0: no minus zero
    texts = [f"{round(value, places) + 0.0:.{places}f}" for value in (mean, low, high)]
    mean_text, *ends = [text.replace("-", "\N{MINUS SIGN}") for text in texts]
    return Cell(mean_text, "" if math.isnan(low) else f"[{', '.join(ends)}]", **about)


def _text(value: Any) -> str:
    """Anything in one line, without what Markdown would take for itself."""
    return re.sub(r"([\\|*<`])", r"\\\1", " ".join(str(value).split()))


def render(template: str, summary: Summary, **content: Any) -> str:
    """The summary as text: what was found and measured, a table per group of metrics, protocols.

    Args:
        template: `TABLES`, in Markdown, or `REPORT`, one HTML page that has more.
        summary: of the evaluation.
        content: `title`, and `about`, the lines over the tables. The page also needs `curves`, PNG
            files by what each shows, and the `manifest`.
    """
    environment = Environment(
        loader=PackageLoader("captum_clip.bench", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "blocks": _blocks,
        "encoded": lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}",
        "json": partial(json.dumps, ensure_ascii=False),
        "pipe_table": _pipe_table,
        "slug": partial(slug, longest=80),  # of a table, by its title
        "text": _text,
    }
    data = {"findings": findings(summary), "tables": report_tables(summary), "summary": summary}
    words = {"mark": _DAGGER, "blank": _BLANK, "uniform": UNIFORM}
    numbers = {"level": LEVEL, "significant": SIGNIFICANT, "fewest": FEWEST}
    return environment.get_template(template).render(**content, **data, **words, **numbers)


def curve_bands(table: Table, resamples: int = 2000, seed: int = 0) -> dict[str, Curve]:
    """Each method's mean curve with its interval: method -> (x, mean, low, high), each (F,).

    The table has the rows of a curve, of one metric; each image has a value at every `x` of its
    method. The interval is that of each point alone, over whole images.
    """
    bands: dict[str, Curve] = {}
    for method, rows in table.groupby("method", observed=True, sort=False):
        points = rows.pivot_table("value", "sample", "x", observed=True)
        images = len(points)
        means = resample(points.to_numpy(), resamples=resamples, seed=seed) / images
        mean, low, high = np.array([interval_of(column) for column in means.T]).T
        if images == 1:  # tells nothing of others
            low = high = np.full_like(mean, np.nan)
        bands[str(method)] = (points.columns.to_numpy(), mean, low, high)
    return bands


def perturbation_curves(
    most_first: Table, least_first: Table, summary: Summary, *, title: str = ""
) -> Figure:
    """The curves of all methods, most relevant first on the left, least on the right.

    Both are rows of the long table. The legend has the summary's methods in their order, without
    those that have no rows; the reference is black and thick, the baselines are gray and thin.
    """
    both, options = (most_first, least_first), (summary.resamples, summary.seed)
    bands = [curve_bands(table, *options) for table in both]
    images = [table.groupby("method", observed=True)["sample"].nunique() for table in both]
    most, counts = images[0].max(), sorted({*images[0], *images[1]})
    labels = {  # over fewer images than the others: say so where it is compared with them
        name: name if images[0].get(name, most) == most else f"{name} (n = {images[0][name]})"
        for name in summary.methods
        if any(name in panel for panel in bands)
    }
    number = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    return curves(
        *[{labels[name]: panel[name] for name in labels if name in panel} for panel in bands],
        headers=("most relevant first", "least relevant first"),
        title=title,
        xlabel="share of the pixels removed",
        ylabel="top-1 accuracy",
        reference=labels.get(summary.reference),
        baselines=[labels[name] for name in summary.baselines if name in labels],
        caption=f"Bands: {LEVEL * 100:g} % bootstrap intervals at each point, over "
        f"{number} {'image' if counts == [1] else 'images'}.",
    )
