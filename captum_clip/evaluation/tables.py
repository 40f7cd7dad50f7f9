"""The summary as files: a row for each figure in CSV, a table for each group in Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from .metric import UNIFORM, Metric
from .summary import FEWEST, Summary

RESULTS: Final = "results.csv"
TABLES: Final = "results.md"
SIGNIFICANT: Final = 0.05
_WIDEST: Final = 6  # metrics side by side
_MARK: Final = "\N{DAGGER}"
_BLANK: Final = "\N{EN DASH}"
_UNMEASURED: Final = "not measured"
_ARROWS: Final = {"high": " \N{UPWARDS ARROW}", "low": " \N{DOWNWARDS ARROW}", "none": ""}
_ROUNDED: Final = ("mean", "low", "high", "difference", "difference_low", "difference_high")

Figures = Mapping[str, Any]
"""Method -> the named fields of its row of :attr:`Summary.figures`."""


def results_csv(summary: Summary) -> bytes:
    """One row for each method and metric.

    Figures have three decimals, or as many as give the metric's largest three digits where all are
    below 0.01; p values have three digits. A field without a figure is empty.
    """
    figures = summary.figures.copy()
    places = figures["metric"].map(
        {name: _places(means) for name, means in figures.groupby("metric")["mean"]}
    )
    for name in _ROUNDED:
        pairs = zip(figures[name].tolist(), places.tolist(), strict=True)
        figures[name] = [round(value, count) + 0.0 for value, count in pairs]  # no minus zero
    figures["p_holm"] = [float(f"{value:.3g}") for value in figures["p_holm"].tolist()]
    text: str = figures.to_csv(index=False, float_format="%.10g", lineterminator="\n")
    return text.encode()


def results_md(summary: Summary, *, title: str, about: Mapping[str, Any]) -> str:
    """The figures as Markdown: what was measured, a table a group of metrics, the protocols."""
    lines = [f"# {_text(title)}", ""]
    lines += [f"- {_text(what)}: {_text(value)}" for what, value in about.items()]
    lines += ["", *legend(summary), ""]
    tables = list(report_tables(summary))
    for table in tables:
        lines += [f"## {_text(table.title)}", "", *_pipe_table(summary, table), ""]
    lines += ["## Protocols", "", *(f"- {line}" for table in tables for line in table.protocols)]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class ReportTable:
    """One table of a report; its texts are Markdown.

    Attributes:
        title: with its number where a group has several.
        metrics: the columns.
        heads: what each column is called.
        columns: of each metric method -> cell, as "**0.850** [0.800, 0.900] \N{DAGGER}".
        figures: of each metric method -> the row that the cell was made of.
        protocols: of each metric the choices that were made, with the sizes of its samples.
    """

    title: str
    metrics: Sequence[Metric]
    heads: Sequence[str]
    columns: Sequence[Mapping[str, str]]
    figures: Sequence[Figures]
    protocols: Sequence[str]


def report_tables(summary: Summary) -> Iterator[ReportTable]:
    """The tables of all groups, those of many metrics in parts."""
    by_metric = {
        name: {figure.method: figure for figure in rows.itertuples()}
        for name, rows in summary.figures.groupby("metric")
    }
    for group, metrics in summary.groups.items():
        parts = list(_parts(metrics))
        for number, part in enumerate(parts, start=1):
            figures = [by_metric[metric.name] for metric in part]
            pairs = list(zip(part, figures, strict=True))
            yield ReportTable(
                group + (f" ({number} of {len(parts)})" if len(parts) > 1 else ""),
                part,
                [_name(metric) for metric in part],
                [_column(summary, *pair) for pair in pairs],
                figures,
                [_protocol(*pair) for pair in pairs],
            )


def _places(means: Iterable[float]) -> int:
    """Decimals of a metric: three, more where these would leave its largest figure one digit."""
    largest = max((abs(mean) for mean in means if abs(mean) > 0), default=1.0)
    return 3 if largest >= 0.01 else 2 - math.floor(math.log10(largest))


def legend(summary: Summary) -> list[str]:
    """How to read the tables."""
    blank = summary.figures["mean"].isna().any()
    lines = [
        f"Figures with {summary.level * 100:g} % bootstrap intervals over images "
        f"({summary.resamples} resamples). \N{UPWARDS ARROW} high is good, "
        "\N{DOWNWARDS ARROW} low is good. **Bold**: the best of the methods that saw most images, "
        "and every baseline that is as good on as many, unless a constant answer is (as the map "
        f"'{UNIFORM}' shows, or by the protocol). A figure over "
        "fewer images than others in its column has their number n: compare it with none over "
        "more. "
        f"{_MARK} differs from *{_text(summary.reference)}* (paired bootstrap, "
        "over the regions that both have, "
        f"p < {SIGNIFICANT} after Holm's correction for all methods in the column, on {FEWEST} "
        "images or more)." + (f" {_BLANK} not measured, or not defined." if blank else "")
    ]
    if summary.least_p >= SIGNIFICANT:
        lines += [
            "",
            f"With {summary.resamples} resamples and so many methods no corrected p value can be "
            f"below {summary.least_p:.2g}: a missing {_MARK} says nothing.",
        ]
    return lines


def _parts(metrics: Sequence[Metric]) -> Iterator[Sequence[Metric]]:
    """Metrics in runs of nearly equal length that fit on a page."""
    count = math.ceil(len(metrics) / _WIDEST)
    ends = [round(part * len(metrics) / count) for part in range(count + 1)] if count else []
    for start, end in pairwise(ends):
        yield metrics[start:end]


def _pipe_table(summary: Summary, table: ReportTable) -> list[str]:
    """A table in Markdown, set so that its source can be read as well."""
    rows = [["Method", *table.heads]]
    for block, chosen in (("", False), ("*Baselines*", True)):
        methods = [name for name in summary.methods if (name in summary.baselines) is chosen]
        if methods and block:
            rows.append([block, *("" for _ in table.metrics)])
        for name in methods:
            label = _text(name) + (" (reference)" if name == summary.reference else "")
            rows.append([label, *(column[name] for column in table.columns)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in rows
    ]


def _column(summary: Summary, metric: Metric, figures: Figures) -> dict[str, str]:
    """The cell of each method."""
    places = _places(figure.mean for figure in figures.values())
    sign = {"high": 1, "low": -1, "none": 0}[metric.better]
    most = max(figure.images for figure in figures.values())
    values = {
        method: sign * round(figure.mean, places)
        for method, figure in figures.items()
        if not math.isnan(figure.mean) and figure.images == most
    }
    rivals = [value for method, value in values.items() if method not in summary.baselines]
    best = max(rivals) if sign and rivals else math.inf
    constants = [values[UNIFORM]] if UNIFORM in values else []
    constants += [] if metric.constant is None else [sign * metric.constant]
    if any(best <= constant for constant in constants):
        best = math.inf
    return {
        method: _cell(figure, places, most, bold=values.get(method, -math.inf) >= best)
        for method, figure in figures.items()
    }


def _cell(figure: Any, places: int, most: int, *, bold: bool) -> str:
    """As "**0.850** [0.800, 0.900] †"; the mean alone where there is no interval.

    Over less than `most` images it says over how many: "0.850 [0.800, 0.900] (n = 64)".
    """
    if math.isnan(figure.mean):
        return _BLANK
    mean, low, high = (_number(value, places) for value in (figure.mean, figure.low, figure.high))
    cell = f"**{mean}**" if bold else mean
    if not math.isnan(figure.low):
        cell += f" [{low}, {high}]"
    if figure.images < most:
        cell += f" (n = {figure.images})"
    return f"{cell} {_MARK}" if figure.p_holm < SIGNIFICANT else cell


def _number(value: float, places: int) -> str:
    rounded = round(value, places) + 0.0  # + 0.0: no minus zero
    return f"{rounded:.{places}f}".replace("-", "\N{MINUS SIGN}")


def _name(metric: Metric) -> str:
    return _text(metric.name.replace("_", " ")) + _ARROWS[metric.better]


def _protocol(metric: Metric, figures: Figures) -> str:
    """A metric's choices in one line, with the sizes of its samples; most methods share one."""
    sizes: dict[str, list[str]] = {}
    for method, figure in figures.items():
        sizes.setdefault(_size(figure), []).append(_text(method))
    usual = max(sizes, key=lambda size: (size != _UNMEASURED, len(sizes[size])))
    others = [f"{size}: {', '.join(names)}" for size, names in sizes.items() if size != usual]
    return f"**{_name(metric)}**: {_text(metric.protocol)} ({'; '.join([usual, *others])})"


def _size(figure: Any) -> str:
    if not figure.rows:
        return _UNMEASURED
    size = f"{_many(figure.images, 'image')}, {_many(figure.rows, 'row')}"
    return f"{size}, not defined" if math.isnan(figure.mean) else size


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _text(value: Any) -> str:
    """Anything in one line, without what Markdown would take for itself."""
    return re.sub(r"([\\|*<`])", r"\\\1", " ".join(str(value).split()))
