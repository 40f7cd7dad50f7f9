"""Frozen suites: settings that nobody changes, and two models by them, scene by scene."""

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from .._version import __version__
from ..checks import check_choice, find_file
from ..errors import InputError, argument, is_kind, parse_json, public
from ..folders.bootstrap import holm, paired_difference
from ..folders.storage import Content, storage_of
from ..folders.workers import Progress, RunConfig
from .data import open_data
from .evaluator import Evaluation, check_pandas, evaluate
from .run import EvaluationConfig

SUITES: Final[dict[str, Any]] = json.loads(Path(__file__).with_name("suite.json").read_text())
"""By name: the seed, the settings of its parts, column -> pattern of metrics, the hash of it."""

_SUITE_FORMAT: Final = "captum_clip suite 2"
_OPEN: Final = {"model", "output", *(setting.name for setting in fields(RunConfig))} - {"seed"}
_SUITE_KINDS: Final = {
    **{"suite": str, "hash": str, "versions": dict[str, Any]},
    **{"model": dict[str, Any], "verdict": list[str]},
    "values": dict[str, dict[str, list[float | None]]],  # absent where the gate stopped the model
}
_GAP: Final = ("difference", "low", "high", "p_holm")
_RESAMPLES: Final = 20_000  # whose least p value stays below .05 times the rows of a comparison


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


@public("evaluate")
def run_suite(name: str, config: EvaluationConfig, *, progress: Progress | None = None) -> Content:
    """Measure a model by a frozen suite; write ``suite_NAME.json``.

    Each part is an evaluation in a folder of its own, which goes on after a stop. A model that the
    gate of a part stops has no values.

    Args:
        name: of the suite, "v2".
        config: the model, the output folder, and how to compute; all else is the suite's.
        progress: as of :func:`evaluate`, for one part after the other.

    Returns:
        The content of the JSON file; docs/appendix/protocols.md describes it.

    Raises:
        InputError: another suite, a setting that the suite fixes, scenes that are drawn otherwise
            here, and what :func:`evaluate` refuses.
    """
    check_choice(name, SUITES, name="a suite")
    check_pandas()
    suite = SUITES[name]
    for setting in fields(config):
        if setting.name not in _OPEN and getattr(config, setting.name) != setting.default:
            raise InputError(f"the suite {name} fixes {argument(setting.name)}; leave it out.")
    if (drawn := suite_hash(name)) != suite["hash"]:
        raise InputError(
            f"the scenes of the suite {name} differ on this installation (hash {drawn[:12]}, "
            f"expected {suite['hash'][:12]}), so no result could be compared; it needs "
            f"{suite['drawn_with']}."
        )
    evaluations = [
        evaluate(
            replace(config, output=f"{config.output}/{folder}", seed=suite["seed"], **settings),
            progress=progress,
        )
        for folder, settings in suite["parts"].items()
    ]
    gates = {gate.data: gate for result in evaluations for gate in result.summary.gates}
    content: Content = {
        **{"format": _SUITE_FORMAT, "suite": name, "hash": drawn, "model": evaluations[0].model},
        "versions": {"captum_clip": __version__, "torch": torch.__version__},
        "gate": {data: {n: c._asdict() for n, c in g.checks.items()} for data, g in gates.items()},
        "verdict": [str(gate) for gate in gates.values()],
    }
    if all(gate.is_above_chance for gate in gates.values()):
        content["values"] = {
            column: values
            for column, pattern in suite["columns"].items()
            for evaluation in evaluations
            if (values := _by_scene(evaluation, pattern))
        }
    storage_of(config.output).write(f"suite_{name}.json", json.dumps(content).encode())
    return content


def _by_scene(evaluation: Evaluation, pattern: str) -> dict[str, list[float | None]]:
    """Method -> a value of each scene, the mean of its rows of metrics; None where it has none."""
    table = evaluation.table
    rows = table[table["metric"].astype(str).str.fullmatch(pattern)]
    means = rows.groupby(["method", "sample"], observed=True, sort=False)["value"].mean().round(4)
    scenes = sorted(table["sample"].cat.categories)
    groups = means.groupby(level="method")
    return {str(m): [*map(values.droplevel("method").get, scenes)] for m, values in groups}


@public("evaluate")
def compare_suites(first: str, second: str) -> dict[str, dict[str, float]]:
    """Two models side by side: "column, method" -> both means, their difference and its interval.

    The difference is :func:`captum_clip.metrics.paired_difference` over the scenes that both
    files have, and `p_holm` its p value adjusted over all rows. Columns and methods of one alone
    are left out.

    Raises:
        InputError: a file that no suite wrote, that of a model which the gate stopped, or two of
            other scenes or versions.
    """
    a, b = _read_suite(first), _read_suite(second)
    for key, what in (("hash", "scenes"), ("versions", "versions")):
        if a[key] != b[key]:
            raise InputError(
                f"{first} and {second} have different {what} ({str(a[key])[:60]} and "
                f"{str(b[key])[:60]}); measure both models with one suite and one installation."
            )
    rows: dict[str, dict[str, float]] = {}
    for column, by_method in a["values"].items():
        for method, values in by_method.items():
            others = b["values"].get(column, {}).get(method, [])
            if both := [pair for pair in zip(values, others, strict=False) if None not in pair]:
                x, y = np.transpose(both)
                gap = zip(_GAP, paired_difference(x, y, resamples=_RESAMPLES), strict=True)
                rows[f"{column}, {method}"] = {first: x.mean(), second: y.mean(), **dict(gap)}
    if not rows:
        raise InputError(f"{first} and {second} have no method in common; nothing can be compared.")
    adjusted = holm([row["p_holm"] for row in rows.values()]).tolist()
    return {k: {**row, "p_holm": p} for (k, row), p in zip(rows.items(), adjusted, strict=True)}


def _read_suite(path: str) -> Content:
    """The content of a file that a suite wrote, with values."""
    written = find_file(Path(path)).read_bytes()
    try:
        content: Content = parse_json(written)
    except ValueError:
        content = {}
    fits = all(is_kind(content.get(name, {}), kind) for name, kind in _SUITE_KINDS.items())
    if not fits or content.get("format") != _SUITE_FORMAT:
        raise InputError(
            f"{path} is damaged, or not a suite_v2.json written by {argument('suite')}."
        )
    if "values" not in content:
        raise InputError(f"{path} has no values to compare. {' '.join(content['verdict'])}")
    return content
