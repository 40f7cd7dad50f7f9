"""Does a map lie where it should? Against masks of both signs, and against human fixations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import maps as resizing
from ... import metrics
from ...models.geometry import resize_density, resize_points
from ..batch import MethodOnBatch, Task, finite_indices, queries_of
from ..config import EvaluationConfig
from ..run import Arrays
from ..table import Metric, Queries

NEAR = 15  # pixels, of the paper of the pointing game
AREA = 0.2
_PARTS = {
    "target": "in the region that the text names",
    "others": "in the other regions",
    "background": "outside of all regions",
}
_TINY = 1e-150  # maps may be as small as gradients


def _localization_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    chance = "chance is the share of the image that the object covers"
    covered = f"share of the object inside the highest {AREA:.0%} of the map's pixels"
    mean, half = "threshold: the mean of the min-max map", "threshold: half of the min-max map"
    pixels, iou = "over all pixels of the set", "mean of object and background"
    both = (
        "mAP: average precision of the pixels of object and background ranked together, mean "
        "over regions; a constant map gets .5, one that is low nearly everywhere far more, "
        "whatever it shows: compare with 'random'"
    )
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
            Metric("legrad_map", both, constant=0.5),
        ],
    }


def _measure_localization(maps: MethodOnBatch) -> Iterator[Arrays]:
    void = {view.number: view.void for view in maps.batch.views if view.void is not None}
    numbers = maps.regions.numbers
    alone = [[index] for index, number in enumerate(numbers) if number in void]
    others = [index for index, number in enumerate(numbers) if number not in void]
    for part in [*([others] if others else []), *alone]:
        yield from _measure(maps, part, void.get(numbers[part[0]]))


LOCALIZATION: Final = Task(_localization_metrics, _measure_localization)
"""Positive maps against the masks of what they name."""


def _measure(maps: MethodOnBatch, part: Sequence[int], void: Tensor | None) -> Iterator[Arrays]:
    """Some regions, of one image where some of its pixels count for nothing."""
    queries = maps.regions.part(part)
    heatmap, masks = maps.positive[part], maps.masks[part]
    highest, inside = heatmap, masks
    if void is not None:
        heatmap = resizing.upsample(heatmap, queries.size)
        highest, inside = torch.where(void, heatmap.amin() - 1, heatmap), masks & ~void
        # what is left has no shape, which no metric but pointing asks for
        heatmap, masks = heatmap[:, None, ~void], masks[:, None, ~void]
    yield queries.rows_of("pointing", metrics.pointing_game(highest, inside))
    near = metrics.pointing_game(highest, inside, tolerance=NEAR)
    yield queries.rows_of(f"pointing_{NEAR}", near)
    share = masks.flatten(1).float().mean(1)
    yield queries.rows_of("energy", metrics.energy_inside(heatmap, masks), chance=share)
    yield queries.rows_of("coverage", metrics.coverage(heatmap, masks, area=AREA))
    yield queries.rows_of("average_precision", metrics.average_precision(heatmap, masks))
    at_half = metrics.segmentation_scores(heatmap, masks, threshold=0.5)
    for end, scores in (("", metrics.segmentation_scores(heatmap, masks)), ("_half", at_half)):
        right, pixels = scores.true_positive + scores.true_negative, torch.stack([*scores]).sum(0)
        yield queries.rows_of(f"pixel_accuracy{end}", {"numerator": right, "denominator": pixels})
        yield queries.rows_of(f"mean_iou{end}", scores._asdict())
    yield queries.rows_of("legrad_pixel_accuracy", at_half.image_accuracy)
    yield queries.rows_of("legrad_mean_iou", at_half.image_iou)
    yield queries.rows_of("legrad_map", metrics.two_class_average_precision(heatmap, masks))


def _signs_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    share = "share of the {} map's mass {}; chance: uniform"
    shares = {
        sign: [Metric(f"{sign}_{p}", share.format(sign, w), "none") for p, w in _PARTS.items()]
        for sign in ("positive", "negative")
    }
    correlation = (
        "Spearman's rank correlation of positive and negative map; below zero by construction "
        "where both are parts of one signed map"
    )
    others = "maximum of the negative map inside another region; chance: uniform"
    cosine = "cosine of positive and negative map; 0: they never meet"
    choice = (
        "share of the positive mass in all regions that lies in the one that the text names: "
        "does the map tell objects apart, wherever else it lies? Chance: uniform"
    )
    return {
        "Where the positive map lies": [
            *shares["positive"],
            Metric("target_among_regions", choice),
        ],
        "Where the negative map lies": [
            *shares["negative"],
            Metric("sign_correlation", correlation, "none"),
            Metric("sign_cosine", cosine, "none"),
            Metric("negative_pointing_others", others, "none"),
        ],
    }


def _measure_signs(maps: MethodOnBatch) -> Iterator[Arrays]:
    """Images with one region only are left out."""
    queries = maps.regions
    if not len(queries):
        return
    views = {view.number: view for view in maps.batch.views}
    owners = [views[number] for number in queries.numbers]
    whole = torch.stack([view.masks.any(0) for view in owners])  # (N, H, W)
    known = torch.stack(
        [torch.ones_like(v.masks[0]) if v.void is None else ~v.void for v in owners]
    )
    parts = [part & known for part in (maps.masks, whole & ~maps.masks, ~whole)]
    kept = torch.stack([part.flatten(1).any(1) for part in parts]).all(0).nonzero()[:, 0].tolist()
    if not kept:
        return
    own, known, positive = queries.part(kept), known[kept], maps.positive[kept]
    masks = dict(zip(_PARTS, (part[kept] for part in parts), strict=True))
    for name, mask in masks.items():
        yield _share(f"positive_{name}", own, positive, mask, known)
    regions = masks["target"] | masks["others"]
    yield _share("target_among_regions", own, positive, masks["target"], regions)
    negative = None if maps.negative is None else maps.negative[kept]
    finite = [] if negative is None else finite_indices(negative)
    if negative is None or not finite:
        return
    own, known = own.part(finite), known[finite]
    positive, negative = positive[finite], negative[finite]
    for name, mask in masks.items():
        yield _share(f"negative_{name}", own, negative, mask[finite], known)
    correlation = metrics.rank_correlation(positive, negative)
    yield own.rows_of("sign_correlation", correlation, chance=0)
    first, second = (heatmap.flatten(1).double() for heatmap in (positive, negative))
    yield own.rows_of("sign_cosine", F.cosine_similarity(first, second, eps=_TINY))
    heatmap = torch.where(known, resizing.upsample(negative, own.size), -1)
    hits = metrics.pointing_game(heatmap, masks["others"][finite])
    yield own.rows_of("negative_pointing_others", hits)


SIGNS: Final = Task(_signs_metrics, _measure_signs)
"""Mass of both signs in the target, in other regions and in the background."""


def _share(metric: str, queries: Queries, heatmap: Tensor, masks: Tensor, known: Tensor) -> Arrays:
    """Of the mass of maps (N, h, w) in all that is known; an empty map gets the share of pixels."""
    mass = resizing.upsample(heatmap, queries.size) * known
    share = (mass * masks).sum((-2, -1)) / mass.sum((-2, -1))
    chance = masks.flatten(1).sum(1) / known.flatten(1).sum(1)
    return queries.rows_of(metric, share, chance=chance)


def _fixation_metrics(config: EvaluationConfig) -> dict[str, list[Metric]]:
    return {
        "Human fixations": [
            Metric("nss", "mean standardised value at fixations; chance is 0"),
            Metric("auc_judd", "AUC-Judd at fixations; chance is .5"),
            Metric("cc", "linear correlation with the density; chance is 0"),
            Metric("sim", "shared mass of map and density, 1 where equal"),
        ]
    }


def _measure_fixation(maps: MethodOnBatch) -> Iterator[Arrays]:
    """Each metric where its kind of fixations is known, and the crop shows something of it."""
    views = [view for view in maps.batch.views if view.sample.fixated is not None]
    if not views:
        return
    texts = [view.sample.fixated or "" for view in views]
    queries = queries_of(views, maps.context.encode(texts), texts)
    kept, raw = maps.compute_finite(queries)
    for index, heatmap in zip(kept, raw.clamp(min=0), strict=True):
        query, view = queries.part([index]), views[index]
        processor, sample = maps.clip.processor, view.sample
        if sample.fixations is not None:
            points = torch.from_numpy(resize_points(processor, sample.fixations, view.size) > 0)
            if points.any() and not points.all():
                points = points.to(heatmap.device)
                yield query.rows_of("nss", metrics.nss(heatmap, points)[None], chance=0)
                yield query.rows_of("auc_judd", metrics.auc_judd(heatmap, points)[None], chance=0.5)
            else:
                reason = "the crop shows none of the fixations, or nothing else"
                maps.skipped.append((view.number, reason))
        if sample.density is not None:
            density = torch.from_numpy(resize_density(processor, sample.density, view.size))
            if density.any():
                density = density.to(heatmap.device)
                # the SIM of a map with its mass everywhere alike; NaN for a constant density
                mass = resizing.normalize(density)
                even = (mass / mass.sum()).clamp(max=1 / mass.numel()).sum()
                yield query.rows_of("cc", metrics.cc(heatmap, density)[None], chance=0 * even)
                yield query.rows_of("sim", metrics.sim(heatmap, density)[None], chance=even)
            else:
                reason = "the crop shows nothing of the density of fixations"
                maps.skipped.append((view.number, reason))


FIXATION: Final = Task(_fixation_metrics, _measure_fixation)
"""Positive maps against human fixations: points and densities."""
