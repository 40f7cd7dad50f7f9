"""LayerAttention: one layer's attention, or its gradient, as it is."""

from __future__ import annotations

from typing import Any, Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from ..checks import is_integer
from ..errors import InputError
from ..models.towers import AttentionLayer
from ..recording import LayerRecord
from . import _attention as mha
from ._base import ViTAttribution
from ._call import Call, Computed
from ._engine import all_gradients, last_gradient, without_gradient

Of = Literal["attention", "gradient"]
Rows = Literal["cls", "sum"]


@final
class LayerAttention(ViTAttribution):
    r"""The attention of one layer, or the score's gradient with respect to it, heads averaged.

    .. math:: E_h[A_l] \quad \text{or} \quad E_h[\nabla A_l]

    of which ``rows="cls"`` shows row CLS and ``rows="sum"`` the sum of all rows, both without the
    CLS column. The gradient keeps its sign. The layer-wise view of Mamooler's Figures 2 and 3.
    In towers with mean pooling ``rows="cls"`` is the mean of the patches' rows; so it is for the
    last layer's gradient wherever a forward function leaves row CLS without one.

    Options, keyword-only:

    - ``index``: the layer, 0-based; negative counts from the end, -1 is the last. A pooling head is
      one more layer, whose attention has one row, that of its query; in the layers below it
      ``rows="cls"`` is the mean of the patches' rows.
    - ``of``: "attention", which no target changes (`target` may be left out), or "gradient".
    - ``rows``: "cls" or "sum".

    Source: CLIP Explainability (Mamooler, EPFL).

    Example:
        >>> from captum_clip import ClipSimilarity, LayerAttention, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, "a horse"))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> LayerAttention(forward).attribute(images, index=0, of="gradient").shape
        torch.Size([1, 1, 7, 7])
    """

    name = "layer"
    signed = True  # of the gradient
    listed = False  # a view of one layer, not a map to compare

    @classmethod
    @override
    def properties(cls, *, of: Of = "attention", **options: Any) -> dict[str, bool]:
        return dict.fromkeys(("signed", "needs_target"), of == "gradient")

    @override
    def _compute(
        self, call: Call, *, index: int = -1, of: Of = "attention", rows: Rows = "cls"
    ) -> Computed:
        count = len(self._tower.attentions)
        if not is_integer(index) or not -count <= index < count:
            raise InputError(
                f"index: {index!r} is not a layer; the tower has layers 0 to {count - 1}, or "
                f"-{count} to -1 from the end."
            )
        compute = self._of_gradient if of == "gradient" else self._of_attention
        return compute(call, index % count, rows)

    def _of_attention(self, call: Call, index: int, rows: Rows) -> Computed:
        tower, attention = self._tower, self._tower.attentions[index]

        def visit(_: int, seen: LayerRecord) -> Tensor:  # (B, s)
            if not isinstance(attention, AttentionLayer) or (
                rows == "cls" and tower.pooling == "cls"
            ):
                return mha.pooled_attention(attention, seen).mean(1)
            matrix = mha.all_rows(attention, seen).mean(1)
            if rows == "sum":
                return matrix.sum(1)
            mean = mha.initial_row(tower.pooling, matrix[:, 0], tower.prefix, seen.pooled)
            return mha.read_row(mean, matrix)

        run = without_gradient(tower, call, (range(index, index + 1), visit))
        return run.computed(run.record.visited[index].expand(len(run.columns), -1, -1))

    def _of_gradient(self, call: Call, index: int, rows: Rows) -> Computed:
        tower, is_last = self._tower, index == len(self._tower.attentions) - 1
        if is_last:
            last = last_gradient(tower, call)
            if last.output is None:  # the only row, so also the sum
                return last.run.computed(last.row.mean(2))
            run, output = last.run, last.output
        else:
            found = all_gradients(tower, call, index)
            run, output = found.run, found.run.stacked_gradients(found.points[0])  # (K', B, s, D)
        layer, seen, pooled = tower.layers[index], run.record.layers[index], run.record.pooled
        like = output[0, ..., 0]
        if rows == "sum":
            weights = torch.ones_like(like)
        elif is_last:
            weights = torch.stack([mha.start_row(g, tower.prefix, pooled) for g in output])
        else:
            weights = mha.initial_row(tower.pooling, like, tower.prefix, pooled)
        chosen = mha.heads_gradient(layer, (weights[..., None] * output).sum(2), seen)
        gradient = mha.row_gradient(layer, chosen, seen.tokens)  # (K', B, H, s)
        return run.computed(gradient.mean(2))
