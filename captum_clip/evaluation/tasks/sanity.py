"""Does a map change with what should change it, and only with that?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from typing_extensions import override

from ... import metrics
from ...runs import Arrays
from ..config import EvaluationConfig
from ..method_on_batch import MethodOnBatch, Task
from ..metric import Metric


class Sanity(Task):
    """Rank correlation with the map of another model or prompt; one target per image, its first."""

    name = "sanity"

    @override
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        start = f"Spearman's rank correlation, {config.few} images drawn from all, with the map of"
        parameters = "a model with random parameters in its whole vision tower: near 0 is right"
        empty = "the empty text: near 1 means that the text hardly matters"
        other = (
            "a text that names something else, drawn from the data set's classes: near 1 means the "
            "same"
        )
        heads = "the same function with the heads of all layers but the last renumbered: 1 is right"
        return {
            "Sanity checks": [
                Metric("random_parameters", f"{start} {parameters}", "none"),
                Metric("empty_prompt", f"{start} {empty}", "none"),
                Metric("other_prompt", f"{start} {other}", "none"),
                Metric("renumbered_heads", f"{start} {heads}"),
            ]
        }

    @override
    def measure(self, maps: MethodOnBatch) -> Iterator[Arrays]:
        """A constant map has no ranks, and correlates with nothing."""
        context = maps.context
        if maps.method.attribute(maps.clip, context.encode([""])) is None:
            return
        first = maps.slow(maps.first_queries)
        kept, raw = maps.compute_finite(first)
        if not kept:
            return
        queries = first.part(kept)
        empty = context.encode([""]).expand_as(queries.rows)
        other = context.encode([_other(maps, number) for number in queries.numbers])
        changed = {
            "empty_prompt": (replace(queries, rows=empty), maps.clip),
            "other_prompt": (replace(queries, rows=other), maps.clip),
            "random_parameters": (queries, context.random_copy),
            "renumbered_heads": (queries, context.renumbered_copy),
        }
        for name, (asked, clip) in changed.items():
            if clip is not None:
                own, other_maps = maps.compute_finite(asked, clip)
                if own:
                    correlation = metrics.rank_correlation(raw[own], other_maps)
                    yield queries.part(own).rows_of(name, correlation, chance=0)


def _other(maps: MethodOnBatch, number: int) -> str:
    """A text that names nothing in the sample; the same for every method and batch.

    Where all texts name something in it, the empty text.
    """
    [view] = [view for view in maps.batch.views if view.number == number]
    classes = maps.context.data.classes
    shown = {region.text for region in view.regions}
    if view.sample.label is not None:
        shown.add(classes[view.sample.label])
    texts = [text for text in classes if text not in shown]
    if not texts:
        return ""
    digest = hashlib.sha256(
        f"{maps.config.seed} {view.sample.name}".encode("utf-8", "surrogateescape")
    ).digest()
    return texts[int.from_bytes(digest[:8], "big") % len(texts)]
