"""What both signs of a map say: where each lies, and whether it agrees with true effects."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from ... import maps as resizing
from ... import metrics
from ..batch import Queries
from ..config import EvaluationConfig
from ..method_on_batch import MethodOnBatch, Task, finite_indices
from ..metric import Metric
from ..table import rows_of
from ..units import Arrays

_PARTS = {
    "target": "in the region that the text names",
    "others": "in the other regions",
    "background": "outside of all regions",
}
_TINY = 1e-150  # maps may be as small as gradients


class Signs(Task):
    """Mass of both signs in the target, in other regions and in the background."""

    name = "signs"

    @override
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
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
        own, known, positive = queries.part(kept), known[kept], maps.positive[kept]
        masks = dict(zip(_PARTS, (part[kept] for part in parts), strict=True))
        for name, mask in masks.items():
            yield _share(f"positive_{name}", own, positive, mask, known)
        regions = masks["target"] | masks["others"]
        yield _share("target_among_regions", own, positive, masks["target"], regions)
        if maps.negative is None:
            return
        negative = maps.negative[kept]
        finite = finite_indices(negative)
        if not finite:
            return
        own, known = own.part(finite), known[finite]
        positive, negative = positive[finite], negative[finite]
        masks = {name: mask[finite] for name, mask in masks.items()}
        for name, mask in masks.items():
            yield _share(f"negative_{name}", own, negative, mask, known)
        correlation = metrics.rank_correlation(positive, negative)
        yield own.rows_of("sign_correlation", correlation, chance=0)
        first, second = (heatmap.flatten(1).double() for heatmap in (positive, negative))
        yield own.rows_of("sign_cosine", F.cosine_similarity(first, second, eps=_TINY))
        heatmap = torch.where(known, resizing.upsample(negative, own.size), -1)
        hits = metrics.pointing_game(heatmap, masks["others"])
        yield own.rows_of("negative_pointing_others", hits)


def _share(metric: str, queries: Queries, heatmap: Tensor, masks: Tensor, known: Tensor) -> Arrays:
    """Of the mass of maps (N, h, w) in all that is known; an empty map gets the share of pixels."""
    mass = resizing.upsample(heatmap, queries.size) * known
    share = (mass * masks).sum((-2, -1)) / mass.sum((-2, -1))
    chance = masks.flatten(1).sum(1) / known.flatten(1).sum(1)
    return queries.rows_of(metric, share, chance=chance)


class Effect(Task):
    """Signed mass in each object against the object's exact Shapley effect."""

    name = "effect"

    @override
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        shapley = "exact Shapley effect on the cosine, by drawing the scene with every subset"
        removal = "the cosine of the whole scene less that of the scene drawn without the object"
        return {
            "Effect of an object": _effect_metrics("effect", shapley),
            "Effect of taking an object out of the scene": _effect_metrics("removal", removal),
        }

    @override
    def measure(self, maps: MethodOnBatch) -> Iterator[Arrays]:
        """Samples of which a map is missing are left out.

        A row is a pair of a text and an object, whose region is "a horse / a dog".
        """
        queries = maps.regions
        for view in maps.batch.views if len(queries) else ():
            own = [i for i, number in enumerate(queries.numbers) if number == view.number]
            scores = maps.batch.subset_scores.get(view.number)
            if scores is None or len(own) != len(view.regions):
                continue
            if len(finite_indices(maps.signed[own])) < len(own):
                continue
            mass = metrics.object_mass(maps.signed[own].double(), view.masks)  # (texts, objects)
            texts = [region.text for region in view.regions]
            pairs = [(text, other) for text in texts for other in texts]
            others = [place for place, (text, other) in enumerate(pairs) if text != other]
            effects = {"effect": metrics.shapley_effects(scores), "removal": _removals(scores)}
            for name, effect in effects.items():
                for end, kept in (("", list(range(len(pairs)))), ("_others", others)):
                    where = [view.number] * len(kept), [" / ".join(pairs[i]) for i in kept]
                    both = {"mass": mass.flatten()[kept], "effect": effect.flatten()[kept]}
                    for statistic in ("spearman", "balanced", "auc"):
                        yield rows_of(f"{name}_{statistic}{end}", both, *where)
                    for sign, of in (("negative", "effect"), ("mass_negative", "mass")):
                        yield rows_of(f"{name}_{sign}{end}", (both[of] < 0).double(), *where)


def _removals(scores: Tensor) -> Tensor:
    """What the whole scene has over the scene without each object: (n, 2^n) -> (n, n)."""
    whole = scores.shape[1] - 1
    without = [whole ^ (1 << place) for place in range(whole.bit_length())]
    return scores[:, whole:] - scores[:, without]


def _effect_metrics(name: str, exact: str) -> list[Metric]:
    mass = "the mass (positive less negative map, both as published)"
    ranks = f"rank correlation of {mass} and {exact}"
    balanced = (
        "mean of the shares of right signs among the effects above and among those below zero, no "
        "mass counts one half; a constant answer gets .5"
    )
    area = (
        "chance that the mass of an effect above zero is above that of one below zero; masses that "
        "have nothing to do with the effects get .5"
    )
    share = "share of the effects below zero: always saying one sign is right as often"
    masses = "share of the masses below zero"
    columns = []
    for end, pairs in (
        ("", "all pairs of a region's text and an object of its scene"),
        ("_others", "pairs where the text names another object"),
    ):
        columns += [
            Metric(f"{name}_spearman{end}", f"{ranks}; {pairs}", "high", "spearman", 0),
            Metric(
                f"{name}_balanced{end}", f"{balanced}; {pairs}", "high", "balanced_accuracy", 0.5
            ),
            Metric(f"{name}_auc{end}", f"{area}; {pairs}", "high", "auc", 0.5),
            Metric(f"{name}_negative{end}", f"{share}; {pairs}", "none"),
            Metric(f"{name}_mass_negative{end}", f"{masses}; {pairs}", "none"),
        ]
    return columns
