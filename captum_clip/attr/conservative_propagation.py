"""ConservativePropagation: gradient times input with every gate of the transformer held."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..models.text import TextTower
from ..models.towers import AttentionLayer, ViTTower
from ..recording import LayerRecord, record_gates_held
from ._attention import all_rows, attended, heads_output, merged, readout_row, widened
from ._base import AdditiveAttribution, Computed
from ._call import Call
from ._passes import refuse_checkpointing
from ._readout import direction_in_graph


@final
class ConservativePropagation(AdditiveAttribution):
    r"""Gradient times input, with attention, norms and activations held: signed and conservative.

    .. math:: r_j = x_j \cdot \frac{\partial \tilde y}{\partial x_j}

    with :math:`x_j` the projected patch before positions are added, and :math:`\tilde y` the score
    in which the attention's weights, the norms' standard deviations, the activations' gates
    :math:`f(x) / x` and the embedding's length are constants. What is left is linear, so relevance
    is neither made nor lost on the way: ``maps.sum((-2, -1)) + rest`` is the score, and the rest
    has what class token, positions and biases add. A gated MLP (SwiGLU) keeps its gate.

    One forward, and a backward per target. What is below zero speaks against the target. With a
    forward function of your own the score's gradient is taken at the tower's output, as
    :class:`DirectContribution` does. For vision transformers only.

    Option, keyword-only on both verbs: ``return_rest``: give the rest (B, K) too.

    Source: Ali et al. 2022 (arXiv:2202.07304).

    Example:
        >>> from captum_clip import ClipSimilarity, ConservativePropagation, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> ConservativePropagation(forward).attribute_targets(images).shape
        torch.Size([1, 2, 7, 7])
    """

    name = "conservative"
    towers = ("vit", "text")
    _needs = "the layers of a vision transformer"
    _instead = "use DirectContribution or ClipGradCam"
    _tower: ViTTower

    @override
    def _compute(self, call: Call) -> Computed:
        tower = self._tower
        refuse_checkpointing(tower)
        with record_gates_held(tower, self._attend) as record:
            result = call.embeddings() if isinstance(tower, TextTower) else call.scores()
        scored, direction, embedding = direction_in_graph(tower, call, record, result)
        patches = record.patches
        assert patches is not None
        channels = 1 if patches.ndim == 4 and isinstance(tower.patches, nn.Conv2d) else -1
        maps = []
        for rows in direction.dense().to(embedding.dtype):  # (B, E), one target after the other
            (gradient,) = torch.autograd.grad(embedding, patches, rows, retain_graph=True)
            maps.append((widened(gradient) * widened(patches.detach())).sum(channels).flatten(1))
        stacked = torch.stack(maps)  # (K', B, N)
        rest = scored.chosen - stacked.sum(-1).T
        padding = stacked.new_zeros(*stacked.shape[:-1], tower.prefix)
        return Computed(record, torch.cat([padding, stacked], -1), scored.chosen, rest)

    def _attend(self, index: int, seen: LayerRecord) -> Tensor:
        """An attention's output, its weights held."""
        attention = self._tower.attentions[index]
        assert seen.tokens is not None
        with torch.no_grad():
            if isinstance(attention, AttentionLayer):
                weights = all_rows(attention, seen)
            else:
                weights = readout_row(attention, seen)
        if not isinstance(attention, AttentionLayer):
            return merged(attention, heads_output(attention, weights, seen.tokens))[:, None]
        return merged(attention, attended(attention, weights, seen))
