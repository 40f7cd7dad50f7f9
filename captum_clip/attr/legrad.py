"""LeGrad: the gradients of the last layers' attentions, each for a score of its own layer."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn import functional as F
from typing_extensions import override

from ..checks import is_integer
from ..errors import InputError
from ..maps import to_float32
from ..models.steps import run_steps
from ..recording import LayerRecord, record_vit
from . import _attention as mha
from ._base import ViTAttribution
from ._call import Call, Computed
from ._engine import PooledEmbedding, embedded_scores, refuse_checkpointing

_TOGETHER = 8  # targets in one batched backward, which bounds its memory


@final
class LeGrad(ViTAttribution):
    r"""Sensitivity of each layer's own score to that layer's attention (Bousselham et al.).

    .. math:: s_l = \cos\bigl(t, \; P \, \mathrm{LN}(\tfrac{1}{s} \sum_i z_{l,i})\bigr), \quad
              E_l = \frac{1}{H s} \sum_h \sum_i
              \Bigl(\frac{\partial s_l}{\partial A_{l,h}[i, \cdot]}\Bigr)^+, \quad
              L = \sum_l E_l[patches]

    with :math:`z_l` all s tokens after block l, through the tower's own norm and projection, and l
    the last layers. A layer's score is not the model's: it is the cosine if the image were pooled
    there. The map does not multiply with the attention itself.

    In a tower with a pooling head (SigLIP, PE-Core) the head pools each layer's tokens, and its
    attention is differentiated in the place of the layer's. The authors' code leaves the
    final norm out there, and blanks cells where the map of an empty prompt exceeds .8; here the
    norm stays and nothing is blanked. With a forward function of your own, t is the direction of
    the score at the tower's output, as in :class:`DirectContribution`.

    One forward, and for each layer a backward through its MLP and no further, for all targets
    together. The map is non-negative; the negative map is the map of ``-target``.

    Option, keyword-only: ``layers``, the number of last layers, 2 as in the authors'
    code, or "all".

    Source: Bousselham et al. 2024 (arXiv:2404.03214).
    """

    name = "legrad"

    @override
    def _compute(self, call: Call, *, layers: int | Literal["all"] = 2) -> Computed:
        tower, chosen = self._tower, self._last(layers)
        refuse_checkpointing(tower)
        if tower.pooling == "attention":  # it is differentiated itself, so no graph comes before it
            recorded = record_vit(tower, leaf="embedding", outputs=chosen)
        else:
            recorded = record_vit(tower, keep=chosen, leaf=chosen[0], outputs=chosen)
        with recorded as record:
            scores = call.scores()
        found = embedded_scores(tower, call, record, scores)
        maps = torch.stack([self._of_layer(found, index) for index in record.outputs])
        return found.run.computed(maps.sum(0))

    def _last(self, layers: int | Literal["all"]) -> range:
        count = len(self._tower.layers)
        if layers == "all":
            return range(count)
        if not is_integer(layers) or not 1 <= layers <= count:
            raise InputError(
                f"layers: expected how many of the tower's {count} last layers take part, or "
                f"'all', got {layers!r}."
            )
        return range(count - layers, count)

    def _of_layer(self, found: PooledEmbedding, index: int) -> Tensor:
        """E_l (K', B, s)."""
        head, output = self._tower.pooling_head, found.run.record.outputs[index]  # (B, s, D)
        if head is None:
            layer, seen = self._tower.layers[index], found.run.record.layers[index]
            gradients = self._gradients(found, to_float32(output).mean(1), seen.point(layer)[0])
            matrices = (mha.matrix_gradient(layer, gradient, seen) for gradient in gradients)
            return torch.stack([matrix.clamp(min=0).mean((1, 2)) for matrix in matrices])
        with torch.no_grad():
            tokens = head.keyed(output.detach())
            row = mha.pooled_attention(head, LayerRecord(tokens=tokens))
            heads = mha.heads_output(head, row, tokens)
        gradients = self._gradients(found, mha.merged(head, heads.requires_grad_()), heads)
        return mha.row_gradient(head, gradients, tokens).clamp(min=0).mean(2)

    def _gradients(self, found: PooledEmbedding, token: Tensor, leaf: Tensor) -> Tensor:
        """The gradients of a layer's scores, (K', *leaf.shape), from its pooled token (B, D)."""
        with mha.autocast_disabled(token):
            embedding = F.normalize(run_steps(found.head(self._tower), token), dim=-1)
            scores = torch.einsum("kbe,be->k", found.direction.rows, embedding)  # images do not mix
        ones, batched = torch.eye(len(scores)).to(scores), found.run.batched
        # the blocks of a user's own forward may contain operations that no batched backward passes
        rows = torch.split(ones, _TOGETHER) if batched else ones.unbind()
        parts = [
            grad(scores, leaf, r, retain_graph=True, is_grads_batched=batched)[0] for r in rows
        ]
        return torch.cat(parts) if batched else torch.stack(parts)
