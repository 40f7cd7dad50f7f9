"""Three tries at one map for both questions: what does a place add, and what if it were gone?

``python docs/examples/open_goal.py --images 500`` prints the table of docs/right_map.md.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_clip import ConservativePropagation, DirectContribution
from captum_clip.attr.extend import (
    AttentionRead,
    Call,
    Computed,
    ViTAttribution,
    contributions,
    embedded_scores,
    pooled_embedding,
    record_held,
    register,
)
from captum_clip.evaluation import EvaluationConfig, evaluate
from captum_clip.models.steps import pull_back


@register
@final
class DirectAndConservative(ViTAttribution):
    """The mean of the two decompositions; both add up to the score, and so does their mean."""

    name = "mean-of-both"
    signed = True

    def _compute(self, call: Call) -> Computed:
        direct = DirectContribution(call.forward, self._tower.module)._compute(call)
        conservative = ConservativePropagation(call.forward, self._tower.module)._compute(call)
        return direct._replace(values=(direct.values + conservative.values) / 2)


@register
@final
class Competition(ViTAttribution):
    r"""Compute what CLS loses at every layer where a patch is taken from its softmax.

    .. math:: r_j = \sum_l \sum_h \frac{A_{lh}[CLS, j]}{1 - A_{lh}[CLS, j]} \,
        g_{lh} \cdot (v_{lhj} - o_{lh}), \quad o_{lh} = \sum_i A_{lh}[CLS, i] \, v_{lhi}

    with g as in DirectContribution: the others share the weight that becomes free.
    """

    name = "competition"
    signed = True

    def _compute(self, call: Call) -> Computed:
        tower = self._tower

        def visit(_: int, read: AttentionRead) -> tuple[AttentionRead, Tensor]:
            return read.without_weights(), read.row

        found = pooled_embedding(tower, call, (range(len(tower.layers)), visit))
        with torch.no_grad():
            direction = pull_back(found.head(tower), found.token, found.direction)
            maps = torch.zeros(1)
            for read, row in found.run.record.visited.values():
                steps = (*read.attention.merge_steps(), *read.attention.branch())
                at_heads = pull_back(steps, found.token, direction.without_constant())
                values = contributions(read, at_heads)  # (K, B, H, s)
                mixed = (row * values).sum(-1, keepdim=True)
                maps = maps + (row / (1 - row) * (values - mixed)).sum(2)
        return found.run.computed(maps)


@register
@final
class AttentionFree(ViTAttribution):
    """ConservativePropagation whose attention may change: the softmax competes in every layer."""

    name = "attention-free"
    signed = True

    def _compute(self, call: Call) -> Computed:
        tower = self._tower
        held = record_held(tower, attention=False, places=call.places, readout=call.readout)
        run = call.run(held)
        patches = run.record.input
        found = embedded_scores(tower, run, patches)
        maps = []
        for rows in found.direction.dense():
            (gradient,) = torch.autograd.grad(found.embedding, patches, rows, retain_graph=True)
            maps.append((gradient * patches.detach()).sum(1).flatten(1))
        return run.computed(F.pad(torch.stack(maps), (tower.prefix, 0)))


METHODS = (
    *("direct", "direct:depth=token", "conservative"),
    *("mean-of-both", "competition", "attention-free"),
)
COLUMNS = (
    "pointing",
    "effect_spearman_scene",
    "effect_spearman_scene_others",
    "removal_spearman_scene",
    "removal_spearman_scene_others",
)


def main() -> None:
    """Measure the tries on the embedded vision transformer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--method", nargs="+", default=METHODS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = EvaluationConfig(
            model="demo/vit",
            output=f"{folder}/out",
            data=("demo",),
            methods=tuple(options.method),
            tasks=("localization", "effect"),
            images=options.images,
            threads=options.threads,
        )
        figures = evaluate(config).summary.figures
    table = figures.pivot(index="method", columns="metric", values="mean")
    print(table.loc[list(options.method), list(COLUMNS)].round(3).to_string())


if __name__ == "__main__":
    main()
