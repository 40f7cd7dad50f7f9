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
                    f"share of the {sign} map's mass {where}; chance: random",
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
        others = "maximum of the negative map inside another region; chance: random"
        cosine = "cosine of positive and negative map; 0: they never meet"
        return {
            "Where the positive map lies": shares["positive"],
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
        unions = {view.number: view.masks.any(0) for view in maps.batch.views}
        whole = torch.stack([unions[number] for number in queries.numbers])  # (N, H, W)
        parts = [maps.masks, whole & ~maps.masks, ~whole]
        several = torch.stack([part.flatten(1).any(1) for part in parts]).all(0)
        kept = several.nonzero()[:, 0].tolist()
        if not kept:
            return
        where = [queries.numbers[i] for i in kept], [queries.texts[i] for i in kept]
        masks = dict(zip(_PARTS, (part[kept] for part in parts), strict=True))
        positive = maps.positive[kept]
        for name, mask in masks.items():
            yield rows_of(f"positive_{name}", _share(positive, mask), *where)
        if maps.negative is None:
            return
        finite = finite_maps(maps.negative[kept])
        if not finite.any():
            return
        kept = [index for index, is_finite in zip(kept, finite.tolist(), strict=True) if is_finite]
        where = [queries.numbers[i] for i in kept], [queries.texts[i] for i in kept]
        positive, negative = positive[finite], maps.negative[kept]
        masks = {name: mask[finite] for name, mask in masks.items()}
        for name, mask in masks.items():
            yield rows_of(f"negative_{name}", _share(negative, mask), *where)
        correlation = metrics.rank_correlation(positive, negative)
        yield rows_of("sign_correlation", correlation, *where)
        yield rows_of("sign_cosine", _cosine(positive, negative), *where)
        hits = metrics.pointing_game(negative, masks["others"])
        hits = torch.where(negative.flatten(1).any(1), hits, torch.nan)
        yield rows_of("negative_pointing_others", hits, *where)


def _share(heat: Tensor, masks: Tensor) -> Tensor:
    """Of the mass (N,); NaN for a map without any."""
    mass = resizing.upsample(heat, (masks.shape[-2], masks.shape[-1]))
    inside: Tensor = (mass * masks).sum((-2, -1))
    return inside / mass.sum((-2, -1))


def _cosine(positive: Tensor, negative: Tensor) -> Tensor:
    first, second = positive.flatten(1).double(), negative.flatten(1).double()
    product: Tensor = (first * second).sum(1)
    lengths: Tensor = first.norm(dim=1) * second.norm(dim=1)
    return product / lengths
