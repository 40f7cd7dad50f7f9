"""Is a map faithful? Against random changes, modified models, and pixels removed in its order."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Final, NamedTuple

from torch import Tensor

from ... import metrics
from ...folders.storage import Skipped
from ..batch import Batch, MethodOnBatch, Task, View, queries_of
from ..run import Arrays, EvaluationConfig
from ..table import Metric, Queries, listed

_SHARE: Final = 0.2  # of the cells that a random mask removes
_NOISE_RADIUS: Final = 0.02
_NOISES: Final = 5
_OF_ONE_TARGET: Final = ("masks", "classes", "retrieval")
"""The kinds of truth that give each image a target."""


def _measure_faithfulness(on_batch: MethodOnBatch) -> Iterator[Arrays]:
    kept, raw = on_batch.compute_finite(on_batch.first_queries)
    if not kept:
        return
    # The changes serve all methods, since they take most of the time.
    of_all = on_batch.samples.remember("masked changes", lambda: _masked_changes(on_batch))
    changes = metrics.MaskedChanges(of_all.masks[kept], of_all.changes[kept])
    queries = on_batch.first_queries.select(kept)
    correlation = metrics.faithfulness_correlation(raw, changes)
    yield queries.rows_of("faithfulness_correlation", correlation, chance=0)
    mean_square = changes.changes.square().mean(1)
    ratio = {"numerator": metrics.infidelity(raw, changes), "denominator": mean_square}
    yield queries.rows_of("infidelity", ratio)
    yield from _sensitivity_rows(on_batch, on_batch.slow(queries))


def _masked_changes(on_batch: MethodOnBatch) -> metrics.MaskedChanges:
    """Change all images of a batch by random masks."""
    queries = on_batch.first_queries
    return metrics.masked_changes(
        on_batch.context.forward(queries.embeddings),
        queries.pixels,
        list(range(len(queries))),
        grid=on_batch.clip.grid(*queries.size),
        share=_SHARE,
        samples=on_batch.config.draws,
        **on_batch.options_of(queries),
    )


def _sensitivity_rows(on_batch: MethodOnBatch, queries: Queries) -> Iterator[Arrays]:
    """Yield nothing for a method whose maps are drawn or read, and so do not see the noise."""
    attribute = on_batch.method.attribute(on_batch.clip, queries.embeddings)
    if attribute is None or not len(queries):
        return
    values = metrics.sensitivity(
        attribute,
        queries.pixels,
        list(range(len(queries))),
        radius=_NOISE_RADIUS,
        samples=_NOISES,
        **on_batch.options_of(queries),
    )
    yield queries.rows_of("sensitivity", values)
    for index in (~values.isfinite()).nonzero()[:, 0].tolist():
        reason = f"{on_batch.method.name}: a map under noise holds NaN or infinity"
        on_batch.skipped.append(Skipped(queries.numbers[index], reason))


FAITHFULNESS: Final = Task(
    lambda config: listed(
        "faithfulness", share=_SHARE, radius=_NOISE_RADIUS, noises=_NOISES, **vars(config)
    ),
    _measure_faithfulness,
    _OF_ONE_TARGET,
)
"""Predictions of changes by random masks, and Captum's sensitivity; for the first target."""


def _measure_sanity(on_batch: MethodOnBatch) -> Iterator[Arrays]:
    """Correlate maps with those of a changed model or prompt; a constant map gets 0."""
    context = on_batch.context
    empty = context.encode([""])
    if on_batch.method.attribute(on_batch.clip, empty) is None:
        return
    slow = on_batch.slow(on_batch.first_queries)
    kept, raw = on_batch.compute_finite(slow)
    if not kept:
        return
    queries = slow.select(kept)
    other = context.encode([_other_text(on_batch, number) for number in queries.numbers])
    changes = {
        "empty_prompt": (empty.expand_as(other), on_batch.clip),
        "other_prompt": (other, on_batch.clip),
        "random_parameters": (queries.embeddings, context.random_copy),
        "renumbered_heads": (queries.embeddings, context.renumbered_copy),
    }
    for metric, (embeddings, clip) in changes.items():
        if clip is None:
            continue
        changed_queries = replace(queries, embeddings=embeddings)
        finite, changed_maps = on_batch.compute_finite(changed_queries, clip)
        if finite:
            correlation = metrics.rank_correlation(raw[finite], changed_maps)
            yield queries.select(finite).rows_of(metric, correlation, chance=0)


SANITY: Final = Task(
    lambda config: listed("sanity", **vars(config)), _measure_sanity, _OF_ONE_TARGET
)
"""Rank correlation with the map of another model or prompt; one target per image, its first."""


def _other_text(on_batch: MethodOnBatch, number: int) -> str:
    """Draw a class that the sample does not show; "" if it shows all.

    The draw is the same for every method and batch.
    """
    [view] = [view for view in on_batch.samples.views if view.number == number]
    classes = on_batch.context.data.classes
    shown = {region.text for region in view.regions}
    if view.sample.label is not None:
        shown.add(classes[view.sample.label])
    others = [text for text in classes if text not in shown]
    if not others:
        return ""
    key = f"{on_batch.config.seed} {view.sample.name}".encode("utf-8", "surrogateescape")
    drawn = int.from_bytes(hashlib.sha256(key).digest()[:8], "big")
    return others[drawn % len(others)]


TITLES: Final[dict[str, str]] = {"mean": "the mean color", "black": "black", "blur": "a blur"}
"""Name of a fill -> what stands for it in the titles of tables."""
MOST_FIRST: Final = "curve_most_"
LEAST_FIRST: Final = "curve_least_"
"""The start of names of curves, as "curve_most_mean_predicted"; their `x` is the share removed."""
_PREDICTED_TRUE: Final = ("predicted", "true")
_OBJECT_COUNTS: Final = (1, 2, 3)


def _perturbation_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    tables: dict[str, list[Metric]] = {}
    for fill in config.fills:
        fields = {"fill": fill, "removed": TITLES[fill]}
        for kind in _PREDICTED_TRUE:
            tables |= listed("perturbation", kind=kind, **fields)
        tables |= listed("perturbation by number", **fields)
        tables |= listed("retrieval", **fields)
    return tables


class _Pair(NamedTuple):
    """A view, and the class that its map explains."""

    view: View
    label: int


def _pairs_by_kind(samples: Batch) -> dict[str, list[_Pair]]:
    """Return the kind of rows -> the pairs that they are measured on.

    An image with a class is measured for its caption if it has one. Else it is measured for its
    predicted and true class if it shows no more than one object, and by its number of objects.
    """
    pairs: dict[str, list[_Pair]] = defaultdict(list)
    for index, view in enumerate(samples.views):
        label = view.sample.label
        if label is None:
            continue
        if view.sample.caption is not None:
            pairs["caption"].append(_Pair(view, label))
            continue
        count = len(view.sample.regions)
        if count < 2:
            pairs["predicted"].append(_Pair(view, int(samples.predicted[index])))
            pairs["true"].append(_Pair(view, label))
        if count in _OBJECT_COUNTS:
            pairs[str(count)].append(_Pair(view, label))
    return pairs


def _measure_perturbation(on_batch: MethodOnBatch) -> Iterator[Arrays]:
    context = on_batch.context
    pairs_by_kind = _pairs_by_kind(on_batch.samples)
    # The true class is mostly the predicted one, so a pair of several kinds is tested once.
    pairs = list(dict.fromkeys(chain(*pairs_by_kind.values())))
    if not pairs:
        return
    labels = [pair.label for pair in pairs]
    queries = queries_of(
        [pair.view for pair in pairs],
        context.classes[labels],
        [context.data.classes[label] for label in labels],
    )
    kept, raw = on_batch.compute_finite(queries)
    if not kept:
        return
    measured = queries.select(kept)
    measured_pairs = [pairs[index] for index in kept]
    row_of = {pair: row for row, pair in enumerate(measured_pairs)}
    for fill in on_batch.config.fills:
        test = metrics.perturbation_test(
            context.forward(context.classes),
            measured.pixels,
            raw.to(measured.pixels),
            [pair.label for pair in measured_pairs],
            fill=_fill(on_batch, fill, measured.pixels),
            # All views of pairs have a label; `or 0` is for the type checker alone.
            labels=[pair.view.sample.label or 0 for pair in measured_pairs],
            **on_batch.options_of(measured),
        )
        for kind, pairs_of_kind in pairs_by_kind.items():
            rows = [row_of[pair] for pair in pairs_of_kind if pair in row_of]
            if rows:
                yield from _gap_rows(f"{fill}_{kind}", test, rows, measured.select(rows))


PERTURBATION: Final = Task(
    _perturbation_metrics, _measure_perturbation, ("classes", "counts", "retrieval")
)
"""Deletion by pixels, of the predicted and the true class, of captions, by number of objects."""


def _fill(on_batch: MethodOnBatch, name: str, pixels: Tensor) -> Tensor:
    if name == "black":
        return on_batch.clip.color((0, 0, 0))
    if name == "mean":
        return metrics.mean_fill(pixels)
    return metrics.blur_fill(pixels)


def _gap_rows(
    ending: str, test: metrics.PerturbationTest, rows: Sequence[int], queries: Queries
) -> Iterator[Arrays]:
    """Yield the gaps of some images of a test, and the curves of top-1 if they show one thing."""
    top1 = test.top1
    margin = test.margin
    # The test has labels, and there are two classes or more, so it has all curves.
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
        for fraction, column in zip(top1.fractions.tolist(), curve[rows].T, strict=True):
            yield queries.rows_of(f"{start}{ending}", column, x=fraction)
