"""Do maps lie where people look?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ... import maps as resizing
from ... import metrics
from ...models.geometry import resize_density, resize_points
from ...runs import Arrays
from ..batch import View
from ..config import EvaluationConfig
from ..method_on_batch import MethodOnBatch, queries_of
from ..metric import Metric
from ..table import rows_of
from .base import Task


class Fixation(Task):
    """Positive maps against human fixations: points and densities."""

    name = "fixation"

    @override
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        return {
            "Human fixations": [
                Metric("nss", "mean standardised value at fixations; chance is 0"),
                Metric("auc_judd", "AUC-Judd at fixations; chance is .5"),
                Metric("cc", "linear correlation with the density; chance is 0"),
                Metric("sim", "shared mass of map and density, 1 where equal"),
            ]
        }

    @override
    def measure(self, maps: MethodOnBatch) -> Iterator[Arrays]:
        """Each metric where its kind of fixations is known."""
        views = [view for view in maps.batch.views if view.sample.fixated is not None]
        if not views:
            return
        texts = [view.sample.fixated or "" for view in views]
        kept, raw = maps.compute_finite(queries_of(views, maps.context.encode(texts), texts))
        if not kept:
            return
        for index, heat in zip(kept, resizing.positive(raw), strict=True):
            view = views[index]
            points, density = _points(maps, view), _density(maps, view)
            even = math.nan if density is None else _shared_with_even(density)
            for metric, truth, chance in (
                *((metrics.nss, points, 0.0), (metrics.auc_judd, points, 0.5)),
                *((metrics.cc, density, 0 * even), (metrics.sim, density, even)),
            ):
                if truth is not None:
                    value = metric(heat[None], truth[None])
                    where = [view.number], [texts[index]]
                    yield rows_of(metric.__name__, value, *where, chance=chance)


def _shared_with_even(density: Tensor) -> float:
    """The SIM of a map that has its mass everywhere alike; NaN for a constant density."""
    mass = resizing.normalize(density)
    return float((mass / mass.sum()).clamp(max=1 / mass.numel()).sum())


def _points(maps: MethodOnBatch, view: View) -> Tensor | None:
    """Fixations (H, W) in the crop; None where there are none in it, or every pixel is one."""
    if view.sample.fixations is None:
        return None
    size = (view.pixels.shape[-2], view.pixels.shape[-1])
    points = resize_points(maps.clip.processor, view.sample.fixations, size) > 0
    if not points.any() or points.all():
        maps.skipped.append((view.number, "the crop shows none of the fixations, or nothing else"))
        return None
    return torch.from_numpy(np.ascontiguousarray(points)).to(view.pixels.device)


def _density(maps: MethodOnBatch, view: View) -> Tensor | None:
    if view.sample.density is None:
        return None
    size = (view.pixels.shape[-2], view.pixels.shape[-1])
    density = resize_density(maps.clip.processor, view.sample.density, size)
    if not density.any():
        maps.skipped.append((view.number, "the crop shows nothing of the density of fixations"))
        return None
    return torch.from_numpy(density).to(view.pixels.device)
