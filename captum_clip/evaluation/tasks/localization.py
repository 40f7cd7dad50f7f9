"""Does the map of a text lie on what the text names?"""

from __future__ import annotations

from collections.abc import Iterator

from typing_extensions import override

from ... import metrics
from ...runs import Arrays
from ..config import EvaluationConfig
from ..method_on_batch import MethodOnBatch
from ..metric import Metric
from ..table import rows_of
from .base import Task

NEAR = 15  # pixels, of the paper of the pointing game
AREA = 0.2


class Localization(Task):
    """Positive maps against the masks of what they name."""

    name = "localization"

    @override
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        chance = "chance is the share of the image that the object covers"
        covered = f"share of the object inside the highest {AREA:.0%} of the map's pixels"
        mean, half = "threshold: the mean of the min-max map", "threshold: half of the min-max map"
        pixels, iou = "over all pixels of the set", "mean of object and background"
        return {
            "Localization": [
                Metric("pointing", f"maximum inside the mask; {chance}"),
                Metric(f"pointing_{NEAR}", f"maximum inside or within {NEAR} pixels"),
                Metric("energy", f"share of the positive mass inside; {chance}"),
                Metric("coverage", f"{covered}; chance is {AREA}"),
                Metric("average_precision", f"of the pixels by value, mean over regions; {chance}"),
            ],
            "Segmentation": [
                Metric("pixel_accuracy", f"{pixels}; {mean}", statistic="ratio"),
                Metric("mean_iou", f"{iou}, {pixels}; {mean}", statistic="mean_iou"),
                Metric("pixel_accuracy_half", f"the same; {half}", statistic="ratio"),
                Metric("mean_iou_half", f"the same; {half}", statistic="mean_iou"),
            ],
        }

    @override
    def measure(self, maps: MethodOnBatch) -> Iterator[Arrays]:
        queries = maps.regions
        if not len(queries):
            return
        where = queries.numbers, queries.texts
        heat, masks = maps.positive, maps.masks
        at_mean = metrics.segmentation_scores(heat, masks, threshold="mean")
        at_half = metrics.segmentation_scores(heat, masks, threshold=0.5)
        yield rows_of("pointing", metrics.pointing_game(heat, masks), *where)
        near = metrics.pointing_game(heat, masks, tolerance=NEAR)
        yield rows_of(f"pointing_{NEAR}", near, *where)
        yield rows_of("energy", metrics.energy_inside(heat, masks), *where)
        yield rows_of("coverage", metrics.coverage(heat, masks, area=AREA), *where)
        yield rows_of("average_precision", at_mean.average_precision, *where)
        for end, scores in (("", at_mean), ("_half", at_half)):
            right = scores.true_positive + scores.true_negative
            wrong = scores.false_positive + scores.false_negative
            ratio = {"numerator": right, "denominator": right + wrong}
            yield rows_of(f"pixel_accuracy{end}", ratio, *where)
            counts = {
                "true_positive": scores.true_positive,
                "false_positive": scores.false_positive,
                "false_negative": scores.false_negative,
                "true_negative": scores.true_negative,
            }
            yield rows_of(f"mean_iou{end}", counts, *where)
