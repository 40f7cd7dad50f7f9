"""`evaluate`: a config becomes a plan, tried beforehand; its units become tables and a report."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from typing_extensions import override

from .._version import __version__
from ..attr.registry import MAMOOLER, report_method
from ..checks import check_choice, error_context, find_repeated
from ..errors import InputError, public
from ..files import draw_order
from ..models import ClipAdapter
from . import report
from .batch import Batch, MethodOnBatch, ModelContext
from .config import DATA, EvaluationConfig, check_config, full_name, label_of
from .data import DataSet, open_data, options_of
from .methods import Method, PrecomputedMaps, check_method, method_of, named_methods
from .run import (
    MANIFEST,
    Arrays,
    Content,
    ModelLoader,
    Plan,
    Progress,
    Skipped,
    Unit,
    Worker,
    read_unit,
    run,
    slug,
    to_json,
)
from .storage import Storage
from .summary import Summary, summarize
from .table import Metric, Queries, Table, concatenate, table_of
from .tasks import TASKS
from .tasks.faithfulness_tasks import LEAST_FIRST, MOST_FIRST, TITLES

RESULTS: Final = "results.csv"
_OF_IMAGES: Final = ("localization", "signs")
SkippedEntries = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, eq=False)
class EvaluationPlan(Plan):
    """An evaluation that can begin; each of its jobs is a method on a data set."""

    noun = "evaluation"
    result = RESULTS

    config: EvaluationConfig
    model: str  # what `load_clip` takes, a folder by its full path
    identity: dict[str, str]  # of the model
    data: tuple[DataSet, ...]
    tasks: tuple[tuple[str, ...], ...]  # of each data set
    methods: tuple[Method, ...]  # precomputed maps last
    reference: str  # the method that the others are compared with
    units: tuple[Unit, ...]

    @property
    def label(self) -> str:
        """The name of the model in results."""
        return label_of(self.config.model)

    def data_of(self, unit: Unit) -> int:
        """The number of a unit's data set."""
        return unit.job // len(self.methods)

    @override
    def about(self) -> Content:
        return {
            "config": self.config.identity(),
            "model": {"name": self.label, "identity": self.identity},
            "data": [{"name": data.name, **data.identity()} for data in self.data],
            "methods": [method.identity() for method in self.methods],
            "tasks": [list(tasks) for tasks in self.tasks],
        }

    @override
    def worker(self, models: ModelLoader) -> Worker:
        clip = models.load(self.model, self.config.device, self.identity)
        contexts = [ModelContext(clip, data, self.config) for data in self.data]
        last: tuple[tuple[int, tuple[int, ...]], Batch] | None = None

        def compute(units: Sequence[Unit]) -> Iterator[tuple[Unit, Arrays, Skipped]]:
            nonlocal last
            for unit in units:
                place = self.data_of(unit)
                if last is None or last[0] != (place, unit.numbers):
                    last = (place, unit.numbers), Batch(contexts[place], unit.numbers)
                yield unit, *self._measure(unit, last[1])

        return compute

    def _measure(self, unit: Unit, batch: Batch) -> tuple[Arrays, Skipped]:
        method = self.methods[unit.job % len(self.methods)]
        maps = MethodOnBatch(batch, method)
        with error_context(f"{method.name} on {batch.context.data.name}"):
            rows = {
                name: list(TASKS[name].measure(maps) if batch.views else ())
                for name in self.tasks[self.data_of(unit)]
            }
        return table_of(method.name, rows), [*batch.skipped, *maps.skipped]


def make_plan(config: EvaluationConfig, models: ModelLoader) -> EvaluationPlan:
    """Load the model, open the data, and try every method on one black image."""
    data = _open_data(config)
    tasks = _tasks(config, data)
    if not config.data:
        data = tuple(data_set for data_set, own in zip(data, tasks, strict=True) if own)
        tasks = tuple(own for own in tasks if own)
    if config.maps:
        _check_names(data)
    for name in (*config.methods, *([] if config.maps else filter(None, [config.reference]))):
        check_method(name)
    precomputed = [PrecomputedMaps(folder) for folder in config.maps]
    model = full_name(config.model)
    clip = models.load(model)
    for data_set in data:
        if data_set.classes and config.against == "text":
            with error_context(data_set.name):  # what the model cannot read as a text
                prompts = data_set.prompts
                clip.tokenize([p for name in data_set.classes for p in prompts.get(name, [name])])
    names = named_methods(clip, config.methods)
    named = [method_of(name, clip, seed=config.seed) for name in names]
    methods = (*named, *precomputed)
    reference = _reference(config, clip, [method.name for method in methods])
    black = clip.preprocess(torch.zeros(64, 64, 3, dtype=torch.uint8))
    query = Queries(black, clip.encode_text([""]).detach(), ("",), ("",), (0,))
    for method in named:  # what depends on nothing but the model and the method fails here
        method.maps(clip, query)
    units, who = tuple(_units(config, data, methods)), clip.identity()
    return EvaluationPlan(config, model, who, data, tasks, methods, reference, units)


def _units(
    config: EvaluationConfig, data: Sequence[DataSet], methods: Sequence[Method]
) -> Iterator[Unit]:
    """Every data set in chunks; all methods of a chunk follow each other.

    Samples come in the order in which the seed would draw them, so the first are a sample of all;
    costly methods see `slow_images` of them.
    """
    size = config.chunk_size
    for place, data_set in enumerate(data):
        folder = f"units/{place:02d}-{slug(data_set.name)}"
        order = draw_order(data_set.names, config.seed)
        for start in range(0, len(data_set), size):
            for number, method in enumerate(methods):
                seen = config.slow_images if method.costly else len(data_set)
                numbers = tuple(sorted(order[start : min(start + size, seen)]))
                name = f"{folder}/{start:06d}-{number:02d}-{slug(method.name)}.npz"
                if numbers:
                    label = f"{data_set.name}, {method.name}"
                    yield Unit(name, place * len(methods) + number, numbers, label)


def _open_data(config: EvaluationConfig) -> tuple[DataSet, ...]:
    """The data sets, each with the options that it takes; every option serves one of them."""
    names = config.data or DATA
    options = {"template": config.template, "text": config.text, "void": config.void}
    for option, value in options.items():
        if value is not None and not any(option in options_of(name) for name in names):
            raise InputError(f"none of the data {', '.join(names)} takes a {option}.")
    data = []
    for name in names:
        own: dict[str, Any] = {n: options[n] for n in options_of(name) if n in options}
        data.append(open_data(name, number=config.images, seed=config.seed, **own))
    return tuple(data)


def _tasks(config: EvaluationConfig, data: Sequence[DataSet]) -> tuple[tuple[str, ...], ...]:
    """The tasks of each data set, each of one data set only."""
    for name in config.tasks:
        check_choice(name, TASKS, name="a task")
    wanted = config.tasks or tuple(name for name, task in TASKS.items() if task.by_default)
    if config.against == "image":
        other = [name for name in config.tasks if name not in _OF_IMAGES]
        if other:
            raise InputError(
                f"{other[0]} explains texts; `against='image'` serves {', '.join(_OF_IMAGES)}."
            )
        wanted = config.tasks or _OF_IMAGES
    for name in wanted:
        serving = [data_set.name for data_set in data if name in data_set.tasks]
        if len(serving) > 1:
            raise InputError(
                f"{' and '.join(serving)} are both measured by {name}; give each its own "
                "output folder, so that one table has one data set."
            )
        if name in config.tasks and not serving:
            served = ", ".join(dict.fromkeys(task for data_set in data for task in data_set.tasks))
            which = "the data" if config.data else "the demo's data"
            raise InputError(
                f"{which} do not serve the task {name}, they serve {served}; give data that do."
            )
    tasks = tuple(tuple(name for name in wanted if name in data_set.tasks) for data_set in data)
    for data_set, own in zip(data, tasks, strict=True):
        if not own and config.data:
            raise InputError(
                f"{data_set.name} serves none of {', '.join(wanted)}; it serves "
                f"{', '.join(data_set.tasks)}."
            )
    return tasks


def _check_names(data: Sequence[DataSet]) -> None:
    """Precomputed maps are known by the names of their samples alone."""
    owners: dict[str, str] = {}
    for data_set in data:
        for name in data_set.names:
            if owners.setdefault(name, data_set.name) != data_set.name:
                raise InputError(
                    f"{owners[name]} and {data_set.name} both have a sample {name}, so "
                    "that maps made elsewhere cannot be told apart; name one data set, and measure "
                    "the other in an output folder of its own."
                )


def _reference(config: EvaluationConfig, clip: ClipAdapter, names: Sequence[str]) -> str:
    repeated = find_repeated(names)
    if repeated:
        raise InputError(
            f"two methods are called {repeated!r}; folders of maps need names of their own."
        )
    wanted = config.reference or MAMOOLER
    if wanted not in names:  # where it may be a folder of maps
        wanted = report_method(clip.tower) if wanted == MAMOOLER else wanted
    if wanted in names:
        return wanted
    if config.reference is None:
        return names[0]
    raise InputError(f"the reference {wanted!r} is not among the methods {', '.join(names)}.")


@dataclass(frozen=True, eq=False, repr=False)
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

    def __repr__(self) -> str:
        methods = list(self.table["method"].unique())
        return f"Evaluation(output={self.output!r}, values={len(self.table)}, methods={methods})"

    @property
    def findings(self) -> list[str]:
        """What to take away, a line each, as at the head of the report."""
        return report.findings(self.summary)


@public("evaluate")
def evaluate(config: EvaluationConfig, *, progress: Progress | None = None) -> Evaluation:
    """Measure what is not there yet, then write all tables.

    Started again after a stop, it goes on with the units that are there, and ends with the same
    figures. docs/evaluation.md describes what the folder holds.

    Args:
        config: what to measure.
        progress: called now and then with how many images were done, how many there are, and the
            data set and method that were at work, first with what an earlier run had done; an
            image counts once a method.

    Raises:
        CaptumClipError: a model, data set, method or task that cannot be worked with; an output
            folder that holds something else, or in which another run is at work; data of which
            nothing can be used.

    Example:
        >>> from captum_clip.evaluation import EvaluationConfig, evaluate
        >>> config = EvaluationConfig("demo/vit", "out", images=100)
        >>> evaluate(config).table  # doctest: +SKIP
    """
    check_config(config, EvaluationConfig)
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
    clip = models.load(plan.model)
    contexts = {
        task: ModelContext(clip, data, plan.config)
        for data, tasks in zip(plan.data, plan.tasks, strict=True)
        for task in tasks
    }
    title, about = f"Evaluation of {plan.label}", _about(plan, skipped)
    tables = report.results_md(summary, title=title, about=about)
    output.write(report.TABLES, tables.encode())
    page = report.report_html(
        summary,
        title=title,
        about=about,
        curves=dict(curves.values()),
        examples=report.examples_of(plan.methods, contexts, table, summary),
        manifest=done,
    )
    output.write(report.REPORT, page.encode())
    if "latex" in plan.config.formats:
        output.write(report.LATEX, report.results_tex(summary).encode())
    if "csv" in plan.config.formats:
        output.write(report.VALUES, report.values_csv(table))
    output.write(RESULTS, report.results_csv(summary))
    return Evaluation(output.root, table, summary, tuple(curves), skipped)


def _collect(plan: EvaluationPlan, output: Storage) -> tuple[Table, SkippedEntries]:
    """The whole table, and each sample with each of its reasons, once."""
    units, reasons = [], [set[tuple[int, str]]() for _ in plan.data]
    for unit in plan.units:
        arrays, skipped = read_unit(output, unit)
        place = plan.data_of(unit)
        units.append((arrays, plan.data[place].names))
        reasons[place] |= {*skipped}
    entries = {
        data.name: [{"sample": data.names[number], "reason": why} for number, why in sorted(own)]
        for data, own in zip(plan.data, reasons, strict=True)
    }
    return concatenate(units), entries


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
        report.perturbation_curves(*pair, summary, title=title).savefig(
            file, format="png", dpi="figure"
        )
        yield f"curves_{end}.png", title, file.getvalue()


def _about(plan: EvaluationPlan, skipped: SkippedEntries) -> dict[str, Any]:
    """The lines over the tables."""
    lines: dict[str, Any] = {
        "made by": f"captum-clip {__version__}",
        "model": f"{plan.label}, weights {plan.identity['weights'][:12]}",
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
