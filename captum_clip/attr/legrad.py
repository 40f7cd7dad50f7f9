"""LeGrad: the gradients of the last layers' attentions, each for a score of its own layer."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from ..checks import is_integer
from ..errors import InputError
from ..models.steps import run_steps
from ..recording import LayerRecord, record_vit
from ._attention import (
    autocast_disabled,
    heads_output,
    matrix_gradient,
    merged,
    pooled_attention,
    row_gradient,
    to_float32,
)
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
    the last layers. A layer's score is not the model's: it is what the text would get if the
    image were read there. The map does not multiply with the attention itself.

    In a tower with a pooling head (SigLIP, PE-Core) the head's probe pools each layer's tokens,
    and its attention is differentiated in the place of the layer's. The authors' code leaves the
    final norm out there, and blanks cells where the map of an empty prompt exceeds .8; here the
    norm stays and nothing is blanked. With a forward function of your own, t is the direction of
    the score at the tower's output, as in :class:`DirectContribution`.

    One forward, and for each layer a backward through its MLP and no further, for all targets
    together. The map is non-negative; the negative map is the map of ``-target``.

    Option, keyword-only on both verbs: ``layers``, the number of last layers, 2 as in the authors'
    code, or "all".

    Source: Bousselham et al. 2024 (arXiv:2404.03214).

    Example:
        >>> from captum_clip import ClipSimilarity, LeGrad, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> LeGrad(forward).attribute_targets(images, layers="all").shape
        torch.Size([1, 2, 7, 7])
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
        found, batched = embedded_scores(tower, call, record, scores), call.similarity is not None
        maps = torch.stack([self._of_layer(found, index, batched) for index in record.outputs])
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

    def _of_layer(self, found: PooledEmbedding, index: int, batched: bool) -> Tensor:
        """E_l (K', B, s)."""
        tower, output = self._tower, found.run.record.outputs[index]  # (B, s, D)
        if tower.pooling_head is None:
            layer, seen = tower.layers[index], found.run.record.layers[index]
            mean = to_float32(output).mean(1)
            gradient = self._gradient(found, mean, seen.point(layer)[0], batched)
            return torch.stack(
                [matrix_gradient(layer, one, seen).clamp(min=0).mean((1, 2)) for one in gradient]
            )
        with torch.no_grad():
            tokens = tower.pooling_head.keyed(output.detach())
            row = pooled_attention(tower.pooling_head, LayerRecord(tokens=tokens))
            heads = heads_output(tower.pooling_head, row, tokens)
        token = merged(tower.pooling_head, heads.requires_grad_())
        gradient = self._gradient(found, token, heads, batched)
        return row_gradient(tower.pooling_head, gradient, tokens).clamp(min=0).mean(2)

    def _gradient(
        self, found: PooledEmbedding, token: Tensor, leaf: Tensor, batched: bool
    ) -> Tensor:
        """The gradients of a layer's scores, (K', *leaf.shape), from what is read of it, (B, D)."""
        with autocast_disabled(token):
            embedding = F.normalize(run_steps(found.head(self._tower), token), dim=-1)
            scores = torch.einsum("kbe,be->k", found.direction.rows, embedding)  # images do not mix
        ones = torch.eye(len(scores), dtype=scores.dtype, device=scores.device)
        # the blocks of a forward of one's own may hold what no batched backward passes
        rows = torch.split(ones, _TOGETHER) if batched else ones.unbind()
        parts = [
            torch.autograd.grad(scores, leaf, row, retain_graph=True, is_grads_batched=batched)[0]
            for row in rows
        ]
        return torch.cat(parts) if batched else torch.stack(parts)
