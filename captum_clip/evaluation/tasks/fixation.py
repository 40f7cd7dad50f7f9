"""Do maps lie where people look?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ... import maps as resizing
from ... import metrics
from ...models.geometry import resize_density, resize_points
from ..chunk import Seen
from ..config import EvaluationConfig
from ..metric import Metric, Rows
from .base import Case, Found, Task, queries_of
from .first import finite_maps


class Fixation(Task):
    """Positive maps against human fixations: points and densities."""

    name = "fixation"
    what = "maps against human fixations"

    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        """See :class:`Task`."""
        return {
            "Human fixations": [
                Metric("nss", "mean", "high", "mean standardised value at fixations; chance is 0"),
                Metric("auc_judd", "mean", "high", "AUC-Judd at fixations; chance is .5"),
                Metric("cc", "mean", "high", "linear correlation with the density; chance is 0"),
                Metric("sim", "mean", "high", "shared mass of map and density, 1 where equal"),
            ]
        }

    def measure(self, case: Case) -> Found:
        """See :class:`Task`; each metric where its kind of fixations is known."""
        seen = [one for one in case.seen if one.sample.fixated is not None]
        if not seen:
            return Found()
        texts = [one.sample.fixated or "" for one in seen]
        queries, raw = finite_maps(case, queries_of(seen, case.bench.encode(texts), texts))
        if not len(queries):
            return Found()
        heat = dict(zip(queries.numbers, resizing.positive(raw), strict=True))
        kept = [one for one in seen if one.number in heat]
        points = {one.number: _points(case, one) for one in kept}
        densities = {one.number: _density(case, one) for one in kept}
        rows = {
            "nss": _rows(case, heat, points, metrics.nss),
            "auc_judd": _rows(case, heat, points, metrics.auc_judd),
            "cc": _rows(case, heat, densities, metrics.cc),
            "sim": _rows(case, heat, densities, metrics.sim),
        }
        return Found(rows)


def _rows(
    case: Case,
    heat: dict[int, Tensor],
    truths: dict[int, Tensor | None],
    metric: Callable[[Tensor, Tensor], Tensor],
) -> Rows:
    values = {n: metric(heat[n][None], t[None]) for n, t in truths.items() if t is not None}
    measured = torch.cat(list(values.values())) if values else torch.zeros(0)
    return case.numbered([measured], list(values))


def _points(case: Case, one: Seen) -> Tensor | None:
    """Fixations (H, W) in the crop; None where there are none in it, or every pixel is one."""
    if one.sample.fixations is None:
        return None
    size = (one.pixels.shape[-2], one.pixels.shape[-1])
    found = resize_points(case.clip.processor, one.sample.fixations, size) > 0
    if not found.any() or found.all():
        case.skipped.append((one.number, "the crop shows none of the fixations, or nothing else"))
        return None
    return torch.from_numpy(np.ascontiguousarray(found)).to(one.pixels.device)


def _density(case: Case, one: Seen) -> Tensor | None:
    if one.sample.density is None:
        return None
    size = (one.pixels.shape[-2], one.pixels.shape[-1])
    found = resize_density(case.clip.processor, one.sample.density, size)
    if not found.any():
        case.skipped.append((one.number, "the crop shows nothing of the density of fixations"))
        return None
    return torch.from_numpy(found).to(one.pixels.device)
