"""GradEclip: the last attention's values along the gradient, weighted with a loosened attention."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from ..models.towers import PoolingHead
from ..recording import LayerRecord
from . import _attention as mha
from ._base import ViTAttribution
from ._call import Call, Computed
from ._engine import last_gradient


@final
class GradEclip(ViTAttribution):
    r"""Grad-ECLIP with the model's own heads: gradient times value, times a loosened attention.

    .. math:: L_p = \Bigl(\sum_h \frac{\partial y}{\partial A_{n,h}[CLS, p]}\Bigr)^+ \lambda_p,
              \quad \lambda = \text{min-max over patches of } \cos(q_{CLS}, k_p)

    where :math:`\partial y / \partial A_{n,h}[CLS, p]` is the gradient at head h's output times
    the value :math:`v_{hp}`, and q and k are a token's concatenated queries and keys of all heads,
    as they enter the attention. The min-max weights take the softmax's place, which is too sparse
    for a map.

    The authors' code runs the last block again with one head of full width, so that it explains
    another score than the model's; here the model's own heads and its own score stand.

    In a tower with a pooling head (SigLIP, PE-Core) its query replaces that of CLS. Where CLS has
    no gradient, as with mean pooling, the mean of the patches' rows and of their queries stands for
    it. The map is non-negative; the negative map is the map of ``-target``.

    Source: Zhao et al., ICML 2024 (Gradient-based Visual Explanation for Transformer-based CLIP).
    """

    name = "grad-eclip"
    towers = ("vit", "text")

    @override
    def _compute(self, call: Call) -> Computed:
        tower = self._tower
        last = last_gradient(tower, call)
        seen = last.run.record.layers[len(tower.attentions) - 1]
        if last.output is None:
            maps = last.row.sum(2).clamp(min=0) * self._loosened(seen, None)
            return last.run.computed(maps)
        attention, general = tower.attentions[-1], []
        for output in last.output:  # (B, s, D), one target after the other
            start = mha.start_row(output, tower.prefix, seen.pooled)
            gradient = mha.read_row(start, mha.heads_gradient(attention, output, seen))
            row = mha.row_gradient(attention, gradient[None], seen.tokens)[0].sum(1)  # (B, s)
            general.append(row.clamp(min=0) * self._loosened(seen, start))
        return last.run.computed(torch.stack(general))

    @torch.no_grad()
    def _loosened(self, seen: LayerRecord, start: Tensor | None) -> Tensor:
        """Min-max over the patches of the cosine between keys and the pooled query, (B, s).

        The query is that of CLS or the pooling head, or of a row `start` (B, s) of tokens.
        """
        attention, span = self._tower.attentions[-1], self._tower.span
        key = mha.projected_heads(attention, "key", seen).transpose(1, 2).flatten(2)  # (B, s, D)
        with mha.autocast_disabled(key):
            if isinstance(attention, PoolingHead):
                query = attention.query().to(key).expand(len(key), -1, -1).flatten(1)
            elif start is None:
                read = seen.pooled.read(seen.tokens)[:, None]
                first = LayerRecord(tokens=read, context=seen.context)
                query = mha.projected_heads(attention, "query", first).flatten(1)  # (B, D)
            else:
                queries = mha.projected_heads(attention, "query", seen).transpose(1, 2).flatten(2)
                query = mha.read_row(start, queries)
            cosine = F.cosine_similarity(query[:, None], key, dim=-1)
        hidden = seen.pooled.hidden()
        if hidden is None:
            hidden = torch.zeros_like(cosine, dtype=torch.bool)
        low = cosine.masked_fill(hidden, torch.inf)[:, span].amin(1, keepdim=True)
        high = cosine.masked_fill(hidden, -torch.inf)[:, span].amax(1, keepdim=True)
        extent = (high - low).clamp(min=torch.finfo(cosine.dtype).tiny)
        return ((cosine - low) / extent).masked_fill(hidden, 0)
