"""Does the map of a text lie on what the text names?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from ... import maps as resizing
from ... import metrics
from ...runs import Arrays
from ..config import EvaluationConfig
from ..method_on_batch import MethodOnBatch
from ..metric import Metric
from ..resampling import STATISTICS
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
            "Segmentation as LeGrad has it": [
                Metric("legrad_pixel_accuracy", f"mean over regions; {half}"),
                Metric("legrad_mean_iou", f"{iou}, mean over regions; {half}"),
                Metric(
                    "legrad_map",
                    "mAP: average precision of the pixels of object and background ranked together,"
                    " mean over regions; a constant map gets .5, one that is low nearly everywhere "
                    "far more, whatever it shows: compare with 'random'",
                    constant=0.5,
                ),
            ],
        }

    @override
    def measure(self, maps: MethodOnBatch) -> Iterator[Arrays]:
        void = {view.number: view.void for view in maps.batch.views if view.void is not None}
        numbers = maps.regions.numbers
        alone = [[index] for index, number in enumerate(numbers) if number in void]
        others = [index for index, number in enumerate(numbers) if number not in void]
        for part in [*([others] if others else []), *alone]:
            yield from _measure(maps, part, void.get(numbers[part[0]]))


def _measure(maps: MethodOnBatch, part: Sequence[int], void: Tensor | None) -> Iterator[Arrays]:
    """Some regions, of one image where some of its pixels count for nothing."""
    queries = maps.regions.part(part)
    where = queries.numbers, queries.texts
    heat, masks = maps.positive[part], maps.masks[part]
    highest = heat
    if void is not None:
        heat = resizing.upsample(heat, (void.shape[-2], void.shape[-1]))
        highest = torch.where(void, heat.amin() - 1, heat)
        # what is left has no shape, which no metric but pointing asks for
        heat, masks = heat[:, None, ~void], masks[:, None, ~void]
        inside = masks.new_zeros(len(part), *void.shape)
        inside[:, ~void] = masks[:, 0]
    else:
        inside = masks
    at_mean = metrics.segmentation_scores(heat, masks, threshold="mean")
    at_half = metrics.segmentation_scores(heat, masks, threshold=0.5)
    yield rows_of("pointing", metrics.pointing_game(highest, inside), *where)
    near = metrics.pointing_game(highest, inside, tolerance=NEAR)
    yield rows_of(f"pointing_{NEAR}", near, *where)
    share = masks.flatten(1).float().mean(1)
    yield rows_of("energy", metrics.energy_inside(heat, masks), *where, chance=share)
    yield rows_of("coverage", metrics.coverage(heat, masks, area=AREA), *where)
    yield rows_of("average_precision", at_mean.average_precision, *where)
    for end, scores in (("", at_mean), ("_half", at_half)):
        right = scores.true_positive + scores.true_negative
        wrong = scores.false_positive + scores.false_negative
        yield rows_of(
            f"pixel_accuracy{end}", {"numerator": right, "denominator": right + wrong}, *where
        )
        counts = {name: getattr(scores, name) for name in STATISTICS["mean_iou"].parts}
        yield rows_of(f"mean_iou{end}", counts, *where)
    both = metrics.two_class_average_precision(heat, masks)
    yield rows_of("legrad_pixel_accuracy", at_half.image_accuracy, *where)
    yield rows_of("legrad_mean_iou", at_half.image_iou, *where)
    yield rows_of("legrad_map", both, *where)
