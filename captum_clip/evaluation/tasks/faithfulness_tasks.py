"""Is a map faithful? Against random changes and modified models, by one target an image."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from ... import metrics
from ..batch import MethodOnBatch, Task
from ..table import listed
from ..units import Arrays, Skipped

_SHARE: Final = 0.2
_RADIUS: Final = 0.02
_DRAWS: Final = 5
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
        options = {"radius": _RADIUS, "samples": _DRAWS, **batch.options_of(slow)}
        values = metrics.sensitivity(attribute, slow.pixels, [*range(len(slow))], **options)
        yield slow.rows_of("sensitivity", values)
        for index in (~values.isfinite()).nonzero()[:, 0].tolist():
            reason = f"{batch.method.name}: a map under noise holds NaN or infinity"
            batch.skipped.append(Skipped(slow.numbers[index], reason))


FAITHFULNESS: Final = Task(
    lambda config: listed(
        "faithfulness", share=_SHARE, radius=_RADIUS, noises=_DRAWS, **vars(config)
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
