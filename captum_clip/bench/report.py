"""The summary as files: figures in CSV, tables in Markdown, curves, and one HTML page with all."""

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
"""A metric with a rival orders methods if halves of the images agree with this correlation."""
_DAGGER: Final = "\N{DAGGER}"
CONSTANT: Final = "a constant answer"
_BLANK: Final = "\N{EN DASH}"
_ARROWS: Final = {"high": " \N{UPWARDS ARROW}", "low": " \N{DOWNWARDS ARROW}", "none": ""}
_SIGNS: Final = {"high": 1, "low": -1, "none": 0}
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
    """Return a table with one row for each method and metric.

    Figures have three decimals, or as many as give the metric's largest three digits where all are
    below 0.01; p values have three digits. A field without a figure is empty.
    """
    figures = summary.figures.copy()
    places = figures.groupby("metric")["mean"].transform(_decimals).astype(int)
    for name in _ROUNDED:
        pairs = zip(figures[name].tolist(), places, strict=True)
        # Adding 0.0 turns minus zero into zero.
        figures[name] = [round(value, count) + 0.0 for value, count in pairs]
    figures["p_holm"] = figures["p_holm"].map("{:.3g}".format).astype(float)
    return to_csv({name: figures[name].tolist() for name in figures})


@dataclass(frozen=True)
class Cell:
    """A figure as it is printed, such as "0.850 [0.800, 0.900]"; its text has no marks."""

    mean: str
    interval: str = ""  # empty over a single image
    count: str = ""  # such as "(n = 64)", if others in the column are over more images or rows
    bold: bool = False
    differs: bool = False  # from the reference, after Holm's correction

    def __str__(self) -> str:
        return " ".join(filter(None, (self.mean, self.interval, self.count)))


@dataclass(frozen=True)
class Column:
    """A metric in a table of a report, as data for every format."""

    metric: Metric
    head: str  # the name of the metric, with an arrow to the better side
    figures: Mapping[str, Any]  # method -> the named fields of its row of `Summary.figures`
    cells: Mapping[str, Cell]  # method -> its figure as it is printed
    places: int  # decimals of its figures
    size: str  # the number of its images
    reference: str  # the method that the others are compared with
    bold: tuple[str, ...]  # the best methods, and the baselines that are as good
    winner: str | None  # the best method, or the first of several
    to_beat: str  # a predictor without a map, the rival or CONSTANT; bold figures exceed its own
    note: str = ""  # says of a metric with a rival whether its order can be trusted


def report_tables(summary: Summary) -> dict[str, Sequence[Column]]:
    """Return the columns of each table by its title, for all groups."""
    figures_by_metric: dict[str, dict[str, Any]] = {}
    for name, rows in summary.figures.groupby("metric"):
        figures_by_metric[str(name)] = {figure.method: figure for figure in rows.itertuples()}
    tables: dict[str, Sequence[Column]] = {}
    for title, metrics in summary.groups.items():
        columns = [_column(summary, metric, figures_by_metric[metric.name]) for metric in metrics]
        tables[title] = columns
    return tables


def findings(summary: Summary) -> list[str]:
    """List what was found, in plain text: warnings, a line for each question, and a caution.

    The questions are those of `_HEADLINES`. If none of their metrics was measured, each table has a
    line with its first metric. Data on which the model is at chance get a warning alone.
    """
    tables: dict[str, list[Column]] = {}
    for title, columns in report_tables(summary).items():
        tables[title] = []
        for column in columns:
            if column.metric.better != "none" and column.metric.name not in summary.unknown:
                tables[title].append(column)

    answers: dict[str, list[Column]] = {}
    for question, pattern in _HEADLINES.items():
        answers[question] = []
        for columns in tables.values():
            matching = [column for column in columns if re.fullmatch(pattern, column.metric.name)]
            answers[question] += matching
    if not any(answers.values()):
        answers = {title: columns[:1] for title, columns in tables.items()}

    warnings = [str(gate) for gate in summary.gates if not gate.is_above_chance]
    lines = []
    for question, columns in answers.items():
        if columns:
            answer = "; ".join(_finding(summary, column) for column in columns)
            lines.append(f"{question} {answer}.")
    if lines:
        lines.append(_caution(summary))
    return warnings + lines


def _caution(summary: Summary) -> str:
    """Say what the findings do not show."""
    references = " or ".join(summary.figures["reference"].unique())
    images = int(summary.figures["images"].max())
    noun = "image" if images == 1 else "images"
    return (
        f"What not to conclude: all tests are against {references}, so the first method need "
        "not differ from the second. P values are corrected within a column, not over columns. "
        f"And {images} {noun} and one model tell little about "
        "others, above all if the model is embedded and knows only drawn scenes."
    )


def _finding(summary: Summary, column: Column) -> str:
    """Name the winner of a column, its difference to the reference, and the methods on a par."""
    metric = shown(column.metric.name)
    if summary.reliability.get(column.metric.name, RELIABLE) < RELIABLE:
        return f"{metric} ranks nothing, since two halves of the images disagree"
    to_beat = _shown_to_beat(summary, column)
    winner = column.winner
    if winner is None and column.metric.rival:
        tested = f"that differs from {column.reference} after Holm's correction"
        return f"by {metric} no method {tested} beats {to_beat}"
    if winner is None:
        return f"by {metric} no method beats {to_beat}"

    text = f"{winner} (the reference)" if winner == column.reference else winner
    text += f", with {metric} {column.cells[winner]}"
    text += _comparison(summary, column, winner)
    equal_baselines = [name for name in summary.baselines if name in column.bold]
    if equal_baselines:
        text += f", but {', '.join(equal_baselines)} is no worse"
    if column.to_beat in column.cells:
        text += f"; for comparison, {to_beat}"
    return text


def _shown_to_beat(summary: Summary, column: Column) -> str:
    """Name what a method has to beat, with its figure if it was measured."""
    name = column.to_beat
    if name not in column.cells:
        return name
    if name in summary.without_map:
        return f"{name}, which uses no map and has {column.cells[name]}"
    return f"{name}, which has {column.cells[name]}"


def _comparison(summary: Summary, column: Column, winner: str) -> str:
    """Compare the winner with the reference, and name the methods that do not differ from it."""
    figure = column.figures[winner]
    text = ""
    if not math.isnan(figure.difference):
        difference = _printed(
            column.places, figure.difference, figure.difference_low, figure.difference_high
        )
        sign = "+" if figure.difference > 0 else ""
        text += f", {sign}{difference} against {column.reference}"
    alike = []
    for name in summary.methods:
        is_compared = name not in summary.baselines and name != column.reference
        if is_compared and column.figures[name].p_holm >= SIGNIFICANT:
            alike.append(name)
    if alike:
        text += f", not significantly different from {column.reference}: {', '.join(alike)}"
    elif figure.images_paired < FEWEST:
        text += f", not tested on fewer than {FEWEST} images"
    return text


def shown(name: str) -> str:
    """Return a metric's name as it is read: "legrad_map" is "LeGrad mAP"."""
    return " ".join(_SHOWN.get(word, word) for word in name.split("_"))


def _decimals(means: Iterable[float]) -> int:
    """Return the decimals of a metric: three, or more if its largest figure is below 0.01."""
    # NaN is not greater than zero, so a missing figure is left out.
    sizes = [abs(mean) for mean in means if abs(mean) > 0]
    largest = max(sizes, default=1.0)
    if largest >= 0.01:
        return 3
    return 2 - math.floor(math.log10(largest))


def _blocks(columns: Sequence[Column], summary: Summary) -> dict[str, list[str]]:
    """Return the methods of each block of a table, the competing ones first, under ""."""
    blocks: dict[str, list[str]] = {"": [], "Baselines": [], "Without a map": [], "Ceilings": []}
    for name in summary.methods:
        if name in summary.without_map:
            # A predictor answers only some of the tasks.
            is_measured = any(column.figures[name].images for column in columns)
            if is_measured and name in CEILINGS:
                blocks["Ceilings"].append(name)
            elif is_measured:
                blocks["Without a map"].append(name)
        elif name in summary.baselines:
            blocks["Baselines"].append(name)
        else:
            blocks[""].append(name)
    return {title: names for title, names in blocks.items() if names}


def _pipe_table(columns: Sequence[Column], summary: Summary) -> str:
    """Return a table in Markdown, padded so that its source can be read as well."""
    rows = [["Method", *(column.head for column in columns)]]
    for block, methods in _blocks(columns, summary).items():
        if block:
            rows.append([f"*{block}*"] + [""] * len(columns))
        for name in methods:
            label = _text(name)
            if name == columns[0].reference:
                label += " (reference)"
            rows.append([label, *(_markdown(column.cells[name]) for column in columns)])
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = []
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def _markdown(cell: Cell) -> str:
    """Return a cell with its marks."""
    mean = f"**{cell.mean}**" if cell.bold else cell.mean
    mark = _DAGGER if cell.differs else ""
    return " ".join(filter(None, (mean, cell.interval, cell.count, mark)))


def _column(summary: Summary, metric: Metric, figures: Mapping[str, Any]) -> Column:
    places = _decimals(figure.mean for figure in figures.values())
    most_images = max(figure.images for figure in figures.values())
    most_rows = max(figure.rows for figure in figures.values())
    scores = _scores(metric, figures, places, most_images, most_rows)
    bars = _bars(summary, metric, scores)
    to_beat = max(bars, key=lambda name: bars[name])
    reliability = summary.reliability.get(metric.name, math.nan)
    head = shown(metric.name) + _ARROWS[metric.better]

    bold: tuple[str, ...] = ()
    note = ""
    if not math.isnan(reliability):
        note = f"{head}: the rank correlation between halves of the images is {reliability:.2f}"
    if reliability < RELIABLE:
        note += f", below {RELIABLE}, so it ranks nothing"
    elif metric.better != "none" and metric.name not in summary.unknown:
        bold = _best(summary, metric, figures, scores, bars[to_beat])

    cells = {}
    for name, figure in figures.items():
        cell = _printed(places, figure.mean, figure.low, figure.high)
        if not math.isnan(figure.mean):
            count = ""
            if figure.images < most_images:
                count = f"(n = {figure.images})"
            elif figure.rows < most_rows:
                count = f"(n = {figure.images}, {figure.rows} of {most_rows} values)"
            differs = figure.p_holm < SIGNIFICANT
            cell = replace(cell, count=count, bold=name in bold, differs=differs)
        cells[name] = cell
    bold_methods = [name for name in bold if name not in summary.baselines]
    return Column(
        metric=metric,
        head=head,
        figures=figures,
        cells=cells,
        places=places,
        size="1 image" if most_images == 1 else f"{most_images} images",
        reference=metric.rival or summary.reference,
        bold=bold,
        winner=bold_methods[0] if bold_methods else None,
        to_beat=to_beat,
        note=note,
    )


def _scores(
    metric: Metric, figures: Mapping[str, Any], places: int, most_images: int, most_rows: int
) -> dict[str, float]:
    """Return the figures of the methods that compete, as they are printed; high is good."""
    scores = {}
    for method, figure in figures.items():
        # A mean over fewer images, or fewer of their regions, does not compete: its data differ.
        is_complete = figure.images == most_images and figure.rows == most_rows
        if is_complete and not math.isnan(figure.mean) and method not in CEILINGS:
            # Figures that look the same in print are equally good.
            scores[method] = _SIGNS[metric.better] * round(figure.mean, places)
    return scores


def _bars(summary: Summary, metric: Metric, scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores that a bold figure has to exceed, of which the highest is the bar.

    They are those of the predictors without a map, of the metric's rival and of a constant answer.
    """
    bars = {name: scores[name] for name in summary.without_map if name in scores}
    if metric.rival is not None and metric.rival in scores:
        bars[metric.rival] = scores[metric.rival]
    bars[CONSTANT] = scores.get(UNIFORM, -math.inf)
    if metric.constant is not None:
        bars[CONSTANT] = max(bars[CONSTANT], _SIGNS[metric.better] * metric.constant)
    return bars


def _best(
    summary: Summary,
    metric: Metric,
    figures: Mapping[str, Any],
    scores: Mapping[str, float],
    bar: float,
) -> tuple[str, ...]:
    """Return the methods and baselines that are at least as good as the best method.

    There is none if the best method is not above the bar. If the metric has a rival, only methods
    that differ from it count.
    """
    method_scores = [score for name, score in scores.items() if name not in summary.baselines]
    best = max(method_scores, default=-math.inf)
    if best <= bar:
        return ()
    names = []
    for name, score in scores.items():
        is_tested = metric.rival is None or figures[name].p_holm < SIGNIFICANT
        if is_tested and score >= best:
            names.append(name)
    return tuple(names)


def _printed(places: int, mean: float, low: float, high: float) -> Cell:
    """Print a figure with its interval, with so many decimals."""
    if math.isnan(mean):
        return Cell(_BLANK)
    texts = []
    for value in (mean, low, high):
        # Adding 0.0 turns minus zero into zero.
        text = f"{round(value, places) + 0.0:.{places}f}"
        texts.append(text.replace("-", "\N{MINUS SIGN}"))
    mean_text, low_text, high_text = texts
    if math.isnan(low):
        return Cell(mean_text)
    return Cell(mean_text, f"[{low_text}, {high_text}]")


def _text(value: Any) -> str:
    """Return anything as one line of Markdown, with special characters escaped."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\|*<`])", r"\\\1", line)


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def render(template: str, summary: Summary, **content: Any) -> str:
    """Render the summary as text: findings, settings, a table per group of metrics, protocols.

    Args:
        template: `TABLES`, in Markdown, or `REPORT`, one HTML page that has more.
        summary: the summary of the evaluation.
        content: `title`, and `about`, the lines over the tables. The page also needs `curves`, PNG
            files by their titles, and the `manifest`.
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
        "encoded": _data_url,
        "json": partial(json.dumps, ensure_ascii=False),
        "pipe_table": _pipe_table,
        "slug": partial(slug, longest=80),  # for titles of tables
        "text": _text,
    }
    return environment.get_template(template).render(
        **content,
        findings=findings(summary),
        tables=report_tables(summary),
        summary=summary,
        mark=_DAGGER,
        blank=_BLANK,
        uniform=UNIFORM,
        level=LEVEL,
        significant=SIGNIFICANT,
        fewest=FEWEST,
    )


def curve_bands(table: Table, resamples: int = 2000, seed: int = 0) -> dict[str, Curve]:
    """Compute each method's mean curve with its interval: (x, mean, low, high), each (F,).

    The table has the rows of the curve of one metric; each image has a value at every `x` of its
    method. The interval is that of each point alone, over whole images.
    """
    bands: dict[str, Curve] = {}
    for method, rows in table.groupby("method", observed=True, sort=False):
        points = rows.pivot_table("value", "sample", "x", observed=True)
        images = len(points)
        means = resample(points.to_numpy(), resamples=resamples, seed=seed) / images
        mean, low, high = np.array([interval_of(column) for column in means.T]).T
        if images == 1:
            # A single image tells nothing of others, so there is no interval.
            low = np.full_like(mean, np.nan)
            high = np.full_like(mean, np.nan)
        bands[str(method)] = (points.columns.to_numpy(), mean, low, high)
    return bands


def perturbation_curves(
    most_first: Table, least_first: Table, summary: Summary, *, title: str = ""
) -> Figure:
    """Draw the curves of all methods, most relevant first on the left, least on the right.

    Both tables are rows of the long table. The legend has the summary's methods in their order,
    without those that have no rows. The reference is black and thick, baselines are gray and thin.
    """
    left = curve_bands(most_first, summary.resamples, summary.seed)
    right = curve_bands(least_first, summary.resamples, summary.seed)
    left_counts = most_first.groupby("method", observed=True)["sample"].nunique()
    right_counts = least_first.groupby("method", observed=True)["sample"].nunique()
    most_images = left_counts.max()
    labels: dict[str, str] = {}
    for name in summary.methods:
        if name not in left and name not in right:
            continue
        count = left_counts.get(name, most_images)
        # A curve over fewer images than the others has their number in its label, since it should
        # not be compared with them.
        labels[name] = name if count == most_images else f"{name} (n = {count})"

    counts = sorted({*left_counts, *right_counts})
    fewest, most = counts[0], counts[-1]
    number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    noun = "image" if counts == [1] else "images"
    level = f"{LEVEL * 100:g} %"
    return curves(
        {label: left[name] for name, label in labels.items() if name in left},
        {label: right[name] for name, label in labels.items() if name in right},
        headers=("most relevant first", "least relevant first"),
        title=title,
        xlabel="share of the pixels removed",
        ylabel="top-1 accuracy",
        reference=labels.get(summary.reference),
        baselines=[labels[name] for name in summary.baselines if name in labels],
        caption=f"Bands: {level} bootstrap intervals at each point, over {number} {noun}.",
    )
