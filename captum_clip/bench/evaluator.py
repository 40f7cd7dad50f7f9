"""`evaluate`: a config becomes a plan, tried beforehand; its units become tables and a report."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

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
_TASKS_AGAINST_IMAGES: Final = ("localization", "signs")
"""The tasks that work without texts, where regions are explained by another image."""
DataAndTasks = Sequence[tuple[DataSet, tuple[str, ...]]]
"""Data sets with the tasks of each."""
SkippedEntries = dict[str, list[dict[str, Any]]]
"""Name of a data set -> an entry with "sample" and "reason" for all that was left out of it."""


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        output: its folder or URL.
        table: a row for every measured value. Its columns are `task`, `metric`, `method`, `sample`
            (its name), `region` (what is explained, such as "a horse"), `part` (for metrics that
            need several numbers), `x` (for curves, the share of the pixels removed) and `value`.
        summary: the figures of every method by every metric, from the table.
        curves: names of the files with curves.
        skipped: data set -> samples, regions or maps that were left out, with the reason.
        model: name and identity of the model.
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
        """The lines at the head of the report, which say what was found."""
        return report.findings(self.summary)


def check_pandas() -> None:
    """Raise InputError if pandas is missing, before anything is measured."""
    if find_spec("pandas") is None:
        raise InputError("pandas is needed: pip install 'captum-clip[evaluation]'.")


@public("evaluate")
def evaluate(config: EvaluationConfig, *, progress: Progress | None = None) -> Evaluation:
    """Measure what is missing in the output folder, then write all tables.

    If it is started again after a stop, it keeps the units that are there, and ends with the same
    figures. docs/evaluation.md describes what the folder holds.

    Args:
        config: what to measure.
        progress: called now and then with how many images are done, how many there are, and the
            current data set and method. The first call counts what an earlier run did. An image
            counts once per method.

    Raises:
        CaptumClipError: a model, data set, method or task that cannot be used; an output folder
            that holds something else, or that another run is writing; data without a usable sample.

    Example:
        >>> from captum_clip.bench import EvaluationConfig, evaluate
        >>> config = EvaluationConfig("demo/vit", "out", images=100)
        >>> evaluate(config).table  # doctest: +SKIP
    """
    check_pandas()
    return run.run(config, make_plan, _write_results, progress)


@dataclass(frozen=True, eq=False)
class EvaluationPlan(run.Plan):
    """An evaluation that can begin; each of its jobs is one method on one data set."""

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
        """Return the metrics of each table by its title, for all tables of some tasks."""
        tables: dict[str, list[Metric]] = {}
        for task in tasks:
            tables.update(TASKS[task].metrics(self.config))
        return tables

    def job_of(self, unit: Unit) -> tuple[int, Method]:
        """Return the number of a unit's data set, and its method."""
        data_number, method_number = divmod(unit.job, len(self.methods))
        return data_number, self.methods[method_number]

    def worker(self, models: ModelLoader) -> run.Worker:
        clip = models.load(self.model, self.config.device, self.identity)
        contexts = [ModelContext(clip, data, self.config) for data, _ in self.data]
        # The methods of a chunk follow each other, so keeping one batch lets them share it.
        return partial(self._measure, contexts, lru_cache(1)(Batch))

    def _measure(
        self,
        contexts: Sequence[ModelContext],
        make_batch: Callable[[ModelContext, Sequence[int]], Batch],
        unit: Unit,
        report_share: run.TellShare,
    ) -> tuple[Arrays, list[Skipped]]:
        data_number, method = self.job_of(unit)
        data, tasks = self.data[data_number]
        batch = make_batch(contexts[data_number], unit.numbers)
        on_batch = MethodOnBatch(batch, method)
        if not batch.views:
            tasks = ()
        rows = defaultdict[str, list[Arrays]](list)
        with error_context(f"{method.name} on {data.name}"):
            for number, task in enumerate(tasks):
                # Some tasks yield their rows image by image, which shows how far they are.
                measured_samples: set[int] = set()
                for block in TASKS[task].rows(batch, on_batch):
                    rows[task].append(block)
                    measured_samples.update(block["sample"].tolist())
                    share_of_task = len(measured_samples) / len(batch.views)
                    report_share((number + share_of_task) / len(tasks))
        return table_of(method.name, rows), [*batch.skipped, *on_batch.skipped]


def make_plan(config: EvaluationConfig, models: ModelLoader) -> EvaluationPlan:
    """Load the model, open the data, and try every method on one black image."""
    data = _data_and_tasks(config)
    for name in config.methods:
        methods.check_measured(name)
    precomputed = [methods.PrecomputedMaps(folder) for folder in config.maps]
    model = full_name(config.model)
    clip = models.load(model)
    data_sets = [data_set for data_set, _ in data]
    if config.against == "text":
        _check_classes(clip, data_sets)

    tasks = [task for _, served in data for task in served]
    names = _method_names(config, clip, tasks)
    named = [methods.method_of(name, clip, seed=config.seed) for name in names]
    all_methods = (*named, *_predictors(tasks), *precomputed)
    reference = _reference(config, clip, [method.name for method in all_methods])
    # An error that depends on the model and the method alone is raised here, on a black image.
    black = clip.preprocess(torch.zeros(64, 64, 3, dtype=torch.uint8))
    query = Queries(black, clip.encode_text([""]).detach(), ("",), ("",), (0,))
    for method in named:
        method.maps(clip, query)
    units = tuple(_units(config, data_sets, all_methods))
    return EvaluationPlan(config, model, clip.identity(), data, all_methods, reference, units)


def _check_classes(clip: ClipAdapter, data: Iterable[DataSet]) -> None:
    """Raise InputError if a class of a data set is a text that the model cannot read."""
    for data_set in data:
        prompts: list[str] = []
        for name in data_set.classes:
            prompts.extend(data_set.prompts.get(name, [name]))
        if prompts:
            with error_context(data_set.name):
                clip.tokenize(prompts)


def _method_names(
    config: EvaluationConfig, clip: ClipAdapter, tasks: Iterable[str]
) -> tuple[str, ...]:
    """Return the names of the methods of a config, then of those that tasks compare them with."""
    names = list(methods.named_methods(clip, config.methods))
    offered = methods.methods_for(clip)
    for task in tasks:
        names.extend(name for name in TASKS[task].rivals if name in offered)
    return tuple(dict.fromkeys(names))


def _predictors(tasks: Iterable[str]) -> list[Method]:
    """Return the predictors without a map that any of the tasks measures."""
    measured: set[str] = set()
    for task in tasks:
        measured.update(TASKS[task].without_map)
    return [methods.predictor(name) for name in WITHOUT_MAP if name in measured]


def _units(
    config: EvaluationConfig, data: Sequence[DataSet], methods: Sequence[Method]
) -> Iterator[Unit]:
    """Divide every data set into chunks; all methods of a chunk follow each other.

    Samples come in the order in which the seed would draw them, so that the first ones are a sample
    of all. Costly methods see the first `slow_images`.
    """
    for data_number, data_set in enumerate(data):
        folder = f"units/{data_number:02d}-{slug(data_set.name)}"
        order = draw_order(data_set.names, config.seed)
        for start in range(0, len(data_set), config.chunk_size):
            chunk = order[start : start + config.chunk_size]
            for method_number, method in enumerate(methods):
                numbers = chunk
                if method.costly:
                    numbers = chunk[: max(0, config.slow_images - start)]
                if not numbers:
                    continue
                name = f"{start:06d}-{method_number:02d}-{slug(method.name)}.npz"
                yield Unit(
                    name=f"{folder}/{name}",
                    job=data_number * len(methods) + method_number,
                    numbers=tuple(sorted(numbers)),
                    label=f"{data_set.name}, {method.name}",
                )


def _open_data(config: EvaluationConfig) -> Iterator[DataSet]:
    """Open the data sets, each with the options that it takes.

    An option that none of them takes is an error.
    """
    names = config.data or run.DATA
    kinds = {name: DATA_SETS.get(name.partition(":")[0]) for name in names}
    with_template = [name for name, kind in kinds.items() if kind and kind.takes_template]
    if config.template is not None and not with_template:
        raise InputError(f"none of the data sets {', '.join(names)} takes {argument('template')}.")
    for name, kind in kinds.items():
        template = config.template if name in with_template else None
        number = config.images
        if number is None and kind is not None:
            number = kind.usual
        yield open_data(name, number=number, seed=config.seed, template=template)


def _data_and_tasks(config: EvaluationConfig) -> DataAndTasks:
    """Return the data sets, each with the tasks that it serves.

    A task that is named needs exactly one data set, and a data set that is named has to serve a
    task. If data or tasks are not named, those that do not fit are left out.
    """
    chosen = _chosen_tasks(config)
    data: list[tuple[DataSet, tuple[str, ...]]] = []
    for data_set in _open_data(config):
        served = tasks_of(data_set)
        data.append((data_set, tuple(name for name in chosen if name in served)))
    _check_tasks(config, chosen, data)
    for data_set, tasks in data:
        if config.data and not tasks:
            raise InputError(
                f"{data_set.name} serves none of {', '.join(chosen)}; it serves "
                f"{', '.join(tasks_of(data_set))}."
            )
    used = tuple((data_set, tasks) for data_set, tasks in data if tasks)
    if config.maps:
        _check_sample_names([data_set for data_set, _ in used])
    return used


def _check_tasks(
    config: EvaluationConfig,
    chosen: Sequence[str],
    data: DataAndTasks,
) -> None:
    """Raise InputError for a task with several data sets, or for a named task without any."""
    for name in chosen:
        serving = [data_set.name for data_set, tasks in data if name in tasks]
        if len(serving) > 1:
            raise InputError(
                f"{' and '.join(serving)} are both measured by {name}; give each its own "
                "output folder, so that one table has one data set."
            )
        if name in config.tasks and not serving:
            served: list[str] = []
            for data_set, _ in data:
                served.extend(tasks_of(data_set))
            listed = ", ".join(dict.fromkeys(served))
            which = "the data" if config.data else "the demo's data"
            raise InputError(
                f"{which} do not serve the task {name}, but {listed}; give other data or tasks."
            )


def _check_sample_names(data: Iterable[DataSet]) -> None:
    """Raise InputError if two data sets have a sample of the same name."""
    # Precomputed maps are found by the names of their samples alone.
    owners: dict[str, str] = {}
    for data_set in data:
        for name in data_set.names:
            owner = owners.setdefault(name, data_set.name)
            if owner != data_set.name:
                raise InputError(
                    f"{owner} and {data_set.name} both have a sample {name}, so "
                    "that maps made elsewhere cannot be told apart; name one data set, and measure "
                    "the other in an output folder of its own."
                )


def _chosen_tasks(config: EvaluationConfig) -> Sequence[str]:
    for name in config.tasks:
        check_choice(name, TASKS, name="a task")
    if config.against == "image":
        need_texts = [name for name in config.tasks if name not in _TASKS_AGAINST_IMAGES]
        if need_texts:
            raise InputError(
                f"{need_texts[0]} explains texts; {argument('against', 'image')} works with "
                f"{', '.join(_TASKS_AGAINST_IMAGES)}."
            )
        return config.tasks or _TASKS_AGAINST_IMAGES
    return config.tasks or [name for name, task in TASKS.items() if task.by_default]


def _reference(config: EvaluationConfig, clip: ClipAdapter, names: Sequence[str]) -> str:
    """Return the method that the others are compared with; InputError for two of one name."""
    repeated = find_repeated(names)
    if repeated:
        raise InputError(f"two methods are called {repeated!r}; rename the folder of maps.")
    reference = config.reference or MAMOOLER
    # A folder of maps may be called "mamooler" too, and then it is meant.
    if reference == MAMOOLER and reference not in names:
        reference = report_method(clip.tower)
    if reference in names:
        return reference
    if config.reference:
        raise InputError(
            f"the reference {reference!r} is not among the methods {', '.join(names)}."
        )
    return names[0]


def _write_results(
    plan: EvaluationPlan, manifest: Content, output: Storage, models: ModelLoader
) -> Evaluation:
    """Write every file; the table of figures comes last."""
    table, skipped = _collect(plan, output)
    images = {data.name: len(data) for data, _ in plan.data}
    done: Content = {**manifest, "images": images, "skipped": skipped, "state": "measured"}
    # The manifest has the reasons that the errors below refer to, so it is written before them.
    output.write(MANIFEST, run.to_json(done))
    _check_measured(plan, table, skipped, output)
    summary = _summary(plan, table)
    # Only texts are something that a model may not know.
    if plan.config.against == "text":
        # The GPUs of Ray may be those of other machines.
        device = "cpu" if plan.config.engine == "ray" else plan.config.device
        clip = models.load(plan.model, device)
        contexts = [ModelContext(clip, data, plan.config) for data, _ in plan.data]
        summary = _gated(plan, summary, contexts)

    curves = _draw_curves(plan, table, summary)
    content: dict[str, Any] = {
        "title": f"Evaluation of {plan.label}",
        "about": _about(plan, skipped, table),
        "curves": {curve.title: curve.png for curve in curves},
        "manifest": done,
    }
    files = {curve.file: curve.png for curve in curves}
    for name in (report.TABLES, report.REPORT):
        files[name] = report.render(name, summary, **content).encode()
    files[RESULTS] = report.results_csv(summary)
    for name, file in files.items():
        output.write(name, file)
    return Evaluation(
        output=output.root,
        table=table,
        summary=summary,
        curves=tuple(curve.file for curve in curves),
        skipped=skipped,
        model=done["model"],
    )


def _summary(plan: EvaluationPlan, table: Table) -> Summary:
    """Summarize the table, groups of samples included."""
    data_sets = [data for data, _ in plan.data]
    table, groups = with_groups(table, _groups(plan, table), data_sets)
    return summarize(
        table,
        groups,
        [method.name for method in plan.methods],
        reference=plan.reference,
        baselines=[method.name for method in plan.methods if method.baseline],
        without_map=[method.name for method in plan.methods if method.name in WITHOUT_MAP],
        resamples=plan.config.resamples,
        seed=plan.config.seed,
    )


def _collect(plan: EvaluationPlan, output: Storage) -> tuple[Table, SkippedEntries]:
    """Read the whole table, and all that was left out, each reason of a sample once."""
    units: list[tuple[Arrays, Sequence[str]]] = []
    skipped: list[set[Skipped]] = [set() for _ in plan.data]
    for unit in plan.units:
        arrays, unit_skipped = run.read_unit(output, unit)
        data_number, _ = plan.job_of(unit)
        data, _ = plan.data[data_number]
        units.append((arrays, data.names))
        skipped[data_number].update(unit_skipped)
    table = join_tables(units)
    # Some predictors are fitted to the rows of all units.
    predictions = list(fitted(table))
    if predictions:
        table = join_tables([*units, *predictions])

    entries: SkippedEntries = {}
    for (data, _), data_skipped in zip(plan.data, skipped, strict=True):
        data_entries = []
        for entry in sorted(data_skipped):
            data_entries.append({"sample": data.names[entry.number], "reason": entry.message})
        for name, reason in data.left_out.items():
            data_entries.append({"sample": name, "reason": reason})
        entries[data.name] = data_entries
    return table, entries


def _check_measured(
    plan: EvaluationPlan, table: Table, skipped: SkippedEntries, output: Storage
) -> None:
    """Raise InputError for a data set without a measured value."""
    for data, tasks in plan.data:
        if table["task"].isin(tasks).any():
            continue
        listed_tasks = ", ".join(tasks)
        if not skipped[data.name]:
            methods = ", ".join(method.name for method in plan.methods)
            raise InputError(
                f"{data.name}: {listed_tasks} measures nothing of {methods} on its {len(data)} "
                "samples."
            )
        first_reason = skipped[data.name][0]["reason"].rstrip(".")
        raise InputError(
            f"{data.name}: none of the {len(data)} samples can be used for {listed_tasks}; the "
            f"first: {first_reason}. All reasons are in {output.root}/{MANIFEST}."
        )


def _groups(plan: EvaluationPlan, table: Table) -> dict[str, Sequence[Metric]]:
    """Return the tables of all tasks, with those metrics that a map could be measured by."""
    is_map = ~table["method"].isin(WITHOUT_MAP)
    measured = set(table["metric"][is_map].unique())
    groups: dict[str, Sequence[Metric]] = {}
    for _, tasks in plan.data:
        for title, metrics in plan.tables_of(tasks).items():
            kept = []
            for metric in metrics:
                if metric.name not in measured:
                    continue
                # A reference that is named takes the place of the metric's own rival.
                if metric.rival and plan.config.reference:
                    metric = replace(metric, rival=plan.reference)
                kept.append(metric)
            if kept:
                groups[title] = kept
    return groups


def _gated(plan: EvaluationPlan, summary: Summary, contexts: Sequence[ModelContext]) -> Summary:
    """Add to the summary whether the model is above chance on each data set."""
    gates = []
    at_chance: set[str] = set()
    for context, (_, tasks) in zip(contexts, plan.data, strict=True):
        gate = measure_gate(context)
        gates.append(gate)
        if not gate.is_above_chance:
            for metrics in plan.tables_of(tasks).values():
                at_chance.update(metric.name for metric in metrics)
    unknown: set[str] = set()
    for metric in summary.metrics:
        # A metric of a group of samples goes with the metric of all samples.
        name_over_all, _, _ = metric.name.partition(OF_GROUP)
        if name_over_all in at_chance:
            unknown.add(metric.name)
    return replace(summary, gates=gates, unknown=unknown)


class _CurveFile(NamedTuple):
    """A figure of two curves."""

    file: str
    title: str
    png: bytes


def _draw_curves(plan: EvaluationPlan, table: Table, summary: Summary) -> list[_CurveFile]:
    """Draw a figure of each pair of curves, most and least relevant pixels first."""
    on_curve = table[table["x"].notna()]
    curves = dict(iter(on_curve.groupby("metric", observed=True, sort=False)))
    files = []
    for name, most_first in curves.items():
        if not name.startswith(MOST_FIRST):
            continue
        suffix = name.removeprefix(MOST_FIRST)
        fill, _, kind = suffix.partition("_")
        title = f"{plan.label}: removed pixels become {TITLES[fill]}, map of the {kind} class"
        least_first = curves[LEAST_FIRST + suffix]
        figure = report.perturbation_curves(most_first, least_first, summary, title=title)
        files.append(_CurveFile(f"curves_{suffix}.png", title, run.to_png(figure)))
    return files


def _about(plan: EvaluationPlan, skipped: SkippedEntries, table: Table) -> dict[str, Any]:
    """Return the lines over the tables: what was measured, and how."""
    lines: dict[str, Any] = {
        "made by": f"captum-clip {__version__}",
        "model": f"{plan.label}, weights {plan.identity['weights'][:12]}",
    }
    for data, tasks in plan.data:
        text = f"{len(data)} samples"
        skipped_count = len(skipped[data.name])
        if skipped_count:
            what = "sample, region or map" if skipped_count == 1 else "samples, regions or maps"
            text += f", {skipped_count} {what} left out (manifest.json has the reasons)"
        lines[f"data {data.name}"] = f"{text}; {', '.join(tasks)}"
    spreads = table[table["metric"].astype(str).str.endswith(EFFECT_SPREAD)]
    sums = spreads.groupby(["metric", "part"], observed=True)["value"].sum().unstack()
    for name, parts in sums.iterrows():
        share = parts["deviation"] / parts["size"]
        lines[report.shown(name)] = f"the copies of a scene differ by {share:.0%} of an effect"
    against_image = plan.config.against == "image"
    kind = "another image of the same thing" if against_image else "their text"
    lines["regions are explained by"] = kind
    lines["seed"] = plan.config.seed
    for method in plan.methods:
        lines[method.name] = method.what
    return lines
