"""Does a map's mass agree with what each object really does to the score?"""

from __future__ import annotations

import numpy as np
import torch

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
        pairs = "all pairs of a region's text and an object of its scene"
        others = "pairs where the text names another object"
        exact = "exact Shapley effect on the cosine, by drawing the scene with every subset"
        signs = "share of equal signs of mass and effect, no mass counts one half"
        return {
            "Effect of an object": [
                Metric("effect_spearman", "spearman", "high", f"signed mass and {exact}; {pairs}"),
                Metric("effect_signs", "sign_agreement", "high", f"{signs}; {pairs}"),
                Metric(
                    "effect_negative",
                    "mean",
                    "none",
                    f"share of effects below zero; always saying 'positive' gets the rest; {pairs}",
                ),
                Metric("effect_spearman_others", "spearman", "high", f"the same; {others}"),
                Metric("effect_signs_others", "sign_agreement", "high", f"the same; {others}"),
                Metric(
                    "effect_negative_others",
                    "mean",
                    "none",
                    f"share of effects below zero, which always saying 'negative' gets; {others}",
                ),
            ]
        }

    def measure(self, case: Case) -> Found:
        """See :class:`Task`; samples of which a map is missing are left out."""
        asked = case.asked
        if not asked.owners:
            return Found()
        signed = case.signed
        masses, effects, off, owners = [], [], [], []
        for owner, one in enumerate(case.seen):
            scores = case.shared.subset_scores.get(one.number)
            places = [place for place, other in enumerate(asked.owners) if other == owner]
            if scores is None or len(places) != len(one.regions):
                continue
            count = len(places)
            mass = metrics.object_mass(signed[places].double(), one.masks)
            masses.append(mass.flatten())
            effects.append(metrics.shapley_effects(scores).flatten())
            off.append(~torch.eye(count, dtype=torch.bool).flatten())
            owners += [owner] * count**2
        if not masses:
            return Found()
        pairs = [torch.cat(masses), torch.cat(effects)]
        everything = case.rows(pairs, owners)
        chosen = torch.cat(off).nonzero()[:, 0].tolist()
        others = case.rows([column[chosen] for column in pairs], [owners[i] for i in chosen])
        return Found(
            {
                "effect_spearman": everything,
                "effect_signs": everything,
                "effect_spearman_others": others,
                "effect_signs_others": others,
                "effect_negative": _negative(everything),
                "effect_negative_others": _negative(others),
            }
        )


def _negative(rows: Rows) -> Rows:
    return Rows(rows.owners, (rows.values[:, 1:] < 0).astype(np.float64))
