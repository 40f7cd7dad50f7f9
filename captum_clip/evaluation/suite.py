"""Frozen suites: one file of a model, to compare scene by scene with that of another."""

import hashlib
import json
import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from .._version import __version__
from ..checks import check_choice, find_file
from ..errors import InputError, argument, public
from ..kinds import is_kind, parse_json
from ..metrics import holm, paired_difference
from .batch import Batch, ModelContext, queries_of
from .config import EvaluationConfig, RunConfig, full_name, label_of
from .data import open_data
from .evaluator import Evaluation, check_pandas, evaluate
from .gate import Gate, measure_gate
from .methods import method_of
from .run import Content, ModelLoader, Progress, differences, threads
from .storage import Storage, storage_of

SUITES: Final[dict[str, Any]] = json.loads(Path(__file__).with_name("suite.json").read_text())
"""By name: the seed, the settings of its parts, column -> pattern of metrics, the hash of it."""

_FORMAT: Final = "captum_clip suite 1"
_OPEN: Final = {"model", "output", *(setting.name for setting in fields(RunConfig))} - {"seed"}
_KINDS: Final = {
    **{"suite": str, "hash": str, "code": str, "versions": dict[str, Any]},
    **{"model": dict[str, Any], "verdict": list[str]},
    "values": dict[str, dict[str, list[float | None]]],  # absent where the gate stopped the model
}
_MEASURING: Final = ("attr", "evaluation", "metrics", "models", "recording", "targets")
"""Folders whose code a value passes through, besides `maps.py` and `similarity.py`."""
_RESAMPLES: Final = 20_000  # whose least p value stays below .05 times the rows of a comparison
_BATCH: Final = 8
_ROUNDS: Final = 5
_EQUAL: Final = {"hash": "scenes", "code": "measuring code", "versions": "versions"}
"""What two files must have alike, in words."""


def suite_hash(name: str) -> str:
    """SHA-256 over the settings of a suite and all that is drawn: pixels, masks, texts, classes."""
    suite = {key: SUITES[name][key] for key in ("seed", "parts", "columns")}
    sha = hashlib.sha256(json.dumps(suite).encode())
    drawn = {(data, s["images"]) for s in suite["parts"].values() for data in s["data"]}
    for data_name, number in sorted(drawn):
        data = open_data(data_name, number=number, seed=suite["seed"])
        sha.update(repr(data.classes).encode())
        # Pixels too: another version of a drawing library may draw the same scene otherwise.
        for sample in map(data.read, range(number)):
            texts = [(region.text, region.label) for region in sample.regions]
            sha.update(repr((sample.caption, sample.label, texts)).encode())
            masks = [region.mask for region in sample.regions]
            for array in map(np.asarray, (sample.image, *sample.subsets, *masks)):
                sha.update(array.tobytes())
    return sha.hexdigest()


def code_hash() -> str:
    """SHA-256 over the code that measures: an equal one makes values that can be compared."""
    package, sha = Path(__file__).parents[1], hashlib.sha256()
    paths = [path for folder in _MEASURING for path in (package / folder).rglob("*.py")]
    for path in sorted([*paths, package / "maps.py", package / "similarity.py"]):
        sha.update(path.read_text("utf-8").encode())
    return sha.hexdigest()


@public("evaluate")
def run_suite(name: str, config: EvaluationConfig, *, progress: Progress | None = None) -> Content:
    """Measure a model by a frozen suite; write ``suite_NAME.json``.

    The gate comes first: a model that it stops is not measured, and has no values. Each part is an
    evaluation in a folder of its own, which goes on after a stop; prices are taken anew.

    Args:
        name: of the suite, "v2".
        config: the model, the output folder, and how to compute; all else is the suite's.
        progress: as of :func:`evaluate`, for one part after the other.

    Returns:
        The content of the JSON file; docs/appendix/protocols.md describes it.

    Raises:
        InputError: another suite, a setting that the suite fixes, scenes that are drawn otherwise
            here, a folder with another model's file, and what :func:`evaluate` refuses.
    """
    check_choice(name, SUITES, name="a suite")
    check_pandas()
    suite, output = SUITES[name], storage_of(config.output)
    for setting in fields(config):
        if setting.name not in _OPEN and getattr(config, setting.name) != setting.default:
            raise InputError(f"the suite {name} fixes {argument(setting.name)}; leave it out.")
    parts = [
        replace(config, output=f"{config.output}/{folder}", seed=suite["seed"], **settings)
        for folder, settings in suite["parts"].items()
    ]
    if (drawn := suite_hash(name)) != suite["hash"]:
        raise InputError(
            f"the scenes of the suite {name} differ on this installation (hash {drawn[:12]}, "
            f"expected {suite['hash'][:12]}), so no result could be compared; it needs "
            f"{suite['drawn_with']}."
        )
    models = ModelLoader(config.processor, config.tokenizer, config.image_size)
    clip = models.load(full_name(config.model), config.device)
    asking = {name: settings for settings in parts for name in settings.data}
    contexts = [
        ModelContext(clip, open_data(name, number=own.images, seed=own.seed), own)
        for name, own in asking.items()
    ]
    sizes = [len(context.data) for context in contexts]
    model = {"name": label_of(config.model), "identity": clip.identity()}
    _check_own(f"suite_{name}.json", output, model)
    gates = list[Gate]()
    for context in contexts:
        with threads(config.thread_count):
            gates.append(measure_gate(context))
        if progress:
            progress(sum(sizes[: len(gates)]), sum(sizes), f"gate, {context.data.name}")
    content: Content = {
        **{"format": _FORMAT, "suite": name, "hash": drawn, "code": code_hash()},
        "model": model,
        "versions": {"captum_clip": __version__, "torch": torch.__version__},
        "gate": {g.data: {n: c._asdict() for n, c in g.checks.items()} for g in gates},
        "verdict": [str(gate) for gate in gates],
    }
    if all(gate.is_above_chance for gate in gates):
        evaluations = [evaluate(settings, progress=progress) for settings in parts]
        with threads(config.thread_count):
            content["prices"] = _prices(contexts[0], evaluations[0])
        content["values"] = {
            column: values
            for column, pattern in suite["columns"].items()
            for evaluation in evaluations
            if (values := _by_scene(evaluation, pattern))
        }
    output.write(f"suite_{name}.json", json.dumps(content).encode())
    return content


def _check_own(file: str, output: Storage, model: Content) -> None:
    """Raise InputError where the folder has such a file of another model, or a damaged one."""
    if (there := output.read(file)) is None:
        return
    if changes := differences({"model": _parse(there).get("model")}, {"model": model}):
        raise InputError(
            f"{output.root}/{file} belongs to another model: {'; '.join(changes[:2])}. Use another "
            "output folder."
        )


def _parse(file: bytes) -> Content:
    """The content of a file that a suite wrote; empty where it is damaged, or something else."""
    try:
        content: Content = parse_json(file)
    except ValueError:
        return {}
    fits = all(is_kind(content.get(name, {}), kind) for name, kind in _KINDS.items())
    return content if fits and content.get("format") == _FORMAT else {}


def _by_scene(evaluation: Evaluation, pattern: str) -> dict[str, list[float | None]]:
    """Method -> a value of each scene, the mean of its rows of metrics; None where it has none."""
    table = evaluation.table
    rows = table[table["metric"].astype(str).str.fullmatch(pattern)]
    means = rows.groupby(["method", "sample"], observed=True, sort=False)["value"].mean().round(4)
    scenes = sorted(table["sample"].cat.categories)
    groups = means.groupby(level="method")
    return {str(m): [*map(values.droplevel("method").get, scenes)] for m, values in groups}


def _prices(context: ModelContext, evaluation: Evaluation) -> dict[str, float]:
    """Seconds of maps for one text an image over those of the embeddings of the images alone.

    Medians over rounds in which all take turns, after one to warm up; a batch of 8 images.
    """
    clip, summary = context.clip, evaluation.summary
    views = Batch(context, range(len(context.data))[:_BATCH]).views
    texts = [view.regions[0].text for view in views]
    queries = queries_of(views, context.encode(texts), texts)
    methods = [name for name in summary.methods if name not in summary.baselines]
    runs = {name: partial(method_of(name, clip).maps, clip, queries) for name in methods}
    runs[""] = torch.no_grad()(partial(clip.encode_image, queries.pixels))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + _ROUNDS):
        for name, run in runs.items():
            begin = time.perf_counter()
            run().sum().item()  # waits for a GPU
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: float(np.median(times[1:])) for name, times in seconds.items()}
    return {name: round(medians[name] / medians[""], 3) for name in methods}


@public("evaluate")
def compare_suites(first: str, second: str) -> dict[str, dict[str, float]]:
    """Two models side by side: "column, method" -> both means, their difference and its interval.

    The difference is :func:`captum_clip.metrics.paired_difference` over the scenes that both
    files have, and `p_holm` its p value adjusted over all rows. Columns and methods of one alone
    are left out.

    Raises:
        InputError: a file that no suite wrote, that of a model which the gate stopped, or two of
            other scenes, versions or measuring code.
    """
    a, b = _read(first), _read(second)
    for key, what in _EQUAL.items():
        if a[key] != b[key]:
            raise InputError(
                f"{first} and {second} have different {what} ({str(a[key])[:60]} and "
                f"{str(b[key])[:60]}); measure both models with one suite and one installation."
            )
    rows: dict[str, dict[str, float]] = {}
    for column, by_method in a["values"].items():
        for method, values in by_method.items():
            others = b["values"].get(column, {}).get(method, [])
            both = [pair for pair in zip(values, others, strict=False) if None not in pair]
            if both:
                x, y = np.transpose(both)
                difference, low, high, p = paired_difference(x, y, resamples=_RESAMPLES)
                gap = {"difference": difference, "low": low, "high": high, "p_holm": p}
                rows[f"{column}, {method}"] = {first: x.mean(), second: y.mean(), **gap}
    if not rows:
        raise InputError(f"{first} and {second} have no method in common; nothing can be compared.")
    adjusted = holm([row["p_holm"] for row in rows.values()]).tolist()
    return {k: {**row, "p_holm": p} for (k, row), p in zip(rows.items(), adjusted, strict=True)}


def _read(path: str) -> Content:
    """The content of a file that a suite wrote, with values."""
    content = _parse(find_file(Path(path)).read_bytes())
    if not content:
        raise InputError(
            f"{path} is damaged, or not a suite_v2.json written by {argument('suite')}."
        )
    if "values" not in content:
        raise InputError(f"{path} has no values to compare. {' '.join(content['verdict'])}")
    return content
