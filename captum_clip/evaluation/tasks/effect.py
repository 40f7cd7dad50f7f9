"""Does a map's mass agree with what each object really does to the score?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ... import metrics
from ..config import EvaluationConfig
from ..metric import Metric, Rows
from .base import Case, Found, Task


class Effect(Task):
    """Signed mass in each object against the object's exact Shapley effect."""

    name = "effect"
    what = "signed mass in each object against its exact effect on the cosine"

    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        """See :class:`Task`."""
        shapley = "exact Shapley effect on the cosine, by drawing the scene with every subset"
        removal = "the cosine of the whole scene less that of the scene drawn without the object"
        return {
            "Effect of an object": _metrics("effect", shapley),
            "Effect of taking an object out of the scene": _metrics("removal", removal),
        }

    def measure(self, case: Case) -> Found:
        """See :class:`Task`; samples of which a map is missing are left out."""
        asked = case.asked
        if not asked.owners:
            return Found()
        signed = case.signed
        masses, effects, removals, off, owners = [], [], [], [], []
        for owner, one in enumerate(case.seen):
            scores = case.shared.subset_scores.get(one.number)
            places = [place for place, other in enumerate(asked.owners) if other == owner]
            if scores is None or len(places) != len(one.regions):
                continue
            count = len(places)
            masses.append(metrics.object_mass(signed[places].double(), one.masks).flatten())
            effects.append(metrics.shapley_effects(scores).flatten())
            removals.append(_removals(scores).flatten())
            off.append(~torch.eye(count, dtype=torch.bool).flatten())
            owners += [owner] * count**2
        if not masses:
            return Found()
        chosen = torch.cat(off).nonzero()[:, 0].tolist()
        others = [owners[place] for place in chosen]
        rows: dict[str, Rows] = {}
        for name, found in (("effect", effects), ("removal", removals)):
            pairs = [torch.cat(masses), torch.cat(found)]
            everything = case.rows(pairs, owners)
            part = case.rows([column[chosen] for column in pairs], others)
            for end, of in (("", everything), ("_others", part)):
                rows |= {f"{name}_spearman{end}": of, f"{name}_signs{end}": of}
                rows[f"{name}_negative{end}"] = _negative(of)
        return Found(rows)


def _removals(scores: Tensor) -> Tensor:
    """What the whole scene has over the scene without each object: (n, 2^n) -> (n, n)."""
    whole = scores.shape[1] - 1
    places = [whole ^ (1 << place) for place in range(whole.bit_length())]
    return scores[:, whole:] - scores[:, places]


def _negative(rows: Rows) -> Rows:
    return Rows(rows.owners, (rows.values[:, 1:] < 0).astype(np.float64))


def _metrics(name: str, exact: str) -> list[Metric]:
    found = []
    for end, pairs in (
        ("", "all pairs of a region's text and an object of its scene"),
        ("_others", "pairs where the text names another object"),
    ):
        signs = f"share of equal signs of mass and effect ({exact}), no mass counts one half"
        share = (
            f"share of effects below zero ({exact}); always saying one sign gets this or the rest"
        )
        found += [
            Metric(
                f"{name}_spearman{end}", "spearman", "high", f"signed mass and {exact}; {pairs}"
            ),
            Metric(f"{name}_signs{end}", "sign_agreement", "high", f"{signs}; {pairs}"),
            Metric(f"{name}_negative{end}", "mean", "none", f"{share}; {pairs}"),
        ]
    return found
