"""What becomes of zero-shot classification when the image is removed in the order of the map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import metrics
from ..config import EvaluationConfig, Fill
from ..methods import Queries
from ..metric import CurveRows, Metric, Rows
from .base import Case, Found, Task, queries_of

TITLES: dict[str, str] = {
    "mean": "the mean colour",
    "black": "black",
    "blur": "a blur",
    "road": "ROAD's noisy linear imputation",
}
_KINDS = ("predicted", "true")
_FIFTHS = tuple(fifth / 5 for fifth in range(6))
_TENTHS = tuple(tenth / 10 for tenth in range(11))


class Perturbation(Task):
    """Deletion by pixels, of the predicted and of the true class."""

    name = "perturbation"
    what = "deletion curves of zero-shot classification"

    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        """See :class:`Task`."""
        tables = {}
        for fill in config.fills:
            for kind in _KINDS:
                title = f"Perturbation: {TITLES[fill]}, map of the {kind} class"
                tables[title] = _metrics(config, fill, kind)
        return tables

    def measure(self, case: Case) -> Found:
        """See :class:`Task`; only samples with a class."""
        seen = [one for one in case.seen if one.sample.label is not None]
        if not seen:
            return Found()
        chosen = {
            "predicted": [int(case.shared.predicted[case.seen.index(one)]) for one in seen],
            "true": [one.sample.label or 0 for one in seen],
        }
        pairs = [pair for classes in chosen.values() for pair in enumerate(classes)]
        pairs = list(dict.fromkeys(pairs))  # mostly the same class twice, and one test will do
        places, classes = zip(*pairs, strict=True)
        queries = queries_of(
            [seen[place] for place in places],
            case.bench.classes[list(classes)],
            [case.bench.data.classes[number] for number in classes],
        )
        raw = case.maps(queries)
        finite = set(case.finite(queries, raw))
        rows: dict[str, Rows] = {}
        curves: dict[str, CurveRows] = {}
        for fill in case.config.fills:
            tests = {
                pair: _test(case, queries, raw, index, fill, pair[1], chosen["true"][pair[0]])
                for index, pair in enumerate(pairs)
                if index in finite and _wanted(case, fill, queries.numbers[index])
            }
            for kind, labels in chosen.items():
                kept = [place for place, label in enumerate(labels) if (place, label) in tests]
                numbers = [seen[place].number for place in kept]
                of = [tests[place, labels[place]] for place in kept]
                if of:
                    rows |= _areas(case, of, numbers, f"{fill}_{kind}")
                    curves |= _curves(of, numbers, f"{fill}_{kind}")
        return Found(rows, curves)


def _wanted(case: Case, fill: Fill, number: int) -> bool:
    """ROAD's fill takes long."""
    return fill != "road" or number < case.config.few


def _metrics(config: EvaluationConfig, fill: Fill, kind: str) -> list[Metric]:
    end = f"_{fill}_{kind}"
    steps = f"fifths, first {config.few} images" if fill == "road" else "tenths"
    said = f"removed pixels become {TITLES[fill]}, in {steps}; map of the {kind} class"
    area = "area under the curve of top-1 accuracy (of the true class, all classes of the data)"
    return [
        Metric(f"most{end}", "mean", "low", f"{area}, most relevant first; {said}"),
        Metric(
            f"least{end}",
            "mean",
            "high",
            f"the same, least relevant first; with the same fill it is also the area of insertion; "
            f"{said}",
        ),
        Metric(f"gap{end}", "mean", "high", f"least less most; chance is 0; {said}"),
        Metric(
            f"gap_cosine{end}",
            "mean",
            "high",
            f"the same of the cosine with the {kind} class; chance is 0; {said}",
        ),
    ]


def _test(
    case: Case, queries: Queries, raw: Tensor, index: int, fill: Fill, target: int, label: int
) -> metrics.PerturbationTest:
    """The test of one image with one map."""
    pixels = queries.pixels[index : index + 1]
    return metrics.perturbation_test(
        case.bench.forward(case.bench.classes),
        pixels,
        raw[index : index + 1].to(pixels),
        [target],
        fill=_filled(case, pixels, fill),
        labels=[label],
        fractions=_FIFTHS if fill == "road" else _TENTHS,
        batch_size=case.config.batch_size,
        seed=case.config.seed + queries.numbers[index],
    )


def _areas(
    case: Case, tests: Sequence[metrics.PerturbationTest], numbers: Sequence[int], end: str
) -> dict[str, Rows]:
    top1 = [test.top1 for test in tests if test.top1 is not None]
    found = {
        "most": [one.most_area for one in top1],
        "least": [one.least_area for one in top1],
        "gap": [one.gap for one in top1],
        "gap_cosine": [test.score.gap for test in tests],
    }
    return {
        f"{name}_{end}": case.numbered([torch.cat(parts)], numbers) for name, parts in found.items()
    }


def _curves(
    tests: Sequence[metrics.PerturbationTest], numbers: Sequence[int], end: str
) -> dict[str, CurveRows]:
    owners = np.array(numbers, dtype=np.int64)
    fractions = tests[0].score.fractions.cpu().numpy()
    found = {}
    for order in ("most", "least"):
        values = torch.cat([getattr(test.top1, f"{order}_first") for test in tests])
        table = values.double().cpu().numpy()
        found[f"{order}_{end}"] = CurveRows(owners, fractions, table)
    return found


def _filled(case: Case, images: Tensor, fill: Fill) -> Any:
    if fill == "road":
        return "road"
    if fill == "black":
        return case.clip.color((0, 0, 0))
    return metrics.blur_fill(images) if fill == "blur" else metrics.mean_fill(images)
