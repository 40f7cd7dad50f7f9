"""Does the map of a text lie on what the text names?"""

from __future__ import annotations

from ... import metrics
from ..config import EvaluationConfig
from ..metric import Metric
from .base import Case, Found, Task

NEAR = 15  # pixels, of the paper of the pointing game
AREA = 0.2


class Localization(Task):
    """Positive maps against the masks of what they name."""

    name = "localization"
    what = "positive maps against masks"

    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        """See :class:`Task`."""
        chance = "chance is the share of the image that the object covers"
        mean, half = "threshold: the mean of the min-max map", "threshold: half of the min-max map"
        return {
            "Localization": [
                Metric("pointing", "mean", "high", f"maximum inside the mask; {chance}"),
                Metric(
                    f"pointing_{NEAR}", "mean", "high", f"maximum inside or within {NEAR} pixels"
                ),
                Metric("energy", "mean", "high", f"share of the positive mass inside; {chance}"),
                Metric(
                    "coverage",
                    "mean",
                    "high",
                    f"share of the object inside the highest {AREA:.0%} of the map's pixels; "
                    f"chance is {AREA}",
                ),
                Metric(
                    "average_precision",
                    "mean",
                    "high",
                    f"of the pixels by value, mean over regions; {chance}",
                ),
            ],
            "Segmentation": [
                Metric("pixel_accuracy", "ratio", "high", f"over all pixels of the set; {mean}"),
                Metric(
                    "mean_iou",
                    "mean_iou",
                    "high",
                    f"mean of object and background, over all pixels of the set; {mean}",
                ),
                Metric("pixel_accuracy_half", "ratio", "high", f"the same; {half}"),
                Metric("mean_iou_half", "mean_iou", "high", f"the same; {half}"),
            ],
        }

    def measure(self, case: Case) -> Found:
        """See :class:`Task`."""
        asked = case.asked
        if not asked.owners:
            return Found()
        heat, masks, owners = case.positive, asked.masks, asked.owners
        at_mean = metrics.segmentation_scores(heat, masks, threshold="mean")
        at_half = metrics.segmentation_scores(heat, masks, threshold=0.5)
        found = {
            "pointing": metrics.pointing_game(heat, masks),
            f"pointing_{NEAR}": metrics.pointing_game(heat, masks, tolerance=NEAR),
            "energy": metrics.energy_inside(heat, masks),
            "coverage": metrics.coverage(heat, masks, area=AREA),
            "average_precision": at_mean.average_precision,
        }
        rows = {name: case.rows(values, owners) for name, values in found.items()}
        for suffix, scores in (("", at_mean), ("_half", at_half)):
            right = scores.true_positive + scores.true_negative
            wrong = scores.false_positive + scores.false_negative
            rows[f"pixel_accuracy{suffix}"] = case.rows([right, right + wrong], owners)
            counts = [
                *(scores.true_positive, scores.false_positive),
                *(scores.false_negative, scores.true_negative),
            ]
            rows[f"mean_iou{suffix}"] = case.rows(counts, owners)
        return Found(rows)
