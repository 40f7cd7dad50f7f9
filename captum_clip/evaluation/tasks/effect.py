"""Does a map's mass agree with what each object really does to the score?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor
from typing_extensions import override

from ... import metrics
from ...runs import Arrays
from ..config import EvaluationConfig
from ..method_on_batch import MethodOnBatch, finite_maps
from ..metric import Metric
from ..table import rows_of
from .base import Task


class Effect(Task):
    """Signed mass in each object against the object's exact Shapley effect."""

    name = "effect"

    @override
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        shapley = "exact Shapley effect on the cosine, by drawing the scene with every subset"
        removal = "the cosine of the whole scene less that of the scene drawn without the object"
        return {
            "Effect of an object": _metrics("effect", shapley),
            "Effect of taking an object out of the scene": _metrics("removal", removal),
        }

    @override
    def measure(self, maps: MethodOnBatch) -> Iterator[Arrays]:
        """Samples of which a map is missing are left out.

        A row is a pair of a text and an object, whose region is "a horse / a dog".
        """
        queries = maps.regions
        columns: dict[str, list[Tensor]] = defaultdict(list)
        numbers: list[int] = []
        pairs: list[tuple[str, str]] = []
        for view in maps.batch.views if len(queries) else ():
            own = [i for i, number in enumerate(queries.numbers) if number == view.number]
            scores = maps.batch.subset_scores.get(view.number)
            if scores is None or len(own) != len(view.regions):
                continue
            if not finite_maps(maps.signed[own]).all():
                continue
            mass = metrics.object_mass(maps.signed[own].double(), view.masks)  # (texts, objects)
            columns["mass"].append(mass.flatten())
            columns["effect"].append(metrics.shapley_effects(scores).flatten())
            columns["removal"].append(_removals(scores).flatten())
            texts = [region.text for region in view.regions]
            pairs += [(text, other) for text in texts for other in texts]
            numbers += [view.number] * len(own) ** 2
        if not numbers:
            return
        mass = torch.cat(columns["mass"])
        others = [place for place, (text, other) in enumerate(pairs) if text != other]
        for name in ("effect", "removal"):
            effect = torch.cat(columns[name])
            for end, kept in (("", list(range(len(pairs)))), ("_others", others)):
                where = [numbers[i] for i in kept], [" / ".join(pairs[i]) for i in kept]
                both = {"mass": mass[kept], "effect": effect[kept]}
                yield rows_of(f"{name}_spearman{end}", both, *where)
                yield rows_of(f"{name}_balanced{end}", both, *where)
                yield rows_of(f"{name}_auc{end}", both, *where)
                for sign, values in (("negative", both["effect"]), ("mass_negative", both["mass"])):
                    yield rows_of(f"{name}_{sign}{end}", (values < 0).double(), *where)


def _removals(scores: Tensor) -> Tensor:
    """What the whole scene has over the scene without each object: (n, 2^n) -> (n, n)."""
    whole = scores.shape[1] - 1
    without = [whole ^ (1 << place) for place in range(whole.bit_length())]
    return scores[:, whole:] - scores[:, without]


def _metrics(name: str, exact: str) -> list[Metric]:
    columns = []
    for end, pairs in (
        ("", "all pairs of a region's text and an object of its scene"),
        ("_others", "pairs where the text names another object"),
    ):
        signed = "positive less negative map, both as published"
        ranks = f"rank correlation of the mass ({signed}) and {exact}; {pairs}"
        balanced = (
            "mean of the shares of right signs among the effects above and among those below zero, "
            f"no mass counts one half; a constant answer gets .5; {pairs}"
        )
        area = (
            "chance that the mass of an effect above zero is above that of one below zero; masses "
            f"that have nothing to do with the effects get .5; {pairs}"
        )
        share = (
            f"share of the effects below zero: always saying one sign is right as often; {pairs}"
        )
        answers = f"share of the masses below zero; {pairs}"
        columns += [
            Metric(f"{name}_spearman{end}", ranks, statistic="spearman", constant=0),
            Metric(f"{name}_balanced{end}", balanced, "high", "balanced_accuracy", 0.5),
            Metric(f"{name}_auc{end}", area, "high", "auc", 0.5),
            Metric(f"{name}_negative{end}", share, "none"),
            Metric(f"{name}_mass_negative{end}", answers, "none"),
        ]
    return columns
