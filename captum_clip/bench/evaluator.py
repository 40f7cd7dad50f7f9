"""`evaluate`: a config becomes a plan, tried beforehand; its units become tables and a report."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from itertools import chain
from typing import Any, Final

import torch

from .._version import __version__
from ..attr.registry import MAMOOLER, report_method
from ..checks import check_choice, error_context, find_repeated
from ..errors import InputError, argument, public
from ..files import draw_order, slug
from ..folders.storage import Content, Skipped, Storage
from ..folders.workers import ModelLoader, Progress, full_name, label_of
from ..models.adapter import ClipAdapter
from . import methods, report, run
from .batch import Batch, MethodOnBatch, ModelContext, measure_gate
from .data import DATA_SETS, DataSet, open_data
from .methods import WITHOUT_MAP, Method
from .run import MANIFEST, Arrays, EvaluationConfig, Unit
from .table import (
    OF_GROUP,
    Metric,
    Queries,
    Summary,
    Table,
    join_tables,
    summarize,
    table_of,
    with_groups,
)
from .tasks import TASKS, tasks_of
from .tasks.effects import EFFECT_SPREAD, fitted
from .tasks.faithfulness import LEAST_FIRST, MOST_FIRST, TITLES

RESULTS: Final = "results.csv"
_OF_IMAGES: Final = ("localization", "signs")
DataAndTasks = tuple[tuple[DataSet, tuple[str, ...]], ...]
"""Data sets with the tasks of each."""
SkippedEntries = dict[str, list[dict[str, Any]]]
"""Name of a data set -> "sample" and "reason" of all that was left out of it."""


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        output: its folder or URL.
        table: every measured value, a row each. Its columns are `task`, `metric`, `method`,
            `sample` (its name), `region` (what is explained, "a horse"), `part` (for metrics that
            are made of several numbers), `x` (for curves: the share of the pixels removed) and
            `value`. All that follows is made from it.
        summary: every method by every metric.
        curves: names of the files with curves.
        skipped: data set -> samples, regions or maps that were left out, with the reason.
        model: its name and its identity.
    """

    output: str
    table: Table
    summary: Summary
    curves: tuple[str, ...]
    skipped: SkippedEntries
    model: Content

    def __repr__(self) -> str:
        methods = list(self.table["method"].unique())
        return f"Evaluation(output={self.output!r}, values={len(self.table)}, methods={methods})"

    @property
    def findings(self) -> list[str]:
        """What to take away, a line each, as at the head of the report."""
        return report.findings(self.summary)


def check_pandas() -> None:
    """Raise InputError where the extra is missing, before anything is measured."""
    if find_spec("pandas") is None:
        raise InputError("pandas is needed: pip install 'captum-clip[evaluation]'.")


@public("evaluate")
def evaluate(config: EvaluationConfig, *, progress: Progress | None = None) -> Evaluation:
    """Measure what is not there yet, then write all tables.

    Started again after a stop, it goes on with the units that are there, and ends with the same
    figures. docs/evaluation.md describes what the folder holds.

    Args:
        config: what to measure.
        progress: called now and then with how many images were done, how many there are, and the
            current data set and method. The first call has what an earlier run did. An image counts
            once per method.

    Raises:
        CaptumClipError: a model, data set, method or task that cannot be worked with; an output
            folder that holds something else, or in which another run is at work; data of which
            nothing can be used.

    Example:
        >>> from captum_clip.bench import EvaluationConfig, evaluate
        >>> config = EvaluationConfig("demo/vit", "out", images=100)
        >>> evaluate(config).table  # doctest: +SKIP
    """
    check_pandas()
    return run.run(config, make_plan, _write_results, progress)


@dataclass(frozen=True, eq=False)
class EvaluationPlan(run.Plan):
    """An evaluation that can begin; each of its jobs is a method on a data set."""

    noun = "evaluation"
    result = RESULTS

    config: EvaluationConfig
    model: str  # what `load_clip` takes, a folder by its full path
    identity: dict[str, str]  # of the model
    data: DataAndTasks
    methods: tuple[Method, ...]  # precomputed maps last
    reference: str  # the method that the others are compared with
    units: tuple[Unit, ...]

    @property
    def label(self) -> str:
        """The name of the model in results."""
        return label_of(self.config.model)

    def manifest(self) -> Content:
        return {
            "config": self.config.identity(),
            "model": {"name": self.label, "identity": self.identity},
            "data": [{"name": data.name, **data.identity()} for data, _ in self.data],
            "methods": [method.identity() for method in self.methods],
            "tasks": [list(tasks) for _, tasks in self.data],
        }

    def tables_of(self, tasks: Iterable[str]) -> dict[str, list[Metric]]:
        """Title of a table -> its metrics, of all tables of tasks."""
        return dict(chain(*(TASKS[task].metrics(self.config).items() for task in tasks)))

    def job_of(self, unit: Unit) -> tuple[int, Method]:
        """The number of a unit's data set, and its method."""
        at, number = divmod(unit.job, len(self.methods))
        return at, self.methods[number]

    def worker(self, models: ModelLoader) -> run.Worker:
        clip = models.load(self.model, self.config.device, self.identity)
        contexts = [ModelContext(clip, data, self.config) for data, _ in self.data]
        # the methods of a chunk follow each other, and share its batch
        return partial(self._measure, contexts, lru_cache(1)(Batch))

    def _measure(
        self,
        contexts: Sequence[ModelContext],
        make_batch: Callable[[ModelContext, Sequence[int]], Batch],
        unit: Unit,
        report_share: run.TellShare,
    ) -> tuple[Arrays, list[Skipped]]:
        at, method = self.job_of(unit)
        batch, (data, tasks) = make_batch(contexts[at], unit.numbers), self.data[at]
        on_batch, rows = MethodOnBatch(batch, method), defaultdict[str, list[Arrays]](list)
        with error_context(f"{method.name} on {data.name}"):
            for number, task in enumerate(tasks if batch.views else ()):
                samples = set[int]()  # of which there are rows: some tasks go image by image
                for block in TASKS[task].rows(batch, on_batch):
                    rows[task].append(block)
                    samples |= {*block["sample"].tolist()}
                    report_share((number + len(samples) / len(batch.views)) / len(tasks))
        return table_of(method.name, rows), [*batch.skipped, *on_batch.skipped]


def make_plan(config: EvaluationConfig, models: ModelLoader) -> EvaluationPlan:
    """Load the model, open the data, and try every method on one black image."""
    data = _data_and_tasks(config)
    for name in config.methods:
        methods.check_measured(name)
    precomputed = [methods.PrecomputedMaps(folder) for folder in config.maps]
    model = full_name(config.model)
    clip = models.load(model)
    for data_set, _ in data if config.against == "text" else ():
        with error_context(data_set.name):  # a class that the model cannot read as a text
            prompts = [data_set.prompts.get(name, [name]) for name in data_set.classes]
            if prompts:
                clip.tokenize([*chain.from_iterable(prompts)])
    tasks = [TASKS[task] for _, names in data for task in names]
    offered = methods.methods_for(clip)
    rivals = [name for task in tasks for name in task.rivals if name in offered]
    names = dict.fromkeys((*methods.named_methods(clip, config.methods), *rivals))
    named = [methods.method_of(name, clip, seed=config.seed) for name in names]
    answered = {name for task in tasks for name in task.without_map}
    predictors = [methods.predictor(name) for name in WITHOUT_MAP if name in answered]
    every = (*named, *predictors, *precomputed)
    reference = _reference(config, clip, [method.name for method in every])
    black = clip.preprocess(torch.zeros(64, 64, 3, dtype=torch.uint8))
    query = Queries(black, clip.encode_text([""]).detach(), ("",), ("",), (0,))
    for method in named:  # what depends on nothing but the model and the method fails here
        method.maps(clip, query)
    units = tuple(_units(config, [data_set for data_set, _ in data], every))
    return EvaluationPlan(config, model, clip.identity(), data, every, reference, units)


def _units(
    config: EvaluationConfig, data: Sequence[DataSet], methods: Sequence[Method]
) -> Iterator[Unit]:
    """Every data set in chunks; all methods of a chunk follow each other.

    Samples come in the order in which the seed would draw them, so the first are a sample of all;
    costly methods see `slow_images` of them.
    """
    size = config.chunk_size
    for at, data_set in enumerate(data):
        folder = f"units/{at:02d}-{slug(data_set.name)}"
        order = draw_order(data_set.names, config.seed)
        for start in range(0, len(data_set), size):
            for number, method in enumerate(methods):
                end = config.slow_images if method.costly else len(data_set)
                if numbers := tuple(sorted(order[start : min(start + size, end)])):
                    yield Unit(
                        f"{folder}/{start:06d}-{number:02d}-{slug(method.name)}.npz",
                        at * len(methods) + number,
                        numbers,
                        f"{data_set.name}, {method.name}",
                    )


def _open_data(config: EvaluationConfig) -> Iterator[DataSet]:
    """The data sets, each with the options that it takes; every option serves one of them."""
    names = config.data or run.DATA
    kinds = {name: DATA_SETS.get(name.partition(":")[0]) for name in names}
    taking = [name for name, kind in kinds.items() if kind and kind.takes_template]
    if config.template is not None and not taking:
        raise InputError(f"none of the data sets {', '.join(names)} takes {argument('template')}.")
    for name, kind in kinds.items():
        template = config.template if name in taking else None
        number = config.images or (kind.usual if kind else None)
        yield open_data(name, number=number, seed=config.seed, template=template)


def _data_and_tasks(config: EvaluationConfig) -> DataAndTasks:
    """The data sets with the tasks of each; of the demo's those that serve a task.

    Each task that is named has one data set, and each of these serves one; where data or tasks are
    not named, some may be idle.
    """
    chosen = _chosen_tasks(config)
    data = [(d, tuple(n for n in chosen if n in tasks_of(d))) for d in _open_data(config)]
    for name in chosen:
        serving = [data_set.name for data_set, tasks in data if name in tasks]
        if len(serving) > 1:
            raise InputError(
                f"{' and '.join(serving)} are both measured by {name}; give each its own "
                "output folder, so that one table has one data set."
            )
        if name in config.tasks and not serving:
            served = ", ".join(dict.fromkeys(n for data_set, _ in data for n in tasks_of(data_set)))
            which = "the data" if config.data else "the demo's data"
            raise InputError(
                f"{which} do not serve the task {name}, but {served}; give other data or tasks."
            )
    for data_set, tasks in data:
        if config.data and not tasks:
            raise InputError(
                f"{data_set.name} serves none of {', '.join(chosen)}; it serves "
                f"{', '.join(tasks_of(data_set))}."
            )
    owners: dict[str, str] = {}
    for data_set, tasks in data if config.maps else ():
        for name in data_set.names if tasks else ():
            # Precomputed maps are known by the names of their samples alone.
            if owners.setdefault(name, data_set.name) != data_set.name:
                raise InputError(
                    f"{owners[name]} and {data_set.name} both have a sample {name}, so "
                    "that maps made elsewhere cannot be told apart; name one data set, and measure "
                    "the other in an output folder of its own."
                )
    return tuple((data_set, tasks) for data_set, tasks in data if tasks)


def _chosen_tasks(config: EvaluationConfig) -> Sequence[str]:
    chosen: Sequence[str] = config.tasks
    for name in chosen:
        check_choice(name, TASKS, name="a task")
    if config.against == "image":
        if other := [name for name in chosen if name not in _OF_IMAGES]:
            raise InputError(
                f"{other[0]} explains texts; {argument('against', 'image')} works with "
                f"{', '.join(_OF_IMAGES)}."
            )
        chosen = chosen or _OF_IMAGES
    return chosen or [name for name, task in TASKS.items() if task.by_default]


def _reference(config: EvaluationConfig, clip: ClipAdapter, names: Sequence[str]) -> str:
    if repeated := find_repeated(names):
        raise InputError(f"two methods are called {repeated!r}; rename the folder of maps.")
    chosen = config.reference or MAMOOLER
    if chosen not in names:  # where it may be a folder of maps
        chosen = report_method(clip.tower) if chosen == MAMOOLER else chosen
    if chosen not in names and config.reference:
        raise InputError(f"the reference {chosen!r} is not among the methods {', '.join(names)}.")
    return chosen if chosen in names else names[0]


def _write_results(
    plan: EvaluationPlan, manifest: Content, output: Storage, models: ModelLoader
) -> Evaluation:
    """Every file; the table of figures comes last."""
    table, skipped = _collect(plan, output)
    images = {data.name: len(data) for data, _ in plan.data}
    done: Content = {**manifest, "images": images, "skipped": skipped, "state": "measured"}
    # Before anything can fail: an error below refers to the reasons in this file.
    output.write(MANIFEST, run.to_json(done))
    _check_measured(plan, table, skipped, output)
    summary = summarize(
        *with_groups(table, _groups(plan, table), [data for data, _ in plan.data]),
        [method.name for method in plan.methods],
        reference=plan.reference,
        baselines=[method.name for method in plan.methods if method.baseline],
        without_map=[method.name for method in plan.methods if method.name in WITHOUT_MAP],
        resamples=plan.config.resamples,
        seed=plan.config.seed,
    )
    if plan.config.against == "text":  # it is texts that a model may not know
        # Ray's GPUs may be those of other machines.
        clip = models.load(plan.model, "cpu" if plan.config.engine == "ray" else plan.config.device)
        contexts = [ModelContext(clip, data, plan.config) for data, _ in plan.data]
        summary = _gated(plan, summary, contexts)
    curves = list(_draw_curves(plan, table, summary))
    content: dict[str, Any] = {
        "title": f"Evaluation of {plan.label}",
        "about": _about(plan, skipped, table),
        "curves": {title: file for _, title, file in curves},
        "manifest": done,
    }
    files = {name: file for name, _, file in curves}
    for name in (report.TABLES, report.REPORT):
        files[name] = report.render(name, summary, **content).encode()
    for name, file in {**files, RESULTS: report.results_csv(summary)}.items():
        output.write(name, file)
    names = tuple(name for name, *_ in curves)
    return Evaluation(output.root, table, summary, names, skipped, done["model"])


def _collect(plan: EvaluationPlan, output: Storage) -> tuple[Table, SkippedEntries]:
    """The whole table, and each sample with each of its reasons, once."""
    units, left_out = [], [set[Skipped]() for _ in plan.data]
    for unit in plan.units:
        arrays, skipped = run.read_unit(output, unit)
        at, _ = plan.job_of(unit)
        units.append((arrays, plan.data[at][0].names))
        left_out[at].update(skipped)
    table = join_tables(units)
    if predictions := [*fitted(table)]:
        table = join_tables([*units, *predictions])
    entries = {
        data.name: [
            *({"sample": data.names[e.number], "reason": e.message} for e in sorted(of_data)),
            *({"sample": name, "reason": reason} for name, reason in data.left_out.items()),
        ]
        for (data, _), of_data in zip(plan.data, left_out, strict=True)
    }
    return table, entries


def _check_measured(
    plan: EvaluationPlan, table: Table, skipped: SkippedEntries, output: Storage
) -> None:
    """Raise an InputError for data of which nothing can be used."""
    for data, tasks in plan.data:
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
    """The tables of all tasks, without metrics that no map could be measured by."""
    measured = {*table["metric"][~table["method"].isin(WITHOUT_MAP)].unique()}
    named = plan.config.reference and plan.reference  # goes before a metric's own
    groups = {
        title: [
            replace(m, rival=m.rival and (named or m.rival)) for m in metrics if m.name in measured
        ]
        for _, tasks in plan.data
        for title, metrics in plan.tables_of(tasks).items()
    }
    return {title: metrics for title, metrics in groups.items() if metrics}


def _gated(plan: EvaluationPlan, summary: Summary, contexts: Sequence[ModelContext]) -> Summary:
    """The summary with what the model knows of the data, and the metrics of what it does not."""
    gates = [measure_gate(context) for context in contexts]
    pairs = zip(gates, plan.data, strict=True)
    unknown_tables = [
        plan.tables_of(tasks) for gate, (_, tasks) in pairs if not gate.is_above_chance
    ]
    silent = {metric.name for tables in unknown_tables for metric in chain(*tables.values())}
    names = [metric.name for metric in summary.metrics]
    unknown = {name for name in names if name.partition(OF_GROUP)[0] in silent}
    return replace(summary, gates=gates, unknown=unknown)


def _draw_curves(
    plan: EvaluationPlan, table: Table, summary: Summary
) -> Iterator[tuple[str, str, bytes]]:
    """A figure of each pair of curves: its name, what it shows, and the PNG file."""
    curves = dict(iter(table[table["x"].notna()].groupby("metric", observed=True, sort=False)))
    for end in [name.removeprefix(MOST_FIRST) for name in curves if name.startswith(MOST_FIRST)]:
        fill, _, kind = end.partition("_")
        title = f"{plan.label}: removed pixels become {TITLES[fill]}, map of the {kind} class"
        pair = curves[MOST_FIRST + end], curves[LEAST_FIRST + end]
        figure = report.perturbation_curves(*pair, summary, title=title)
        yield f"curves_{end}.png", title, run.to_png(figure)


def _about(plan: EvaluationPlan, skipped: SkippedEntries, table: Table) -> dict[str, Any]:
    """The lines over the tables."""
    lines: dict[str, Any] = {
        "made by": f"captum-clip {__version__}",
        "model": f"{plan.label}, weights {plan.identity['weights'][:12]}",
    }
    for data, tasks in plan.data:
        text = f"{len(data)} samples"
        if skipped[data.name]:
            what = "samples, regions or maps left out (manifest.json has the reasons)"
            text += f", {len(skipped[data.name])} {what}"
        lines[f"data {data.name}"] = f"{text}; {', '.join(tasks)}"
    spreads = table[table["metric"].astype(str).str.endswith(EFFECT_SPREAD)]
    sums = spreads.groupby(["metric", "part"], observed=True)["value"].sum().unstack()
    for name, (gap, size) in sums.iterrows():
        lines[report.shown(name)] = f"the copies of a scene differ by {gap / size:.0%} of an effect"
    kind = "another image of the same thing" if plan.config.against == "image" else "their text"
    lines |= {"regions are explained by": kind, "seed": plan.config.seed}
    return {**lines, **{method.name: method.what for method in plan.methods}}
