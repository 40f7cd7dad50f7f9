"""`evaluate`: a config in, tables, curves and a report out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..errors import InputError
from . import report
from .config import EvaluationConfig
from .plan import RESULTS, EvaluationPlan, make_plan
from .report import examples_of, perturbation_curves
from .run import MANIFEST, run
from .storage import Storage
from .summary import Summary, summarize
from .table import Metric, Table, concatenate, from_arrays
from .tasks import TASKS
from .tasks.perturbation_task import LEAST_FIRST, MOST_FIRST, TITLES
from .units import Content, ModelLoader, Progress, read_unit, to_json

SkippedEntries = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        output: its folder or URL.
        table: every measured value, a row each, with the columns `task`, `metric`, `method`,
            `sample` (its name), `region` (what is explained, "a horse"), `part` (of metrics that
            are made of several numbers), `x` (of curves: the share of the pixels removed) and
            `value`. All that follows is made from it.
        summary: every method by every metric.
        curves: names of the files with curves.
        skipped: data set -> samples, regions or maps that were left out, with the reason.
    """

    output: str
    table: Table
    summary: Summary
    curves: tuple[str, ...]
    skipped: SkippedEntries


def evaluate(config: EvaluationConfig, *, progress: Progress | None = None) -> Evaluation:
    """Measure what is not there yet, then write all tables.

    Started again after a stop, it goes on with the units that are there, and ends with the same
    figures. docs/evaluation.md describes what the folder holds.

    Args:
        config: what to measure.
        progress: called now and then with how many images were done, and how many there are, first
            with what an earlier run had done; an image counts once a method.

    Raises:
        CaptumClipError: a model, data set, method or task that cannot be worked with; an output
            folder that holds something else, or in which another run is at work; data of which
            nothing can be used.

    Example:
        >>> from captum_clip.evaluation import EvaluationConfig, evaluate
        >>> config = EvaluationConfig("demo/vit", "out", images=100)
        >>> evaluate(config).table  # doctest: +SKIP
    """
    return run(partial(make_plan, config), _summarise, config, progress)


def _summarise(
    plan: EvaluationPlan, manifest: Content, output: Storage, models: ModelLoader
) -> Evaluation:
    """Every file; the table of figures comes last."""
    table, skipped = _collect(plan, output)
    done = {"images": {data.name: len(data) for data in plan.data}, "skipped": skipped}
    done = {**manifest, **done, "state": "measured"}
    output.write(MANIFEST, to_json(done))
    _check_measured(plan, table, skipped, output)
    summary = summarize(
        table,
        _groups(plan, table),
        [method.name for method in plan.methods],
        reference=plan.reference,
        baselines=[method.name for method in plan.methods if method.baseline],
        resamples=plan.config.resamples,
        seed=plan.config.seed,
    )
    curves = {name: (what, file) for name, what, file in _draw(plan, table, summary)}
    for name, (_, file) in curves.items():
        output.write(name, file)
    title, about = f"Evaluation of {plan.label}", _about(plan, skipped)
    tables = report.results_md(summary, title=title, about=about)
    output.write(report.TABLES, tables.encode())
    page = report.report_html(
        summary,
        title=title,
        about=about,
        curves=dict(curves.values()),
        examples=examples_of(plan, table, summary, models.load(plan.model)),
        manifest=done,
    )
    output.write(report.REPORT, page.encode())
    output.write(RESULTS, report.results_csv(summary))
    return Evaluation(output.root, table, summary, tuple(curves), skipped)


def _collect(plan: EvaluationPlan, output: Storage) -> tuple[Table, SkippedEntries]:
    """The whole table, and each sample with each of its reasons, once."""
    tables, reasons = [], [set[tuple[int, str]]() for _ in plan.data]
    for unit in plan.units:
        arrays, skipped = read_unit(output, unit)
        place = plan.data_of(unit)
        tables.append((from_arrays(arrays), plan.data[place].names))
        reasons[place] |= {*skipped}
    entries = {
        data.name: [{"sample": data.names[number], "reason": why} for number, why in sorted(own)]
        for data, own in zip(plan.data, reasons, strict=True)
    }
    return concatenate(tables), entries


def _check_measured(
    plan: EvaluationPlan, table: Table, skipped: SkippedEntries, output: Storage
) -> None:
    """Raise an InputError for data of which nothing can be used."""
    for data, tasks in zip(plan.data, plan.tasks, strict=True):
        if table["task"].isin(tasks).any():
            continue
        listed = ", ".join(tasks)
        if not skipped[data.name]:
            methods = ", ".join(method.name for method in plan.methods)
            raise InputError(
                f"{data.name}: {listed} measures nothing of {methods} on its {len(data)} samples."
            )
        raise InputError(
            f"{data.name}: none of the {len(data)} samples can be used for {listed}; the first: "
            f"{skipped[data.name][0]['reason'].rstrip('.')}. All reasons are in "
            f"{output.root}/{MANIFEST}."
        )


def _groups(plan: EvaluationPlan, table: Table) -> dict[str, Sequence[Metric]]:
    """The tables of all tasks, without metrics that no method could be measured by."""
    measured = set(table["metric"].unique())
    groups: dict[str, Sequence[Metric]] = {}
    for task in (task for tasks in plan.tasks for task in tasks):
        for title, metrics in TASKS[task].metrics(plan.config).items():
            kept = [metric for metric in metrics if metric.name in measured]
            if kept:
                groups[title] = kept
    return groups


def _draw(plan: EvaluationPlan, table: Table, summary: Summary) -> Iterator[tuple[str, str, bytes]]:
    """A figure of each pair of curves: its name, what it shows, and the PNG file."""
    curves = dict(iter(table[table["x"].notna()].groupby("metric", observed=True, sort=False)))
    for end in [name.removeprefix(MOST_FIRST) for name in curves if name.startswith(MOST_FIRST)]:
        fill, _, kind = end.partition("_")
        title = f"{plan.label}: removed pixels become {TITLES[fill]}, map of the {kind} class"
        pair = curves[MOST_FIRST + end], curves[LEAST_FIRST + end]
        file = io.BytesIO()
        perturbation_curves(*pair, summary, title=title).savefig(file, format="png", dpi="figure")
        yield f"curves_{end}.png", title, file.getvalue()


def _about(plan: EvaluationPlan, skipped: SkippedEntries) -> dict[str, Any]:
    """The lines over the tables."""
    lines: dict[str, Any] = {
        "made by": report.command_of(plan.config, plan.label),
        "model": f"{plan.label}, fingerprint {plan.fingerprint[:12]}",
    }
    for data, tasks in zip(plan.data, plan.tasks, strict=True):
        text = f"{len(data)} samples"
        if skipped[data.name]:
            what = "samples, regions or maps left out (manifest.json has the reasons)"
            text += f", {len(skipped[data.name])} {what}"
        if "void" in data.identity():
            text += f", void pixels: {data.identity()['void']}"
        lines[f"data {data.name}"] = f"{text}; {', '.join(tasks)}"
    other = plan.config.against == "image"
    kind = "another image of the same thing" if other else "their text"
    lines |= {"regions are explained by": kind, "seed": plan.config.seed}
    return {**lines, **{method.name: method.what for method in plan.methods}}
