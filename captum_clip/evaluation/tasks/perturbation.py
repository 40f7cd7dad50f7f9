"""What becomes of zero-shot classification when the image is removed in the order of the map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from typing_extensions import override

from ... import metrics
from ...runs import Arrays
from ..config import EvaluationConfig, Fill
from ..method_on_batch import MethodOnBatch, queries_of
from ..methods import Queries
from ..metric import Metric
from ..table import rows_of
from .base import Task

TITLES: Final[dict[str, str]] = {
    "mean": "the mean colour",
    "black": "black",
    "blur": "a blur",
    "road": "ROAD's noisy linear imputation",
}
MOST_FIRST: Final = "curve_most_"
LEAST_FIRST: Final = "curve_least_"
"""Begin the names of curves, as "curve_most_mean_predicted"; their `x` is the share removed."""
_KINDS: Final = ("predicted", "true")
_FIFTHS: Final = tuple(fifth / 5 for fifth in range(6))
_TENTHS: Final = tuple(tenth / 10 for tenth in range(11))


class Perturbation(Task):
    """Deletion by pixels, of the predicted and of the true class."""

    name = "perturbation"

    @override
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        return {
            f"Perturbation: {TITLES[fill]}, map of the {kind} class": _metrics(config, fill, kind)
            for fill in config.fills
            for kind in _KINDS
        }

    @override
    def measure(self, maps: MethodOnBatch) -> Iterator[Arrays]:
        """Only samples with a class."""
        views = [view for view in maps.batch.views if view.sample.label is not None]
        if not views:
            return
        predicted = dict(zip(maps.batch.views, maps.batch.predicted.tolist(), strict=True))
        chosen = {
            "predicted": [predicted[view] for view in views],
            "true": [view.sample.label or 0 for view in views],
        }
        # Mostly the same class twice, and one test will do.
        pairs = list(dict.fromkeys(pair for of in chosen.values() for pair in enumerate(of)))
        queries = queries_of(
            [views[place] for place, _ in pairs],
            maps.context.classes[[label for _, label in pairs]],
            [maps.context.data.classes[label] for _, label in pairs],
        )
        truth = [(label, chosen["true"][place]) for place, label in pairs]
        kept, raw = maps.compute_finite(queries)
        for fill in maps.config.fills:
            tests = {
                pairs[index]: _test(maps, queries.part([index]), heat, fill, *truth[index])
                for index, heat in zip(kept, raw, strict=True)
                if fill != "road" or queries.numbers[index] < maps.config.few  # ROAD takes long
            }
            for kind, labels in chosen.items():
                own = [pair for pair in enumerate(labels) if pair in tests]
                numbers = [views[place].number for place, _ in own]
                classes = [maps.context.data.classes[label] for _, label in own]
                if own:
                    of = [tests[pair] for pair in own]
                    yield from _rows(f"{fill}_{kind}", of, numbers, classes)


def _metrics(config: EvaluationConfig, fill: Fill, kind: str) -> list[Metric]:
    end = f"_{fill}_{kind}"
    steps = f"fifths, first {config.few} images" if fill == "road" else "tenths"
    said = f"removed pixels become {TITLES[fill]}, in {steps}; map of the {kind} class"
    area = "area under the curve of top-1 accuracy (of the true class, all classes of the data)"
    return [
        Metric(f"most{end}", f"{area}, most relevant first; {said}", "low"),
        Metric(
            f"least{end}",
            f"the same, least relevant first; with the same fill it is also the area of insertion; "
            f"{said}",
        ),
        Metric(f"gap{end}", f"least less most; chance is 0; {said}"),
        Metric(
            f"gap_cosine{end}", f"the same of the cosine with the {kind} class; chance is 0; {said}"
        ),
    ]


def _test(
    maps: MethodOnBatch, query: Queries, heat: Tensor, fill: Fill, target: int, label: int
) -> metrics.PerturbationTest:
    """The test of one image with one map (h, w), of class `target`."""
    return metrics.perturbation_test(
        maps.context.forward(maps.context.classes),
        query.pixels,
        heat[None].to(query.pixels),
        [target],
        fill=_filled(maps, query.pixels, fill),
        labels=[label],
        fractions=_FIFTHS if fill == "road" else _TENTHS,
        batch_size=maps.config.batch_size,
        seed=maps.config.seed + query.numbers[0],
    )


def _rows(
    end: str,
    tests: Sequence[metrics.PerturbationTest],
    numbers: Sequence[int],
    classes: Sequence[str],
) -> Iterator[Arrays]:
    top1 = [test.top1 for test in tests if test.top1 is not None]
    where = numbers, classes
    yield rows_of(f"most_{end}", torch.cat([curve.most_area for curve in top1]), *where)
    yield rows_of(f"least_{end}", torch.cat([curve.least_area for curve in top1]), *where)
    yield rows_of(f"gap_{end}", torch.cat([curve.gap for curve in top1]), *where)
    yield rows_of(f"gap_cosine_{end}", torch.cat([test.score.gap for test in tests]), *where)
    most = torch.cat([curve.most_first for curve in top1])  # (N, F)
    least = torch.cat([curve.least_first for curve in top1])
    for start, values in ((MOST_FIRST, most), (LEAST_FIRST, least)):
        for x, column in zip(tests[0].score.fractions.tolist(), values.T, strict=True):
            yield rows_of(f"{start}{end}", column, *where, x=x)


def _filled(maps: MethodOnBatch, images: Tensor, fill: Fill) -> Any:
    if fill == "road":
        return "road"
    if fill == "black":
        return maps.clip.color((0, 0, 0))
    return metrics.blur_fill(images) if fill == "blur" else metrics.mean_fill(images)
