"""`evaluate`: a config in, tables and curves out, from which a stop at any moment takes nothing."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from ..errors import InputError
from ..studies.jobs import Loader, threads
from ..studies.on_ray import run_on_ray
from ..studies.shards import unfinished
from ..studies.storage import Storage, storage_of
from . import manifest
from .config import EvaluationConfig
from .data.base import DataSet
from .findings import Findings, summarize
from .metric import CurveRows, Metric, Rows
from .opening import Opened, open_evaluation
from .pictures import perturbation_curves
from .tables import RESULTS, TABLES, results_csv, results_md
from .tasks import TASKS, Found
from .tasks.perturbation import TITLES
from .units import Unit, joined, read_unit
from .work import Work, Worker

Progress = Callable[[int, int], None]
"""Told how many images were done, and how many there are; an image counts once a method."""

_TEMPORARY: Final = re.compile(r"(^|/)\.[^/]+\.(part|tries)$")


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation came to.

    Attributes:
        output: its folder or URL.
        findings: every method by every metric.
        pictures: names of the files with curves.
        skipped: data set -> samples, regions or maps that were left out, with the reason.
    """

    output: str
    findings: Findings
    pictures: tuple[str, ...]
    skipped: dict[str, list[dict[str, Any]]]


def evaluate(config: EvaluationConfig, *, progress: Progress | None = None) -> Evaluation:
    """Measure what is not there yet, then write all tables.

    Started again after a stop, it goes on with the units that are there, and ends with the same
    figures. What the folder holds is told in docs/evaluation.md.

    Args:
        config: what to measure.
        progress: called now and then, first with what an earlier run had done.

    Raises:
        CaptumClipError: a model, data set, method or task that cannot be worked with; an output
            folder that holds something else, or in which another run is at work; data of which
            nothing can be used.

    Example:
        >>> from captum_clip.evaluation import EvaluationConfig, evaluate
        >>> config = EvaluationConfig("demo/vit", "out", images=100)
        >>> evaluate(config).findings  # doctest: +SKIP
    """
    output = storage_of(config.output)
    count = config.threads or torch.get_num_threads()
    device = "cuda" if config.gpus else "cpu"
    with threads(count), output.alone():
        loader = Loader()
        opened = open_evaluation(config, loader)
        begun = manifest.begin(opened.about(), output, threads=count, device=device)
        pending = _prepare(opened, begun, output)
        advance = _told(progress, opened, sum(len(unit.numbers) for unit in pending))
        if pending:
            work = Work(
                config=config,
                model=opened.model,
                fingerprint=opened.fingerprint,
                device=device,
                data=opened.data,
                tasks=opened.tasks,
                methods=opened.named,
                units=pending,
                output=output,
                threads=count,
            )
            if config.engine == "ray":
                run_on_ray(work, advance)
            else:
                _run_here(work, loader, advance)
        return _summarised(opened, begun, output)


def _run_here(work: Work, loader: Loader, advance: Callable[[int], None]) -> None:
    worker = Worker(work, loader)
    for number, size in enumerate(work.sizes):
        worker(number)
        advance(size)


def _prepare(opened: Opened, begun: dict[str, Any], output: Storage) -> list[Unit]:
    """Tidy the folder up after an earlier run; the units that it did not finish."""
    present = {name for name, _ in output.files()}
    for name in present:
        if _TEMPORARY.search(name):
            output.remove(name)
    pending = unfinished(output, opened.units, present, read_unit)
    if pending:
        if RESULTS in present:
            output.remove(RESULTS)
        output.write(manifest.NAME, manifest.to_bytes(begun))
    return pending


def _told(progress: Progress | None, opened: Opened, pending: int) -> Callable[[int], None]:
    """Counts up from what was done before."""
    total = sum(len(unit.numbers) for unit in opened.units)
    done = total - pending

    def advance(images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress(done, total)

    advance(0)
    return advance


def _summarised(opened: Opened, begun: dict[str, Any], output: Storage) -> Evaluation:
    """Every file; the table comes last."""
    found = _collected(opened, output)
    skipped = {
        data.name: _skipped(data, found[place].values()) for place, data in enumerate(opened.data)
    }
    counts = {data.name: len(data) for data in opened.data}
    done = {**begun, "images": counts, "skipped": skipped, "state": "measured"}
    output.write(manifest.NAME, manifest.to_bytes(done))
    for place, data in enumerate(opened.data):
        if not any(len(one.owners) for of in found[place].values() for one in of.rows.values()):
            raise InputError(_why_nothing(opened, place, skipped[data.name], output))
    rows: dict[str, dict[str, Rows]] = {method.name: {} for method in opened.methods}
    curves: dict[str, dict[str, CurveRows]] = {}
    for by_method in found:
        for method, of in by_method.items():
            rows[method] |= {name: one for name, one in of.rows.items() if len(one.owners)}
            for name, curve in of.curves.items():
                curves.setdefault(name, {})[method] = curve
    findings = summarize(
        _groups(opened, rows),
        rows,
        reference=opened.reference,
        baselines=[method.name for method in opened.methods if method.baseline],
        resamples=opened.config.resamples,
        seed=opened.config.seed,
    )
    names = tuple(_draw(opened, curves, findings, output))
    about = _about(opened, skipped)
    title = f"Evaluation of {opened.label}"
    output.write(TABLES, results_md(findings, title=title, about=about).encode())
    output.write(RESULTS, results_csv(findings))
    return Evaluation(output.root, findings, names, skipped)


def _why_nothing(opened: Opened, place: int, skipped: list[dict[str, Any]], output: Storage) -> str:
    data, tasks = opened.data[place], ", ".join(opened.tasks[place])
    if not skipped:
        methods = ", ".join(method.name for method in opened.methods)
        return f"{data.name}: {tasks} measures nothing of {methods} on its {len(data)} samples."
    return (
        f"{data.name}: none of the {len(data)} samples can be used for {tasks}; the first: "
        f"{skipped[0]['reason'].rstrip('.')}. All reasons are in {output.root}/{manifest.NAME}."
    )


def _collected(opened: Opened, output: Storage) -> list[dict[str, Found]]:
    """For each data set: method -> what it came to over all chunks, in order."""
    found = []
    for place in range(len(opened.data)):
        by_method = {}
        for number, method in enumerate(opened.methods):
            units = [u for u in opened.units if (u.data, u.method) == (place, number)]
            by_method[method.name] = joined([read_unit(output, unit) for unit in units])
        found.append(by_method)
    return found


def _skipped(data: DataSet, found: Any) -> list[dict[str, Any]]:
    reasons: dict[tuple[int, str], None] = {}
    for of in found:
        reasons |= dict.fromkeys(of.skipped)
    return manifest.skipped(data.names, list(reasons))


def _groups(opened: Opened, rows: dict[str, dict[str, Rows]]) -> dict[str, Sequence[Metric]]:
    """The tables of all tasks, without metrics that no method could be measured by."""
    measured = {name for of in rows.values() for name in of}
    groups: dict[str, Sequence[Metric]] = {}
    for tasks in opened.tasks:
        for task in tasks:
            for title, metrics in TASKS[task].metrics(opened.config).items():
                kept = [metric for metric in metrics if metric.name in measured]
                if kept:
                    groups[title] = kept
    return groups


def _draw(
    opened: Opened, curves: dict[str, dict[str, CurveRows]], findings: Findings, output: Storage
) -> Sequence[str]:
    """Write a picture for each pair of curves; their names."""
    written = []
    for name, most in curves.items():
        order, _, end = name.partition("_")
        if order != "most":
            continue
        fill, _, kind = end.partition("_")
        figure = perturbation_curves(
            most,
            curves[f"least_{end}"],
            title=f"{opened.label}: removed pixels become {TITLES[fill]}, map of the {kind} class",
            xlabel="share of the pixels removed",
            ylabel="top-1 accuracy",
            reference=opened.reference if opened.reference in most else None,
            baselines=[name for name in findings.baselines if name in most],
            resamples=opened.config.resamples,
            seed=opened.config.seed,
        )
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi="figure")
        output.write(f"curves_{end}.png", file.getvalue())
        written.append(f"curves_{end}.png")
    return written


def _about(opened: Opened, skipped: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The lines over the tables."""
    config = opened.config
    kind = "another picture of the same thing" if config.against == "image" else "their text"
    lines: dict[str, Any] = {"model": f"{opened.label}, fingerprint {opened.fingerprint[:12]}"}
    for data, tasks in zip(opened.data, opened.tasks, strict=True):
        left_out = len(skipped[data.name])
        what = "samples, regions or maps left out (manifest.json says why)"
        said = f", {left_out} {what}" if left_out else ""
        lines[f"data {data.name}"] = f"{len(data)} samples{said}; {', '.join(tasks)}"
    lines["regions are explained by"] = kind
    lines["seed"] = config.seed
    for method in opened.methods:
        lines[method.name] = method.what
    return lines
