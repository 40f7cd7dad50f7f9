"""ConservativePropagation: gradient times input with every gate of the transformer detached."""

from __future__ import annotations

from functools import partial
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from ..maps import to_float32
from ..models.text import TextTower
from ..models.towers import AttentionLayer, ViTTower
from ..recording import LayerRecord, record_detached_gates, refuse_nonlinear
from ._attention import attended, heads_output, merged, pooled_attention
from ._base import ClipAttribution
from ._call import Call, Computed
from ._engine import embedded_scores, refuse_checkpointing


@final
class ConservativePropagation(ClipAttribution):
    r"""Gradient times input with attention, norms and activations detached: signed, conservative.

    .. math:: r_j = x_j \cdot \frac{\partial \tilde y}{\partial x_j}

    with :math:`x_j` the projected patch before positions are added, and :math:`\tilde y` the score
    in which the attention's weights, the norms' standard deviations, the activations' gates
    :math:`f(x) / x` and the embedding's length are constants. What is left is linear, so relevance
    is neither made nor lost on the way: ``maps.sum((-2, -1)) + rest`` is the score, and the rest
    is the share of class token, positions and biases. A gated MLP (SwiGLU) keeps its gate.

    One forward, and a backward per target. Evidence against the target is negative. With a forward
    function of your own the score's gradient is taken at the tower's output, as
    :class:`DirectContribution` does. For transformers only.

    Option, keyword-only: ``return_rest``, to return the rest (B, K) as well.

    Source: Ali et al. 2022 (arXiv:2202.07304).
    """

    name = "conservative"
    towers = ("vit", "text")
    signed = additive = True
    _tower: ViTTower

    @override
    def _compute(self, call: Call) -> Computed:
        return propagated_to_patches(self._tower, call)


def propagated_to_patches(tower: ViTTower, call: Call, *, centred: bool = False) -> Computed:
    """Relevance of every projected patch; `centred` takes each patch less their mean."""
    refuse_checkpointing(tower)
    with record_detached_gates(tower, partial(_attend, tower)) as record:
        result = call.embeddings() if isinstance(tower, TextTower) else call.scores()
    found, patches = embedded_scores(tower, call, record, result), record.input
    refuse_nonlinear(found.embedding, patches)

    def as_tokens(tensor: Tensor) -> Tensor:  # (B, N, D)
        if patches.ndim == 4 and isinstance(tower.patches, nn.Conv2d):
            tensor = tensor.permute(0, 2, 3, 1)
        return to_float32(tensor).flatten(1, -2)

    entered, maps = as_tokens(patches.detach()), []
    if centred:
        span = slice(tower.prefix, tower.prefix + entered.shape[1])
        padded = F.pad(entered, (0, 0, tower.prefix, 0))
        entered = entered - record.pooled.mean(padded, span)
    # one target after the other
    for rows in found.direction.dense().to(found.embedding.dtype):  # (B, E)
        (gradient,) = torch.autograd.grad(found.embedding, patches, rows, retain_graph=True)
        maps.append((as_tokens(gradient) * entered).sum(-1))
    stacked = torch.stack(maps)  # (K', B, N)
    rest = found.run.chosen - stacked.sum(-1).T
    return found.run.computed(F.pad(stacked, (tower.prefix, 0)), rest)


def _attend(tower: ViTTower, index: int, seen: LayerRecord) -> Tensor:
    """An attention's output (B, rows, D), its weights detached."""
    attention = tower.attentions[index]
    if isinstance(attention, AttentionLayer):
        return merged(attention, attended(attention, seen))
    with torch.no_grad():
        row = pooled_attention(attention, seen)
    return merged(attention, heads_output(attention, row, seen.tokens))[:, None]
