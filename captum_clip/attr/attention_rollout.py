"""AttentionRollout: the attention of all layers multiplied up, whatever the target."""

from __future__ import annotations

from typing import final

from torch import Tensor
from typing_extensions import override

from ..recording import LayerRecord
from ._attention import all_rows, initial_row, pooled_attention, read_row
from ._base import ViTAttribution
from ._call import Call, Computed
from ._engine import without_gradient


@final
class AttentionRollout(ViTAttribution):
    r"""Attention rollout (Abnar and Zuidema).

    .. math:: v \leftarrow v \cdot \mathrm{rownorm}(E_h[A_l] + I) \quad (l = n \ldots 1), \quad
              v_0 = e_{CLS}

    and the map is v without the CLS column. The rows of an attention sum to one, so the row norm
    is a division by two. Towers with mean pooling start from the mean of the patches' rows,
    those with a pooling head from its attention, around which no residual runs.

    It does not depend on the target: `target` may be left out, and ``attribute_targets`` repeats
    the map K times, so that tables of methods stay rectangular.

    Option, keyword-only: ``start_layer``, the first layer that takes part, 0-based;
    a pooling head counts as one more layer.

    Source: Abnar and Zuidema 2020 (arXiv:2005.00928).
    """

    name = "rollout"
    towers = ("vit", "text")
    needs_target = False

    @override
    def _compute(self, call: Call, *, start_layer: int = 0) -> Computed:
        layers, tower = self._layers(start_layer), self._tower

        def visit(index: int, seen: LayerRecord) -> Tensor:
            if index == layers[-1] and tower.pooling != "mean":
                row = pooled_attention(tower.attentions[index], seen)
                return row.mean(1, keepdim=True)  # (B, 1, s)
            return all_rows(tower.layers[index], seen).mean(1)  # (B, s, s)

        run = without_gradient(tower, call, (layers, visit))
        means = run.record.visited
        if tower.pooling == "attention":  # no residual runs around the pool
            row, layers = means[layers[-1]][:, 0], layers[:-1]
        else:
            like = means[layers[-1]][:, 0]
            row = initial_row(tower.pooling, like, tower.prefix, run.record.pooled)
        for index in reversed(layers):
            mean = means[index]
            row = (row + (mean[:, 0] if mean.shape[1] == 1 else read_row(row, mean))) / 2
        return run.computed(row.expand(len(run.columns), -1, -1))
