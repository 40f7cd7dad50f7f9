"""Where the negative map of a text lies, and how it goes with the positive one."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import maps as resizing
from ... import metrics
from ..config import EvaluationConfig
from ..metric import Metric
from .base import Case, Found, Task

_PARTS = ("target", "others", "background")


class Signs(Task):
    """Mass of both signs in the target, in other regions and in the background."""

    name = "signs"
    what = "where positive and negative maps lie"

    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        """See :class:`Task`."""
        where = {
            "target": "in the region that the text names",
            "others": "in the other regions",
            "background": "outside of all regions",
        }
        titles = {}
        for sign in ("positive", "negative"):
            titles[f"Where the {sign} map lies"] = [
                Metric(
                    f"{sign}_{part}",
                    "mean",
                    "none",
                    f"share of the {sign} map's mass {where[part]}; chance: random",
                )
                for part in _PARTS
            ]
        titles["Where the negative map lies"] += [
            Metric(
                "sign_correlation",
                "mean",
                "none",
                "Spearman's rank correlation of positive and negative map; below zero by "
                "construction where both are parts of one signed map",
            ),
            Metric(
                "sign_cosine",
                "mean",
                "none",
                "cosine of positive and negative map; 0: they never meet",
            ),
            Metric(
                "negative_pointing_others",
                "mean",
                "none",
                "maximum of the negative map inside another region; chance: random",
            ),
        ]
        return titles

    def measure(self, case: Case) -> Found:
        """See :class:`Task`; regions without another one beside them are left out."""
        asked = case.asked
        if not asked.owners:
            return Found()
        whole = torch.stack([_union(case, owner) for owner in asked.owners])  # (N, H, W)
        parts = [asked.masks, whole & ~asked.masks, ~whole]
        several = torch.stack([part.flatten(1).any(1) for part in parts]).all(0)
        places = several.nonzero()[:, 0].tolist()
        if not places:
            return Found()
        owners = [asked.owners[place] for place in places]
        parts = [part[places] for part in parts]
        positive = case.positive[places]
        rows = {}
        for name, mask in zip(_PARTS, parts, strict=True):
            rows[f"positive_{name}"] = case.rows(_share(positive, mask), owners)
        if case.negative is not None:
            negative = case.negative[places]
            for name, mask in zip(_PARTS, parts, strict=True):
                rows[f"negative_{name}"] = case.rows(_share(negative, mask), owners)
            correlation = metrics.rank_correlation(positive, negative)
            rows["sign_correlation"] = case.rows(correlation, owners)
            rows["sign_cosine"] = case.rows(_cosine(positive, negative), owners)
            hits = metrics.pointing_game(negative, parts[1])
            some = torch.where(negative.flatten(1).any(1), hits, torch.nan)
            rows["negative_pointing_others"] = case.rows(some, owners)
        return Found(rows)


def _union(case: Case, owner: int) -> Tensor:
    union: Tensor = case.seen[owner].masks.any(0)
    return union


def _share(heat: Tensor, masks: Tensor) -> Tensor:
    """Of the mass (N,); NaN for a map without any."""
    mass = resizing.upsample(heat, (masks.shape[-2], masks.shape[-1]))
    inside: Tensor = (mass * masks).sum((-2, -1))
    return inside / mass.sum((-2, -1))


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    one, other = first.flatten(1).double(), second.flatten(1).double()
    product: Tensor = (one * other).sum(1)
    lengths: Tensor = one.norm(dim=1) * other.norm(dim=1)
    return product / lengths
