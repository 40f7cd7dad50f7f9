"""Findings as files: a row for each figure in CSV, a table for each group in Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from ..studies.results import to_csv
from .findings import Findings
from .metric import Metric
from .statistics import Finding

RESULTS: Final = "results.csv"
TABLES: Final = "results.md"
SIGNIFICANT: Final = 0.05
FEWEST: Final = 10
"""Images that a mark of significance needs; two alone can agree by chance half of the time."""
_WIDEST: Final = 6  # metrics side by side
_MARK: Final = "\N{DAGGER}"
_BLANK: Final = "\N{EN DASH}"
_UNMEASURED: Final = "not measured"
_ARROWS: Final = {"high": " \N{UPWARDS ARROW}", "low": " \N{DOWNWARDS ARROW}", "none": ""}


def results_csv(findings: Findings) -> bytes:
    """One row for each method and metric.

    Figures have three decimals, or as many as give the metric's largest three digits where all are
    below 0.01; p values have three digits. A field without a figure is empty.
    """
    return to_csv(
        [
            _record(findings, method, metric)
            for method in findings.methods
            for metric in findings.metrics
        ]
    )


def results_md(findings: Findings, *, title: str, about: Mapping[str, Any]) -> str:
    """The figures as Markdown: what was measured, a table a group of metrics, the protocols.

    Args:
        findings: of :func:`captum_clip.evaluation.findings.summarize`.
        title: of the page.
        about: what a reader must know, as model, data, seed and numbers; one line each.
    """
    lines = [f"# {_text(title)}", ""]
    lines += [f"- {_text(what)}: {_text(value)}" for what, value in about.items()]
    lines += ["", *_legend(findings), ""]
    for group, metrics in findings.groups.items():
        parts = list(_parts(metrics))
        for number, part in enumerate(parts, start=1):
            count = f" ({number} of {len(parts)})" if len(parts) > 1 else ""
            lines += [f"## {_text(group)}{count}", "", *_table(findings, part), ""]
    lines += ["## Protocols", ""]
    lines += [_protocol(findings, metric) for metric in findings.metrics]
    return "\n".join(lines) + "\n"


def _record(findings: Findings, method: str, metric: Metric) -> dict[str, Any]:
    by_method = findings.found[metric.name]
    finding, places = by_method[method], _places(by_method.values())
    nothing = (math.nan,) * 3
    mean, low, high = (round(value, places) for value in finding.interval or nothing)
    gap, gap_low, gap_high = (round(v, places) for v in (finding.difference or nothing)[:3])
    return {
        "method": method,
        "metric": metric.name,
        "mean": mean,
        "low": low,
        "high": high,
        "images": finding.images,
        "rows": finding.rows,
        "difference": gap,
        "difference_low": gap_low,
        "difference_high": gap_high,
        "p_holm": math.nan if finding.p_holm is None else float(f"{finding.p_holm:.3g}"),
        "reference": findings.reference,
        "images_paired": finding.images_paired,
        "better": metric.better,
    }


def _places(by_method: Iterable[Finding]) -> int:
    """Decimals of a metric: three, more where these would leave its largest figure one digit."""
    means = [abs(finding.interval.mean) for finding in by_method if finding.interval]
    largest = max((mean for mean in means if mean > 0), default=1.0)
    return 3 if largest >= 0.01 else 2 - math.floor(math.log10(largest))


def _legend(findings: Findings) -> list[str]:
    """How to read the tables."""
    everything = [finding for by in findings.found.values() for finding in by.values()]
    blank = any(_undefined(finding) for finding in everything)
    lines = [
        f"Figures with {findings.level * 100:g} % bootstrap intervals over images "
        f"({findings.resamples} resamples). \N{UPWARDS ARROW} high is good, "
        "\N{DOWNWARDS ARROW} low is good. **Bold**: the best of the methods that saw most images, "
        "and every baseline that is as good on as many. "
        f"{_MARK} differs from *{_text(findings.reference)}* (paired bootstrap, "
        f"p < {SIGNIFICANT} after Holm's correction for all methods in the column, on {FEWEST} "
        "images or more)." + (f" {_BLANK} not measured, or not defined." if blank else "")
    ]
    if findings.least_p >= SIGNIFICANT:
        lines += [
            "",
            f"With {findings.resamples} resamples and so many methods no corrected p value can be "
            f"below {findings.least_p:.2g}: a missing {_MARK} says nothing.",
        ]
    return lines


def _undefined(finding: Finding) -> bool:
    return finding.interval is None or math.isnan(finding.interval.mean)


def _parts(metrics: Sequence[Metric]) -> Iterator[Sequence[Metric]]:
    """Metrics in runs of nearly equal length that fit on a page."""
    count = math.ceil(len(metrics) / _WIDEST)
    ends = [round(part * len(metrics) / count) for part in range(count + 1)] if count else []
    for start, end in pairwise(ends):
        yield metrics[start:end]


def _table(findings: Findings, metrics: Sequence[Metric]) -> list[str]:
    """A pipe table, set so that its source can be read as well."""
    columns = [_column(findings, metric) for metric in metrics]
    apart = set(findings.baselines)
    rows = [["Method", *map(_name, metrics)]]
    for block, chosen in (("", False), ("*Baselines*", True)):
        methods = [method for method in findings.methods if (method in apart) is chosen]
        if methods and block:
            rows.append([block, *("" for _ in metrics)])
        rows += [[_label(findings, m), *(column[m] for column in columns)] for m in methods]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in rows
    ]


def _column(findings: Findings, metric: Metric) -> dict[str, str]:
    """The cell of each method."""
    by_method = findings.found[metric.name]
    places = _places(by_method.values())
    sign = {"high": 1, "low": -1, "none": 0}[metric.better]
    most = max((finding.images for finding in by_method.values()), default=0)
    values = {
        method: sign * round(finding.interval.mean, places)
        for method, finding in by_method.items()
        if finding.interval and not _undefined(finding) and finding.images == most
    }
    rivals = [value for method, value in values.items() if method not in findings.baselines]
    best = max(rivals) if sign and rivals else math.inf
    return {
        method: _cell(finding, places, bold=values.get(method, -math.inf) >= best)
        for method, finding in by_method.items()
    }


def _cell(finding: Finding, places: int, *, bold: bool) -> str:
    """As "**0.850** [0.800, 0.900] †"; the mean alone where there is no interval."""
    if finding.interval is None or _undefined(finding):
        return _BLANK
    mean, low, high = (_number(value, places) for value in finding.interval)
    cell = f"**{mean}**" if bold else mean
    if not math.isnan(finding.interval.low):
        cell += f" [{low}, {high}]"
    differs = finding.p_holm is not None and finding.p_holm < SIGNIFICANT
    differs &= finding.images_paired >= FEWEST
    return f"{cell} {_MARK}" if differs else cell


def _number(value: float, places: int) -> str:
    rounded = round(value, places) + 0.0  # + 0.0: no minus zero
    return f"{rounded:.{places}f}".replace("-", "\N{MINUS SIGN}")


def _label(findings: Findings, method: str) -> str:
    return _text(method) + (" (reference)" if method == findings.reference else "")


def _name(metric: Metric) -> str:
    return _text(metric.name.replace("_", " ")) + _ARROWS[metric.better]


def _protocol(findings: Findings, metric: Metric) -> str:
    """A metric's choices in one line, with the sizes of its samples; most methods share one."""
    sizes: dict[str, list[str]] = {}
    for method, finding in findings.found[metric.name].items():
        sizes.setdefault(_size(finding), []).append(_text(method))
    usual = max(sizes, key=lambda size: (size != _UNMEASURED, len(sizes[size])))
    others = [f"{size}: {', '.join(names)}" for size, names in sizes.items() if size != usual]
    return f"- **{_name(metric)}**: {_text(metric.protocol)} ({'; '.join([usual, *others])})"


def _size(finding: Finding) -> str:
    if finding.interval is None:
        return _UNMEASURED
    size = f"{_many(finding.images, 'image')}, {_many(finding.rows, 'row')}"
    return f"{size}, not defined" if _undefined(finding) else size


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _text(given: Any) -> str:
    """Anything in one line, without what Markdown would take for itself."""
    return re.sub(r"([\\|*<`])", r"\\\1", " ".join(str(given).split()))
