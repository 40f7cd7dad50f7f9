"""Is a map faithful? Against random changes, modified models, and pixels removed in its order."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from torch import Tensor

from ... import metrics
from ...folders.storage import Skipped
from ..batch import Batch, MethodOnBatch, Task, View, queries_of
from ..run import Arrays, EvaluationConfig
from ..table import Metric, Queries, listed

_SHARE: Final = 0.2
_NOISE_RADIUS: Final = 0.02
_NOISES: Final = 5
_OF_ONE_TARGET: Final = ("masks", "classes", "retrieval")


def _measure_faithfulness(batch: MethodOnBatch) -> Iterator[Arrays]:
    first = batch.first_queries
    kept, raw = batch.compute_finite(first)
    if not kept:
        return
    every = batch.samples.remember(  # for all methods, since this is most of the work
        "masked changes",
        partial(
            metrics.masked_changes,
            batch.context.forward(first.embeddings),
            first.pixels,
            list(range(len(first))),
            grid=batch.clip.grid(*first.size),
            share=_SHARE,
            samples=batch.config.draws,
            **batch.options_of(first),
        ),
    )
    changes = metrics.MaskedChanges(every.masks[kept], every.changes[kept])
    queries = first.select(kept)
    correlation = metrics.faithfulness_correlation(raw, changes)
    yield queries.rows_of("faithfulness_correlation", correlation, chance=0)
    square = changes.changes.square().mean(1)
    ratio = {"numerator": metrics.infidelity(raw, changes), "denominator": square}
    yield queries.rows_of("infidelity", ratio)
    slow = batch.slow(queries)
    attribute = batch.method.attribute(batch.clip, slow.embeddings)
    if attribute is not None and len(slow):
        options = {"radius": _NOISE_RADIUS, "samples": _NOISES, **batch.options_of(slow)}
        values = metrics.sensitivity(attribute, slow.pixels, [*range(len(slow))], **options)
        yield slow.rows_of("sensitivity", values)
        for index in (~values.isfinite()).nonzero()[:, 0].tolist():
            reason = f"{batch.method.name}: a map under noise holds NaN or infinity"
            batch.skipped.append(Skipped(slow.numbers[index], reason))


FAITHFULNESS: Final = Task(
    lambda config: listed(
        "faithfulness", share=_SHARE, radius=_NOISE_RADIUS, noises=_NOISES, **vars(config)
    ),
    _measure_faithfulness,
    _OF_ONE_TARGET,
)
"""Changes by random masks, predicted; Captum's sensitivity. One target an image, its first."""


def _measure_sanity(batch: MethodOnBatch) -> Iterator[Arrays]:
    """A constant map has no ranks, and correlates with nothing."""
    context, empty = batch.context, batch.context.encode([""])
    if batch.method.attribute(batch.clip, empty) is None:
        return
    first = batch.slow(batch.first_queries)
    kept, raw = batch.compute_finite(first)
    if not kept:
        return
    queries = first.select(kept)
    other = context.encode([_other(batch, number) for number in queries.numbers])
    changed = {
        "empty_prompt": (empty.expand_as(other), batch.clip),
        "other_prompt": (other, batch.clip),
        "random_parameters": (queries.embeddings, context.random_copy),
        "renumbered_heads": (queries.embeddings, context.renumbered_copy),
    }
    for name, (embeddings, clip) in changed.items():
        if clip is not None:
            finite, changed_maps = batch.compute_finite(
                replace(queries, embeddings=embeddings), clip
            )
            if finite:
                correlation = metrics.rank_correlation(raw[finite], changed_maps)
                yield queries.select(finite).rows_of(name, correlation, chance=0)


SANITY: Final = Task(
    lambda config: listed("sanity", **vars(config)), _measure_sanity, _OF_ONE_TARGET
)
"""Rank correlation with the map of another model or prompt; one target per image, its first."""


def _other(batch: MethodOnBatch, number: int) -> str:
    """A text that names nothing in the sample, whatever the method and batch; "" if all do."""
    [view] = [view for view in batch.samples.views if view.number == number]
    classes, named = batch.context.data.classes, {region.text for region in view.regions}
    if view.sample.label is not None:
        named.add(classes[view.sample.label])
    texts = [text for text in classes if text not in named]
    key = f"{batch.config.seed} {view.sample.name}".encode("utf-8", "surrogateescape")
    drawn = int.from_bytes(hashlib.sha256(key).digest()[:8], "big")
    return texts[drawn % len(texts)] if texts else ""


TITLES: Final[dict[str, str]] = {"mean": "the mean color", "black": "black", "blur": "a blur"}
MOST_FIRST: Final = "curve_most_"
LEAST_FIRST: Final = "curve_least_"
"""Begin the names of curves, as "curve_most_mean_predicted"; their `x` is the share removed."""
_PREDICTED_TRUE: Final = ("predicted", "true")
_OBJECTS: Final = (1, 2, 3)


def _perturbation_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    tables: dict[str, list[Metric]] = {}
    for fill in config.fills:
        fields = {"fill": fill, "removed": TITLES[fill]}
        for kind in _PREDICTED_TRUE:
            tables |= listed("perturbation", kind=kind, **fields)
        tables |= listed("perturbation by number", **fields)
        tables |= listed("retrieval", **fields)
    return tables


def _classes_tested(samples: Batch) -> dict[str, list[tuple[View, int]]]:
    """Kind of rows -> the view and the class of each map that they are measured on.

    Only samples with a class, maybe their caption; of others only those that show nothing else.
    """
    plan: dict[str, list[tuple[View, int]]] = defaultdict(list)
    for index, view in enumerate(samples.views):
        label, count = view.sample.label, len(view.sample.regions)
        if label is not None and view.sample.caption is not None:
            plan["caption"].append((view, label))
            continue
        if label is not None and count < 2:
            plan["predicted"].append((view, int(samples.predicted[index])))
            plan["true"].append((view, label))
        if label is not None and count in _OBJECTS:
            plan[str(count)].append((view, label))
    return plan


def _measure_perturbation(batch: MethodOnBatch) -> Iterator[Arrays]:
    plan, context = _classes_tested(batch.samples), batch.context
    # The true class is mostly the predicted one, and one test will do.
    pairs = list(dict.fromkeys(pair for of_kind in plan.values() for pair in of_kind))
    if not pairs:
        return
    views, labels = [view for view, _ in pairs], [label for _, label in pairs]
    texts = [context.data.classes[label] for label in labels]
    queries = queries_of(views, context.classes[labels], texts)
    kept, raw = batch.compute_finite(queries)
    if not kept:
        return
    measured = queries.select(kept)
    row_of = {pairs[index]: row for row, index in enumerate(kept)}
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
        for kind, of_kind in plan.items():
            rows = [row_of[pair] for pair in of_kind if pair in row_of]
            if rows:
                yield from _gap_rows(f"{fill}_{kind}", test, rows, measured.select(rows))


PERTURBATION: Final = Task(
    _perturbation_metrics, _measure_perturbation, ("classes", "counts", "retrieval")
)
"""Deletion by pixels, of the predicted and the true class, of captions, by number of objects."""


def _fill(batch: MethodOnBatch, name: str, pixels: Tensor) -> Tensor:
    if name == "black":
        return batch.clip.color((0, 0, 0))
    return metrics.mean_fill(pixels) if name == "mean" else metrics.blur_fill(pixels)


def _gap_rows(
    ending: str, test: metrics.PerturbationTest, rows: Sequence[int], queries: Queries
) -> Iterator[Arrays]:
    """Gaps of some images of a test, and where they show one thing the curves of top-1."""
    top1, margin = test.top1, test.margin
    assert top1 is not None
    assert margin is not None
    yield queries.rows_of(f"gap_cosine_{ending}", test.score.gap[rows])
    yield queries.rows_of(f"gap_margin_{ending}", margin.gap[rows])
    if not ending.endswith((*_PREDICTED_TRUE, "caption")):
        return
    yield queries.rows_of(f"most_{ending}", top1.most_area[rows])
    yield queries.rows_of(f"least_{ending}", top1.least_area[rows])
    yield queries.rows_of(f"gap_{ending}", top1.gap[rows])
    for start, curve in ((MOST_FIRST, top1.most_first), (LEAST_FIRST, top1.least_first)):
        for x, column in zip(top1.fractions.tolist(), curve[rows].T, strict=True):
            yield queries.rows_of(f"{start}{ending}", column, x=x)
