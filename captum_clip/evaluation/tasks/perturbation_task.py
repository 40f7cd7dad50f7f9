"""What becomes of zero-shot classification when the image is removed in the order of the map."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from torch import Tensor

from ... import metrics
from ...metrics.perturbation import TENTHS
from ..batch import MethodOnBatch, Task, queries_of
from ..config import EvaluationConfig, Fill
from ..run import Arrays
from ..table import Metric, Queries

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
_OBJECTS: Final = (1, 2, 3)
_FIFTHS: Final = tuple(fifth / 5 for fifth in range(6))


def _perturbation_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    groups = {}
    for fill in config.fills:
        steps = (
            f"fifths, {config.slow_images} images drawn from all" if fill == "road" else "tenths"
        )
        protocol = f"removed pixels become {TITLES[fill]}, in {steps}"
        for kind in _KINDS:
            title = f"Perturbation: {TITLES[fill]}, map of the {kind} class"
            own = f"{protocol}; map of the {kind} class"
            gaps = _gaps(f"_{fill}_{kind}", f"the {kind} class", own)
            groups[title] = [*_areas(f"_{fill}_{kind}", own), *gaps]
        groups[f"Perturbation by number of objects: {TITLES[fill]}"] = [
            metric
            for count in _OBJECTS
            for metric in _gaps(
                f"_{fill}_{count}",
                "the named object",
                f"{protocol}; scenes of {count}, map of the text that names one of them",
            )
        ]
    return groups


def _measure_perturbation(maps: MethodOnBatch) -> Iterator[Arrays]:
    """Only samples with a class; of classification only those that show nothing else."""
    views = [view for view in maps.batch.views if view.sample.label is not None]
    if not views:
        return
    predicted = dict(zip(maps.batch.views, maps.batch.predicted.tolist(), strict=True))
    labels = [view.sample.label or 0 for view in views]
    wanted: dict[str, list[tuple[int, int]]] = defaultdict(list)  # place and class of the map
    for place, (view, label) in enumerate(zip(views, labels, strict=True)):
        count = len(view.sample.regions)
        if count < 2:
            wanted["predicted"].append((place, predicted[view]))
            wanted["true"].append((place, label))
        if count in _OBJECTS:
            wanted[str(count)].append((place, label))
    # Mostly the same class twice, and one test will do.
    pairs = list(dict.fromkeys(pair for of in wanted.values() for pair in of))
    if not pairs:
        return
    queries = queries_of(
        [views[place] for place, _ in pairs],
        maps.context.classes[[label for _, label in pairs]],
        [maps.context.data.classes[label] for _, label in pairs],
    )
    kept, raw = maps.compute_finite(queries)
    slow = maps.context.slow_numbers
    for fill in maps.config.fills:  # ROAD takes long
        seen = [i for i, k in enumerate(kept) if fill != "road" or queries.numbers[k] in slow]
        if not seen:
            continue
        part, own = queries.part([kept[i] for i in seen]), [pairs[kept[i]] for i in seen]
        true = [labels[place] for place, _ in own]
        test = _test(maps, part, raw[seen], fill, [label for _, label in own], true)
        rows = {pair: row for row, pair in enumerate(own)}
        for kind, of in wanted.items():
            known = [rows[pair] for pair in of if pair in rows]
            if known:
                yield from _rows(f"{fill}_{kind}", test, known, part.part(known))


PERTURBATION: Final = Task(_perturbation_metrics, _measure_perturbation)
"""Deletion by pixels, of the predicted and of the true class, and by number of objects."""


def _areas(end: str, protocol: str) -> list[Metric]:
    area = "area under the curve of top-1 accuracy (of the true class, all classes of the data)"
    least = "the same, least relevant first; with the same fill it is also the area of insertion"
    return [
        Metric(f"most{end}", f"{area}, most relevant first; {protocol}", "low"),
        Metric(f"least{end}", f"{least}; {protocol}"),
        Metric(f"gap{end}", f"least less most; chance is 0; {protocol}", constant=0),
    ]


def _gaps(end: str, what: str, protocol: str) -> list[Metric]:
    cosine = f"area under the curve of the cosine with {what}, least relevant first less most"
    margin = (
        f"the same of the margin, the cosine with {what} less the highest of all other classes: "
        "what would change the cosine with any text drops out"
    )
    return [
        Metric(f"gap_cosine{end}", f"{cosine}; chance is 0; {protocol}", constant=0),
        Metric(f"gap_margin{end}", f"{margin}; chance is 0; {protocol}", constant=0),
    ]


def _test(
    maps: MethodOnBatch,
    queries: Queries,
    heatmap: Tensor,
    fill: Fill,
    targets: list[int],
    labels: list[int],
) -> metrics.PerturbationTest:
    """The test of images with maps (N, h, w) of classes `targets`."""
    fills: dict[Fill, Callable[[], Any]] = {
        "mean": lambda: metrics.mean_fill(queries.pixels),
        "black": lambda: maps.clip.color((0, 0, 0)),
        "blur": lambda: metrics.blur_fill(queries.pixels),
        "road": lambda: "road",
    }
    return metrics.perturbation_test(
        maps.context.forward(maps.context.classes),
        queries.pixels,
        heatmap.to(queries.pixels),
        targets,
        fill=fills[fill](),
        labels=labels,
        fractions=_FIFTHS if fill == "road" else TENTHS,
        **maps.options_of(queries),
    )


def _rows(
    end: str, test: metrics.PerturbationTest, rows: Sequence[int], queries: Queries
) -> Iterator[Arrays]:
    """Of some images of a test: gaps, and where they show one thing the curves of top-1."""
    top1, margin = test.top1, test.margin
    assert top1 is not None
    assert margin is not None
    yield queries.rows_of(f"gap_cosine_{end}", test.score.gap[rows])
    yield queries.rows_of(f"gap_margin_{end}", margin.gap[rows])
    if not end.endswith(_KINDS):
        return
    yield queries.rows_of(f"most_{end}", top1.most_area[rows])
    yield queries.rows_of(f"least_{end}", top1.least_area[rows])
    yield queries.rows_of(f"gap_{end}", top1.gap[rows])
    for start, curve in ((MOST_FIRST, top1.most_first), (LEAST_FIRST, top1.least_first)):
        for x, column in zip(top1.fractions.tolist(), curve[rows].T, strict=True):
            yield queries.rows_of(f"{start}{end}", column, x=x)
