"""Do maps mark the points that are of the class, and spare those that are not?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from typing_extensions import override

from ... import maps as resizing
from ... import metrics
from ...models.geometry import resize_points
from ...runs import Arrays
from ..config import EvaluationConfig
from ..method_on_batch import MethodOnBatch, queries_of
from ..metric import Metric
from ..table import rows_of
from .base import Task


class Points(Task):
    """Positive maps against single labelled pixels."""

    name = "points"

    @override
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        marked = "marked: above half of the min-max map; classes with a point that says yes"
        return {
            "Open Images points": [
                Metric(
                    "p_miou",
                    "p-mIoU: of the points, those marked and right / those marked or right, mean "
                    f"over pairs of image and class; {marked}",
                ),
                Metric("point_accuracy", f"share of the points decided rightly, mean; {marked}"),
            ]
        }

    @override
    def measure(self, maps: MethodOnBatch) -> Iterator[Arrays]:
        """Samples with labelled points of which the crop shows some that say yes."""
        pairs = [(view, points) for view in maps.batch.views for points in view.sample.points]
        if not pairs:
            return
        views, texts = [view for view, _ in pairs], [points.text for _, points in pairs]
        queries = queries_of(views, maps.context.encode(texts), texts)
        kept, raw = maps.compute_finite(queries)
        if not kept:
            return
        for index, heat in zip(kept, resizing.positive(raw), strict=True):
            view, points = pairs[index]
            size = (view.pixels.shape[-2], view.pixels.shape[-1])
            both = np.stack([points.yes, points.no])
            moved = resize_points(maps.clip.processor, both, size)
            yes, no = torch.from_numpy(moved).to(heat.device)
            if not yes.any():
                reason = f"the crop shows no point of {points.text!r}"
                maps.skipped.append((view.number, reason))
                continue
            scores = metrics.segmentation_scores(
                heat[None], yes[None], threshold=0.5, counted=(yes | no)[None]
            )
            for name, value in (
                ("p_miou", scores.object_iou),
                ("point_accuracy", scores.image_accuracy),
            ):
                yield rows_of(name, value, [view.number], [points.text])
