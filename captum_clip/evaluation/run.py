"""`evaluate`: a config in, tables and curves out, from which a stop at any moment takes nothing."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from .. import runs
from ..checks import error_context
from ..errors import InputError
from ..models import ClipAdapter
from ..runs import manifest
from . import report
from .batch import Batch, ModelContext
from .config import EvaluationConfig
from .method_on_batch import MethodOnBatch
from .metric import Metric
from .pictures import examples_of, perturbation_curves
from .plan import Plan, Shard, make_plan
from .summary import Summary, summarize
from .table import Skipped, Table, concatenate, from_arrays, table_of, to_arrays
from .tasks import TASKS
from .tasks.perturbation import LEAST_FIRST, MOST_FIRST, TITLES

SkippedEntries = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation came to.

    Attributes:
        output: its folder or URL.
        table: every measured value, a row each, with the columns `task`, `metric`, `method`,
            `sample` (its name), `region` (what is explained, "a horse"), `part` (of metrics that
            are made of several numbers), `x` (of curves: the share of the pixels removed) and
            `value`. All that follows is made from it.
        summary: every method by every metric.
        pictures: names of the files with curves.
        skipped: data set -> samples, regions or maps that were left out, with the reason.
    """

    output: str
    table: Table
    summary: Summary
    pictures: tuple[str, ...]
    skipped: SkippedEntries

    @property
    def findings(self) -> Summary:
        """The old name of `summary`, whose figures are a table now."""
        warnings.warn(
            "Evaluation.findings is now Evaluation.summary; its figures are summary.figures, a "
            "table.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.summary


def evaluate(config: EvaluationConfig, *, progress: runs.Progress | None = None) -> Evaluation:
    """Measure what is not there yet, then write all tables.

    Started again after a stop, it goes on with the shards that are there, and ends with the same
    figures. docs/evaluation.md says what the folder holds.

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
    output = runs.storage_of(config.output)
    count = config.threads or torch.get_num_threads()
    engine = runs.Engine(config.engine, config.workers, config.gpus, count)
    engine.check_device()
    with runs.threads(count), output.lock():
        models = runs.ModelLoader(config.processor, config.tokenizer)
        plan = make_plan(config, models)
        begun = manifest.begin(_KIND, plan.about(), output, engine)
        runs.compute_missing(
            partial(EvaluationWorker, plan),
            plan.shards,
            output,
            engine,
            parse=_parse_final,
            before={manifest.NAME: manifest.to_bytes(begun)},
            result=report.RESULTS,
            models=models,
            progress=progress,
        )
        table, skipped = _collect(plan, output)
        done = {"images": {data.name: len(data) for data in plan.data}, "skipped": skipped}
        done = {**begun, **done, "state": "measured"}
        output.write(manifest.NAME, manifest.to_bytes(done))
        _check_measured(plan, table, skipped, output)
        clip, _ = models.load(plan.model, "cpu")
        return _write(plan, table, done, output, clip)


class EvaluationWorker:
    """A model with a plan; the last batch stays for the next method."""

    def __init__(self, plan: Plan, models: runs.ModelLoader) -> None:
        device = "cuda" if plan.config.gpus else "cpu"
        clip = models.load_same(plan.model, device, plan.fingerprint, "evaluation")
        self._plan = plan
        self._contexts = [ModelContext(clip, data, plan.config) for data in plan.data]
        self._last: tuple[tuple[int, tuple[int, ...]], Batch] | None = None

    def compute(self, units: Sequence[Shard], save: runs.Save, advance: runs.Advance) -> None:
        """Compute shards in their order."""
        for shard in units:
            save(shard.name, runs.to_npz(self._measure(shard), shard))
            advance(shard.size)

    def _measure(self, shard: Shard) -> runs.Arrays:
        batch, method = self._batch(shard), self._plan.methods[shard.method]
        maps = MethodOnBatch(batch, method)
        with error_context(f"{method.name} on {batch.context.data.name}"):
            rows = {
                name: list(TASKS[name].measure(maps) if batch.views else ())
                for name in self._plan.tasks[shard.data]
            }
        return to_arrays(table_of(method.name, rows), [*batch.skipped, *maps.skipped])

    def _batch(self, shard: Shard) -> Batch:
        key = (shard.data, shard.numbers)
        if self._last is None or self._last[0] != key:
            self._last = key, Batch(self._contexts[shard.data], shard.numbers)
        return self._last[1]


def _parse(arrays: runs.Arrays, shard: Shard) -> tuple[Table, Skipped]:
    return from_arrays(arrays, shard.numbers)


def _parse_final(arrays: runs.Arrays, shard: Shard) -> tuple[Table, Skipped]:
    """The same of a shard that need not be computed again."""
    table, skipped = _parse(arrays, shard)
    if any(reason.endswith(runs.AGAIN) for _, reason in skipped):
        raise ValueError("some of its samples could not be read")
    return table, skipped


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Between the evaluation in the folder and this one, in words: what decides the rest first."""
    settings = manifest.changes(before["config"], now["config"])
    settings += manifest.changes(before["model"], now["model"])
    return settings or manifest.changes({name: before[name] for name in now}, now)


_KIND: Final = manifest.ManifestFormat(
    "evaluation",
    "captum_clip evaluation 1",
    {"config": dict, "model": dict, "data": list, "methods": list, "tasks": list},
    _differences,
)


def _collect(plan: Plan, output: runs.Storage) -> tuple[Table, SkippedEntries]:
    """The whole table, and each sample with each of its reasons, once."""
    tables, reasons = [], [set[tuple[int, str]]() for _ in plan.data]
    for shard in plan.shards:
        table, skipped = runs.read_unit(output, shard, _parse)
        tables.append((table, plan.data[shard.data].names))
        reasons[shard.data] |= {*skipped}
    entries = {
        data.name: [{"sample": data.names[number], "reason": why} for number, why in sorted(own)]
        for data, own in zip(plan.data, reasons, strict=True)
    }
    return concatenate(tables), entries


def _check_measured(
    plan: Plan, table: Table, skipped: SkippedEntries, output: runs.Storage
) -> None:
    """Raise an InputError for data of which nothing can be used."""
    for data, tasks in zip(plan.data, plan.tasks, strict=True):
        if table["task"].isin(tasks).any():
            continue
        said = ", ".join(tasks)
        if not skipped[data.name]:
            methods = ", ".join(method.name for method in plan.methods)
            raise InputError(
                f"{data.name}: {said} measures nothing of {methods} on its {len(data)} samples."
            )
        raise InputError(
            f"{data.name}: none of the {len(data)} samples can be used for {said}; the first: "
            f"{skipped[data.name][0]['reason'].rstrip('.')}. All reasons are in "
            f"{output.root}/{manifest.NAME}."
        )


def _write(
    plan: Plan, table: Table, done: dict[str, Any], output: runs.Storage, clip: ClipAdapter
) -> Evaluation:
    """Every file; the table of figures comes last."""
    skipped = done["skipped"]
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
        examples=examples_of(plan, table, summary, clip),
        manifest=done,
    )
    output.write(report.REPORT, page.encode())
    output.write(report.RESULTS, report.results_csv(summary))
    return Evaluation(output.root, table, summary, tuple(curves), skipped)


def _groups(plan: Plan, table: Table) -> dict[str, Sequence[Metric]]:
    """The tables of all tasks, without metrics that no method could be measured by."""
    measured = set(table["metric"].unique())
    groups: dict[str, Sequence[Metric]] = {}
    for task in (task for tasks in plan.tasks for task in tasks):
        for title, metrics in TASKS[task].metrics(plan.config).items():
            kept = [metric for metric in metrics if metric.name in measured]
            if kept:
                groups[title] = kept
    return groups


def _draw(plan: Plan, table: Table, summary: Summary) -> Iterator[tuple[str, str, bytes]]:
    """A picture of each pair of curves: its name, what it shows, and the PNG file."""
    curves = dict(iter(table[table["x"].notna()].groupby("metric", observed=True, sort=False)))
    for end in [name.removeprefix(MOST_FIRST) for name in curves if name.startswith(MOST_FIRST)]:
        fill, _, kind = end.partition("_")
        title = f"{plan.label}: removed pixels become {TITLES[fill]}, map of the {kind} class"
        pair = curves[MOST_FIRST + end], curves[LEAST_FIRST + end]
        file = io.BytesIO()
        perturbation_curves(*pair, summary, title=title).savefig(file, format="png", dpi="figure")
        yield f"curves_{end}.png", title, file.getvalue()


def _about(plan: Plan, skipped: SkippedEntries) -> dict[str, Any]:
    """The lines over the tables."""
    lines: dict[str, Any] = {
        "made by": report.command_of(plan.config, plan.label),
        "model": f"{plan.label}, fingerprint {plan.fingerprint[:12]}",
    }
    for data, tasks in zip(plan.data, plan.tasks, strict=True):
        said = f"{len(data)} samples"
        if skipped[data.name]:
            what = "samples, regions or maps left out (manifest.json says why)"
            said += f", {len(skipped[data.name])} {what}"
        if "void" in data.identity():
            said += f", void pixels: {data.identity()['void']}"
        lines[f"data {data.name}"] = f"{said}; {', '.join(tasks)}"
    other = plan.config.against == "image"
    kind = "another picture of the same thing" if other else "their text"
    lines |= {"regions are explained by": kind, "seed": plan.config.seed}
    return {**lines, **{method.name: method.what for method in plan.methods}}
