"""Does the class fade when pixels are removed in the order of the map?"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from torch import Tensor

from ... import metrics
from ..batch import Batch, MethodOnBatch, Task, View, queries_of
from ..config import EvaluationConfig
from ..table import Metric, Queries, listed
from ..units import Arrays

TITLES: Final[dict[str, str]] = {"mean": "the mean color", "black": "black", "blur": "a blur"}
MOST_FIRST: Final = "curve_most_"
LEAST_FIRST: Final = "curve_least_"
"""Begin the names of curves, as "curve_most_mean_predicted"; their `x` is the share removed."""
_KINDS: Final = ("predicted", "true")
_OBJECTS: Final = (1, 2, 3)


def _metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    tables: dict[str, list[Metric]] = {}
    for fill in config.fills:
        fields = {"fill": fill, "removed": TITLES[fill]}
        for kind in _KINDS:
            tables |= listed("perturbation", kind=kind, **fields)
        tables |= listed("perturbation by number", **fields)
        tables |= listed("retrieval", **fields)
    return tables


def _plan(samples: Batch) -> dict[str, list[tuple[View, int]]]:
    """Kind of rows -> the view and the class of each map that they are measured on.

    Only samples with a class, maybe their caption; of others only those that show nothing else.
    """
    plan: dict[str, list[tuple[View, int]]] = defaultdict(list)
    for place, view in enumerate(samples.views):
        label, count = view.sample.label, len(view.sample.regions)
        if label is not None and view.sample.caption is not None:
            plan["caption"].append((view, label))
            continue
        if label is not None and count < 2:
            plan["predicted"].append((view, int(samples.predicted[place])))
            plan["true"].append((view, label))
        if label is not None and count in _OBJECTS:
            plan[str(count)].append((view, label))
    return plan


def _measure(batch: MethodOnBatch) -> Iterator[Arrays]:
    plan, context = _plan(batch.samples), batch.context
    # The true class is mostly the predicted one, and one test will do.
    pairs = list(dict.fromkeys(pair for wanted in plan.values() for pair in wanted))
    if not pairs:
        return
    views, labels = [view for view, _ in pairs], [label for _, label in pairs]
    texts = [context.data.classes[label] for label in labels]
    queries = queries_of(views, context.classes[labels], texts)
    kept, raw = batch.compute_finite(queries)
    if not kept:
        return
    measured = queries.select(kept)
    places = {pairs[index]: row for row, index in enumerate(kept)}
    for fill in batch.config.fills:
        test = metrics.perturbation_test(
            context.forward(context.classes),
            measured.pixels,
            raw.to(measured.pixels),
            [labels[index] for index in kept],
            fill=_fill(batch, fill, measured.pixels),
            labels=[views[index].sample.label or 0 for index in kept],
            **batch.options_of(measured),
        )
        for kind, wanted in plan.items():
            rows = [places[pair] for pair in wanted if pair in places]
            if rows:
                yield from _rows(f"{fill}_{kind}", test, rows, measured.select(rows))


PERTURBATION: Final = Task(_metrics, _measure, ("classes", "counts", "retrieval"))
"""Deletion by pixels, of the predicted and the true class, of captions, by number of objects."""


def _fill(batch: MethodOnBatch, name: str, pixels: Tensor) -> Tensor:
    if name == "black":
        return batch.clip.color((0, 0, 0))
    return metrics.mean_fill(pixels) if name == "mean" else metrics.blur_fill(pixels)


def _rows(
    ending: str, test: metrics.PerturbationTest, rows: Sequence[int], queries: Queries
) -> Iterator[Arrays]:
    """Gaps of some images of a test, and where they show one thing the curves of top-1."""
    top1, margin = test.top1, test.margin
    assert top1 is not None
    assert margin is not None
    yield queries.rows_of(f"gap_cosine_{ending}", test.score.gap[rows])
    yield queries.rows_of(f"gap_margin_{ending}", margin.gap[rows])
    if not ending.endswith((*_KINDS, "caption")):
        return
    yield queries.rows_of(f"most_{ending}", top1.most_area[rows])
    yield queries.rows_of(f"least_{ending}", top1.least_area[rows])
    yield queries.rows_of(f"gap_{ending}", top1.gap[rows])
    for start, curve in ((MOST_FIRST, top1.most_first), (LEAST_FIRST, top1.least_first)):
        for x, column in zip(top1.fractions.tolist(), curve[rows].T, strict=True):
            yield queries.rows_of(f"{start}{ending}", column, x=x)
