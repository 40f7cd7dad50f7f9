"""PatchSimilarity: how similar each patch is to the text when the last attention lets it be."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from ..errors import UnsupportedModelError
from ..models.steps import run_steps
from ..models.towers import PoolingHead
from ..recording import LayerRecord
from ._attention import autocast_disabled, projected_heads
from ._base import ViTAttribution
from ._call import Call, Computed
from ._engine import pooled_embedding

Mixing = Literal["identity", "qq", "kk"]


@final
class PatchSimilarity(ViTAttribution):
    r"""The cosine of every patch with the text, the last attention exchanged (MaskCLIP, ClearCLIP).

    .. math:: L_p = \cos\bigl(t, \; P \, \mathrm{LN}(W_O S V + b)_p\bigr)

    with V the values of the last attention, and S the identity (MaskCLIP), or
    :math:`\mathrm{softmax}(q q^T / \sqrt{d})` or :math:`\mathrm{softmax}(k k^T / \sqrt{d})` head
    by head (ClearCLIP); the residual and the MLP of the block are left out, the tower's own norm
    and projection P follow. It is a dense similarity for segmentation and **not the model's
    score**: the model does not read the patches so, and a place may be similar to a text without
    having any effect on the score.

    In a tower with a pooling head (SigLIP, PE-Core) the last attention is the head's: with the
    identity a patch's value is the cosine that the image would have if the head attended to that
    patch alone, its MLP included. With a forward function of your own, t is the direction of the
    score at the tower's output, as in :class:`DirectContribution`.

    The map is signed and costs one forward, without a gradient, for any number of texts.

    Option, keyword-only: ``attention``, "identity", "qq" or "kk" for S.

    Raises:
        UnsupportedModelError: "qq" in a tower with a pooling head, whose patches have no queries.

    Source: Zhou et al. 2022 (arXiv:2112.01071), MaskCLIP; Lan et al. 2024 (arXiv:2407.12442),
    ClearCLIP.
    """

    name = "patches"
    signed = True

    @override
    def _compute(self, call: Call, *, attention: Mixing = "identity") -> Computed:
        tower, last = self._tower, len(self._tower.attentions) - 1
        own = tower.attentions[last]
        if isinstance(own, PoolingHead) and attention == "qq":
            raise UnsupportedModelError(
                "PatchSimilarity: attention='qq' needs a query of every patch, and this tower's "
                "last attention is a pooling head's, which has one query of its own; take 'kk' "
                "or 'identity'."
            )
        layer = (range(last, last + 1), lambda _, seen: seen)
        found = pooled_embedding(tower, call, layer)
        seen: LayerRecord = found.run.record.visited[last]
        with torch.no_grad(), autocast_disabled(found.token):
            mixed = projected_heads(own, "value", seen)  # (B, H, s, d)
            if attention != "identity":
                which: Literal["query", "key"] = "query" if attention == "qq" else "key"
                heads = projected_heads(own, which, seen)
                mixed = ((heads * own.scale) @ heads.mT).softmax(-1) @ mixed
            batch, _, count, _ = mixed.shape
            flat = mixed.transpose(1, 2).flatten(2).flatten(0, 1)  # (B s, D)
            flat = run_steps((*own.merge_steps(), *own.branch(), *found.head(tower)), flat)
            patches = F.normalize(flat, dim=-1).view(batch, count, -1)  # (B, s, E)
            rows: Tensor = found.direction.rows.expand(-1, batch, -1)
            maps = torch.einsum("kbe,bse->kbs", rows, patches)
        return found.run.computed(maps)
