"""Does a map change with what should change it, and only with that?"""

from __future__ import annotations

import hashlib

from torch import Tensor

from ... import metrics
from ..config import EvaluationConfig
from ..methods import Queries
from ..metric import Metric, Rows
from .base import Case, Found, Task
from .first import few, finite_maps, first_queries


class Sanity(Task):
    """Rank correlation with the map of another model or prompt; one target an image, its first."""

    name = "sanity"
    what = "rank correlation with maps of random parameters, other prompts, renumbered heads"

    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        """See :class:`Task`."""
        start = f"Spearman's rank correlation, first {config.few} images, with the map"
        return {
            "Sanity checks": [
                Metric(
                    "random_parameters",
                    "mean",
                    "none",
                    f"{start} of a model with random parameters in its whole vision tower: near 0 "
                    "is right",
                ),
                Metric(
                    "empty_prompt",
                    "mean",
                    "none",
                    f"{start} of the empty text: near 1 means that the text hardly matters",
                ),
                Metric(
                    "other_prompt",
                    "mean",
                    "none",
                    f"{start} of a text that names something else, drawn from the data set's "
                    "classes: near 1 means the same",
                ),
                Metric(
                    "renumbered_heads",
                    "mean",
                    "high",
                    f"{start} of the same function with the heads of all layers but the last "
                    "renumbered: 1 is right",
                ),
            ]
        }

    def measure(self, case: Case) -> Found:
        """See :class:`Task`; a constant map has no ranks and is left out."""
        if case.method.attribute(case.clip, case.bench.encode([""])) is None:
            return Found()
        queries, raw = finite_maps(case, few(case, first_queries(case)))
        if not len(queries):
            return Found()
        bench = case.bench
        empty = bench.encode([""]).expand_as(queries.rows)
        other = bench.encode([_other(case, number) for number in queries.numbers])
        rows = {
            "empty_prompt": _correlated(case, queries, raw, case.maps(queries.against(empty))),
            "other_prompt": _correlated(case, queries, raw, case.maps(queries.against(other))),
        }
        copies = {"random_parameters": bench.random_copy, "renumbered_heads": bench.renumbered_copy}
        for name, copy in copies.items():
            if copy is not None:
                rows[name] = _correlated(case, queries, raw, case.maps(queries, copy))
        return Found(rows)


def _correlated(case: Case, queries: Queries, raw: Tensor, maps: Tensor) -> Rows:
    correlations = metrics.rank_correlation(raw, maps)
    return case.numbered([correlations], queries.numbers)


def _other(case: Case, number: int) -> str:
    """A text that names nothing in the sample; the same for every method and batch.

    Where all texts name something in it, the empty text.
    """
    [one] = [one for one in case.seen if one.number == number]
    shown = {region.text for region in one.regions}
    if one.sample.label is not None:
        shown.add(case.bench.data.classes[one.sample.label])
    texts = [text for text in case.bench.data.classes if text not in shown]
    if not texts:
        return ""
    digest = hashlib.sha256(
        f"{case.config.seed} {one.sample.name}".encode("utf-8", "surrogateescape")
    ).digest()
    return texts[int.from_bytes(digest[:8], "big") % len(texts)]
