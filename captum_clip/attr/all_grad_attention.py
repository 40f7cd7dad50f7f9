"""AllGradAttention: the relevance propagation of Chefer et al., with every layer's gradient."""

from __future__ import annotations

from typing import final

import torch
from typing_extensions import override

from ._attention import propagated, start_row, weighted
from ._base import ViTAttribution
from ._call import Call, Computed
from ._engine import all_gradients, kept_attention


@final
class AllGradAttention(ViTAttribution):
    r"""Relevance propagation with every layer's own gradient (equation 5; Chefer et al.).

    .. math:: \bar A_l = E_h[(\nabla A_l \odot A_l)^+], \quad
              R \leftarrow R + \bar A_l R \quad (l = 1 \ldots n, \; R_0 = I)

    and the map is row CLS of R without the CLS column. That row is computed from the top down,
    :math:`v \leftarrow v + v \bar A_l` for l = n ... 1 from :math:`v = e_{CLS}`: a vector times a
    matrix, never a product of matrices. Where the last gradient leaves row CLS empty, as with mean
    pooling, it starts from the mean of the patches' rows; in a tower with a pooling head from the
    head's own :math:`E_h[(\nabla a \odot a)^+]` (Chefer's rule for cross-attention).

    It needs the gradient of every layer, so each target costs a backward; the forward is shared.
    The map is non-negative; the negative map is the map of ``-target``.

    Option, keyword-only: ``start_layer``, the first layer that takes part, 0-based;
    a pooling head counts as one more layer.

    Source: Chefer et al. 2021 (arXiv:2103.15679), equations 5 and 6 there.
    """

    name = "all-grad"
    towers = ("vit", "text")

    @override
    def _compute(self, call: Call, *, start_layer: int = 0) -> Computed:
        tower, layers = self._tower, self._layers(start_layer)
        found = all_gradients(tower, call, start_layer)
        attention, pooled = kept_attention(tower, found.run), found.run.record.pooled
        maps = []
        for gradients in found.run.gradients(*found.points):
            last = found.last_row(gradients[-1])
            if last is None:
                start, below = start_row(gradients[-1], tower.prefix, pooled), layers
            else:
                start, below = weighted(*last, dim=1), layers[:-1]  # (B, s)
                if tower.pooling == "cls":  # no residual runs around a pooling head
                    start = start + pooled.row_of(start)
            steps = (
                weighted(found.layer_gradient(index, gradient), attention(index), dim=1)
                for index, gradient in reversed(list(zip(below, gradients, strict=False)))
            )
            row = propagated(start, steps)
            # no token keeps the 1 that its own row began with
            maps.append(row if pooled.rows is None else row - pooled.row_of(row))
        return found.run.computed(torch.stack(maps))
