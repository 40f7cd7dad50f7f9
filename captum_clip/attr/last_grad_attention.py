"""LastGradAttention, Mamooler's method: the last layer's gradient with every attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from ..recording import LayerRecord, record_vit
from ._attention import pooled_attention, propagated, weighted, weighted_rows
from ._base import ViTAttribution
from ._call import Call, Computed
from ._engine import LastGradient, all_gradients, kept_attention, last_gradient

Heads = Literal["paired", "averaged"]


@final
class LastGradAttention(ViTAttribution):
    r"""Relevance propagation with only the last layer's gradient (equation 6 of Mamooler).

    .. math:: \bar A_l = E_h[(\nabla A_n \odot A_l)^+], \quad
              R \leftarrow R + \bar A_l R \quad (l = 1 \ldots n, \; R_0 = I)

    and the map is row CLS of R without the CLS column. In a CLS-pooled tower the gradient has one
    non-zero row, so only that row of R changes, and with :math:`a_l` for row CLS of
    :math:`\bar A_l` the patches are a weighted sum of the layers' CLS attention,

    .. math:: r_l = (1 + a_l[CLS]) \, r_{l-1} + a_l[patches], \quad r_0 = 0.

    Where the gradient is not confined to row CLS, as with mean pooling, the general form is
    computed, and read at the mean of the patches' rows if row CLS has no gradient.

    The query of a pooling head (SigLIP, PE-Core) has no row in the layers below, so equation 6 read
    strictly ends there, as :class:`AttentionGradCam`. The form computed instead is ours:
    :math:`v = E_h[(\nabla a \odot a)^+]` on the head's attention a, then
    :math:`v \leftarrow v + v \bar A_l` from the top down, with the gradient of the last
    *self*-attention as :math:`\nabla A_n`.

    The map is non-negative; the negative map is the map of ``-target``.

    Options, keyword-only:

    - ``heads``: "paired" multiplies head h of the last gradient with head h of every layer, as the
      equation says, although the heads of different layers do not correspond; "averaged" takes
      :math:`E_h[\nabla A_n]^+ \odot E_h[A_l]`, which renumbering the heads does not change.
    - ``start_layer``: first layer that takes part, 0-based; a pooling head counts as one more.

    Source: CLIP Explainability (Mamooler, EPFL), after Chefer et al. 2021 (arXiv:2103.15679).

    Example:
        >>> from captum_clip import ClipSimilarity, LastGradAttention, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> LastGradAttention(forward).attribute(images, target=0).shape
        torch.Size([1, 1, 7, 7])
    """

    name = "last-grad"
    towers = ("vit", "text")

    @override
    def _compute(self, call: Call, *, heads: Heads = "paired", start_layer: int = 0) -> Computed:
        layers, pooling = self._layers(start_layer), self._tower.pooling
        if pooling == "attention" and len(layers) > 1:
            return self._below_pooling_head(call, layers, heads)

        def visit(index: int, seen: LayerRecord) -> Tensor:
            return _combined(pooled_attention(self._tower.layers[index], seen), heads, dim=1)

        if pooling == "mean":  # the rows alone will not do
            last = last_gradient(self._tower, call, keep=layers)
        else:
            last = last_gradient(self._tower, call, (layers[:-1], visit))
        if last.output is not None:
            return self._general(call, last, layers, heads)
        own = _combined(last.attention, heads, dim=1)
        rows = torch.stack([*last.run.record.visited.values(), own])  # (L, B, H, s)
        gradient = _combined(last.row, heads, dim=2)  # (K', B, H, s)
        maps = torch.zeros_like(gradient[:, :, 0])
        for step in weighted_rows(gradient, rows):
            own = last.run.record.pooled.read(step[..., None])  # (K', B, 1)
            maps = (1 + own) * maps + step  # (K', B, s)
        return last.run.computed(maps)

    def _general(self, call: Call, last: LastGradient, layers: range, heads: Heads) -> Computed:
        """Equation 6 with whole matrices, for a gradient that has more than the CLS row."""
        run = last.run
        if self._tower.pooling != "mean":  # whole layers turned out to be needed
            with torch.no_grad(), record_vit(self._tower, keep=layers) as record:
                call.scores()
            run = replace(run, record=record)
        attention = kept_attention(self._tower, run, averaged=heads == "averaged")
        maps = [
            _propagated(start, _combined(gradient, heads, dim=1), attention, layers)
            for start, gradient in last.matrices(self._tower)
        ]
        return last.run.computed(torch.stack(maps))

    def _below_pooling_head(self, call: Call, layers: range, heads: Heads) -> Computed:
        """The pool's own row, and below it equation 6 with the last self-attention's gradient."""
        found = all_gradients(self._tower, call, layers[-2], first=layers[0])
        attention = kept_attention(self._tower, found.run, averaged=heads == "averaged")
        maps = []
        for gradients in found.run.gradients(*found.points):
            last = found.last_row(gradients[-1])
            assert last is not None
            start = weighted(*(_combined(part, heads, dim=1) for part in last), dim=1)  # (B, s)
            gradient = _combined(found.layer_gradient(layers[-2], gradients[0]), heads, dim=1)
            maps.append(_propagated(start, gradient, attention, layers[:-1]))
        return found.run.computed(torch.stack(maps))


def _propagated(
    start: Tensor, gradient: Tensor, attention: Callable[[int], Tensor], layers: range
) -> Tensor:
    """One target's map (B, s) from a row (B, s) and the last gradient (B, H, s, s)."""
    matrices = (weighted(gradient, attention(index), dim=1) for index in reversed(layers))
    return propagated(start, matrices)


def _combined(tensor: Tensor, heads: Heads, *, dim: int) -> Tensor:
    """All heads, or their mean in their place."""
    return tensor.mean(dim, keepdim=True) if heads == "averaged" else tensor
