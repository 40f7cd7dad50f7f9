"""One target an image, for what is measured once an image."""

from __future__ import annotations

from torch import Tensor

from ..methods import Queries
from .base import Case, queries_of


def first_queries(case: Case) -> Queries:
    """Each sample with its first region, or with its class where it has no regions.

    Samples with neither are left out.
    """
    seen = [one for one in case.seen if one.regions or one.sample.label is not None]
    if not seen:
        return Queries(case.shared.chunk.pixels[:0], case.bench.encode([""])[:0], (), (), ())
    labels = [one.sample.label for one in seen]
    texts = [
        one.regions[0].text if one.regions else case.bench.data.classes[label or 0]
        for one, label in zip(seen, labels, strict=True)
    ]
    return queries_of(seen, case.bench.encode(texts), texts)


def few(case: Case, queries: Queries) -> Queries:
    """Those of the data set's first images."""
    return queries.part([i for i, number in enumerate(queries.numbers) if number < case.config.few])


def finite_maps(case: Case, queries: Queries) -> tuple[Queries, Tensor]:
    """The queries with a finite map, and these maps; why others have none goes to `skipped`."""
    if not len(queries):
        return queries, queries.rows[:, None]
    raw = case.maps(queries)
    kept = case.finite(queries, raw)
    return queries.part(kept), raw[kept]
