"""Where the negative map of a text lies, and how it goes with the positive one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from typing_extensions import override

from ... import maps as resizing
from ... import metrics
from ...runs import Arrays
from ..config import EvaluationConfig
from ..method_on_batch import MethodOnBatch, finite_maps
from ..metric import Metric
from ..table import rows_of
from .base import Task

_PARTS = {
    "target": "in the region that the text names",
    "others": "in the other regions",
    "background": "outside of all regions",
}


class Signs(Task):
    """Mass of both signs in the target, in other regions and in the background."""

    name = "signs"

    @override
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        shares = {
            sign: [
                Metric(
                    f"{sign}_{part}",
                    f"share of the {sign} map's mass {where}; chance: uniform",
                    "none",
                )
                for part, where in _PARTS.items()
            ]
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

    @override
    def measure(self, maps: MethodOnBatch) -> Iterator[Arrays]:
        """Regions without another one beside them are left out."""
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
        several = torch.stack([part.flatten(1).any(1) for part in parts]).all(0)
        kept = several.nonzero()[:, 0].tolist()
        if not kept:
            return
        where = [queries.numbers[i] for i in kept], [queries.texts[i] for i in kept]
        masks = dict(zip(_PARTS, (part[kept] for part in parts), strict=True))
        positive = maps.positive[kept]
        known = known[kept]
        for name, mask in masks.items():
            yield _share(f"positive_{name}", positive, mask, known, where)
        regions = masks["target"] | masks["others"]
        yield _share("target_among_regions", positive, masks["target"], regions, where)
        if maps.negative is None:
            return
        finite = finite_maps(maps.negative[kept])
        if not finite.any():
            return
        kept = [index for index, is_finite in zip(kept, finite.tolist(), strict=True) if is_finite]
        where = [queries.numbers[i] for i in kept], [queries.texts[i] for i in kept]
        positive, negative = positive[finite], maps.negative[kept]
        masks = {name: mask[finite] for name, mask in masks.items()}
        known = known[finite]
        for name, mask in masks.items():
            yield _share(f"negative_{name}", negative, mask, known, where)
        correlation = metrics.rank_correlation(positive, negative)
        yield rows_of("sign_correlation", correlation, *where, chance=0)
        yield rows_of("sign_cosine", _cosine(positive, negative), *where, chance=0)
        heat = resizing.upsample(negative, (known.shape[-2], known.shape[-1]))
        heat = torch.where(known, heat, -1)
        hits = metrics.pointing_game(heat, masks["others"])
        yield rows_of("negative_pointing_others", hits, *where)


def _share(
    metric: str, heat: Tensor, masks: Tensor, known: Tensor, where: tuple[list[int], list[str]]
) -> Arrays:
    """Of the mass of maps (N, h, w) in all that is known; an empty map gets the share of pixels."""
    mass = resizing.upsample(heat, (known.shape[-2], known.shape[-1])) * known
    share = (mass * masks).sum((-2, -1)) / mass.sum((-2, -1))
    chance = masks.flatten(1).sum(1) / known.flatten(1).sum(1)
    return rows_of(metric, share, *where, chance=chance)


def _cosine(positive: Tensor, negative: Tensor) -> Tensor:
    first, second = positive.flatten(1).double(), negative.flatten(1).double()
    product: Tensor = (first * second).sum(1)
    lengths: Tensor = first.norm(dim=1) * second.norm(dim=1)
    return product / lengths
