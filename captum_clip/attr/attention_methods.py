"""Methods that read attention and its gradient: Grad-CAM, rollout, all-grad, last-grad, a layer."""

from collections.abc import Callable
from typing import Any, Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from ..checks import expect, is_integer
from ..recording import AttentionRead
from . import _attention as mha
from ._base import ViTAttribution
from ._call import Call, Computed
from ._engine import (
    LastGradient,
    all_gradients,
    kept_attention,
    last_gradient,
    once_more,
    without_gradient,
)

Weights = Literal["elementwise", "pooled"]


@final
class AttentionGradCam(ViTAttribution):
    r"""Grad-CAM for vision transformers: the last layer's attention times its gradient.

    .. math:: L = E_h[(\nabla A_n \odot A_n)^+][CLS, patches]

    with ``weights="elementwise"`` (the default, the form of Mamooler's code), and

    .. math:: L = \bigl(E_h[g_h \, A_{n,h}]\bigr)^+[CLS, patches], \quad
              g_h = \text{mean of } \nabla A_{n,h}[CLS, patches]

    with ``weights="pooled"`` (the form of Chefer et al., to which Mamooler's text refers: the
    gradient is one number per head, and the ReLU comes after the mean over heads).

    Where the gradient leaves row CLS empty, as with mean pooling, the mean of the patches' rows
    takes its place. In a tower with a pooling head (SigLIP, PE-Core) the last attention is the
    head's, which has one row, that of its query. The map is non-negative; the negative map is the
    map of ``-target``. It is the last term of :class:`LastGradAttention`.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391); Chefer et al. 2021 (arXiv:2103.15679).
    """

    name = "attention-grad-cam"
    differentiable = True
    towers = ("vit", "text")

    @override
    def _compute(self, call: Call, *, weights: Weights = "elementwise") -> Computed:
        last = last_gradient(self._tower, call)
        if last.row is None:
            maps = self._general(last, weights)
        elif weights == "elementwise":
            maps = mha.weighted_rows(last.row, last.attention[None])[0]
        else:
            patches = last.row[..., last.run.record.span]
            pooled = patches.mean(-1, keepdim=True)  # (K', B, H, 1)
            maps = (pooled * last.attention).mean(2).clamp(min=0)
        return last.run.computed(maps)

    def _general(self, last: LastGradient, weights: Weights) -> Tensor:
        """Compute the maps from whole matrices, for a gradient that has more than the CLS row."""
        attention, prefix = last.read.matrix(), self._tower.prefix  # (B, H, s, s)
        maps = []
        for start, gradient in last.matrices(self._tower):
            if weights == "elementwise":
                maps.append(mha.read_row(start, mha.weighted(gradient, attention, dim=1)))
            else:
                row = (start.to(gradient)[:, None, :, None] * gradient).sum(2)  # (B, H, s)
                pooled = row[..., prefix:].mean(-1)[..., None, None]  # (B, H, 1, 1)
                maps.append(mha.read_row(start, (pooled * attention).mean(1)).clamp(min=0))
        return torch.stack(maps)


@final
class AttentionRollout(ViTAttribution):
    r"""Attention rollout: attention chained over all layers (Abnar and Zuidema).

    .. math:: v \leftarrow v \cdot \mathrm{rownorm}(E_h[A_l] + I) \quad (l = n \ldots 1), \quad
              v_0 = e_{CLS}

    and the map is v without the CLS column. Towers with mean pooling start from the mean of the
    patches' rows, those with a pooling head from its attention, around which no residual runs.

    It does not depend on the target: `target` may be left out, and ``attribute_targets`` repeats
    the map K times, so that tables of methods stay rectangular.

    Option, keyword-only: ``start_layer``, the first layer that takes part, 0-based;
    a pooling head counts as one more layer.

    Source: Abnar and Zuidema 2020 (arXiv:2005.00928).
    """

    name = "rollout"
    differentiable = True
    towers = ("vit", "text")
    needs_target = False

    @override
    def _compute(self, call: Call, *, start_layer: int = 0) -> Computed:
        layers, tower = self._layers(start_layer), self._tower

        def visit(index: int, read: AttentionRead) -> Tensor:
            if index == layers[-1] and tower.pooling != "mean":
                return read.row.mean(1, keepdim=True)  # (B, 1, s)
            return read.matrix().mean(1)  # (B, s, s)

        run = without_gradient(tower, call, (layers, visit))
        means = run.record.visited
        if tower.pooling == "attention":  # no residual runs around the pool
            row, layers = means[layers[-1]][:, 0], layers[:-1]
        else:
            like = means[layers[-1]][:, 0]
            row = mha.initial_row(tower.pooling, like, tower.prefix, run.record.pooled)
        for index in reversed(layers):
            mean = means[index]  # (B, s, s), or the one row that is read
            if mean.shape[1] == 1:
                row = (row + mean[:, 0]) / (1 + mean.sum(-1))
            else:
                # row-normalizing the matrix would copy it; its sums do
                row = row / (1 + mean.sum(-1))
                row = row + mha.read_row(row, mean)
        return run.computed(row.expand(len(run.columns), -1, -1))


@final
class AllGradAttention(ViTAttribution):
    r"""Every layer's gradient times its attention, chained (equation 5; Chefer et al.).

    .. math:: \bar A_l = E_h[(\nabla A_l \odot A_l)^+], \quad
              R \leftarrow R + \bar A_l R \quad (l = 1 \ldots n, \; R_0 = I)

    and the map is row CLS of R - I without the CLS column. That row is computed from the top down,
    :math:`v \leftarrow v + v \bar A_l` for l = n ... 1 from :math:`v = e_{CLS}`: a vector times a
    matrix, never a product of matrices. With mean pooling the last gradient leaves row CLS empty.
    Then the map is the mean of the patches' rows of R - I, since I would add 1 / N to each of the
    N cells whatever the target. In a tower with a pooling head v starts from the head's own
    :math:`E_h[(\nabla a \odot a)^+]` (Chefer's rule for cross-attention).

    It needs the gradient of every layer, so each target costs a backward; the forward is shared.
    The map is non-negative; the negative map is the map of ``-target``.

    Option, keyword-only: ``start_layer``, the first layer that takes part, 0-based;
    a pooling head counts as one more layer.

    Source: Chefer et al. 2021 (arXiv:2103.15679), equations 5 and 6 there.
    """

    name = "all-grad"
    differentiable = True
    towers = ("vit", "text")

    @override
    def _compute(self, call: Call, *, start_layer: int = 0) -> Computed:
        tower, layers = self._tower, self._layers(start_layer)
        recorded = all_gradients(tower, call, start_layer)
        record, count = recorded.run.record, len(recorded.run.columns)
        attention, pooled = kept_attention(record, count), record.pooled
        maps = []
        for gradients in recorded.run.gradients(*recorded.points):
            last = recorded.last_row(gradients[-1])
            if last is None:
                eye, below = mha.start_row(gradients[-1], tower, pooled), layers
                gained = torch.zeros_like(eye)
            else:
                gained, below = mha.weighted(*last, dim=1), layers[:-1]  # (B, s)
                # no residual runs around a pooling head
                cls = tower.pooling == "cls"
                eye = pooled.row_of(gained) if cls else torch.zeros_like(gained)
            steps = (
                mha.weighted(recorded.layer_gradient(index, gradient), attention(index), dim=1)
                for index, gradient in reversed(list(zip(below, gradients, strict=False)))
            )
            maps.append(mha.propagated(eye, gained, steps))
        return recorded.run.computed(torch.stack(maps))


Heads = Literal["paired", "averaged"]


@final
class LastGradAttention(ViTAttribution):
    r"""Last-layer gradient times every layer's attention, chained (equation 6; Mamooler).

    .. math:: \bar A_l = E_h[(\nabla A_n \odot A_l)^+], \quad
              R \leftarrow R + \bar A_l R \quad (l = 1 \ldots n, \; R_0 = I)

    and the map is row CLS of R - I without the CLS column. In a CLS-pooled tower the gradient has
    one non-zero row, so only that row of R changes. With :math:`a_l` for row CLS of
    :math:`\bar A_l`, the patches get a weighted sum of the layers' CLS attention:

    .. math:: r_l = (1 + a_l[CLS]) \, r_{l-1} + a_l[patches], \quad r_0 = 0.

    With mean pooling the gradient is not confined to row CLS, and the general form is computed. If
    row CLS has no gradient, the map is the mean of the patches' rows of R - I.

    The query of a pooling head (SigLIP, PE-Core) has no row in the layers below, so equation 6 read
    strictly ends there, as :class:`AttentionGradCam`. The form computed instead is ours:
    :math:`v = E_h[(\nabla a \odot a)^+]` on the head's attention a, then
    :math:`v \leftarrow v + v \bar A_l` from the top down, with the gradient of the last
    *self*-attention as :math:`\nabla A_n`.

    The map is non-negative; the negative map is the map of ``-target``.

    Options, keyword-only:

    - ``heads``: "paired" multiplies head h of the last gradient with head h of every layer, as the
      equation says. The heads of different layers do not correspond, though. "averaged" takes
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
    differentiable = True
    towers = ("vit", "text")

    @override
    def _compute(self, call: Call, *, heads: Heads = "paired", start_layer: int = 0) -> Computed:
        layers, pooling = self._layers(start_layer), self._tower.pooling
        if pooling == "attention" and len(layers) > 1:
            return self._below_pooling_head(call, layers, heads)

        def visit(index: int, read: AttentionRead) -> Tensor:
            return _combined(read.row, heads, dim=1)

        if pooling == "mean":  # the rows alone will not do
            last = last_gradient(self._tower, call, keep=layers)
        else:
            last = last_gradient(self._tower, call, (layers[:-1], visit))
        if last.row is None:
            return self._general(call, last, layers, heads)
        top = _combined(last.attention, heads, dim=1)
        below = [last.run.record.visited[index] for index in layers[:-1]]
        # the gradient has one row, so R changes in that row alone
        rows = torch.stack([*below, top])  # (L, B, H, s)
        gradient = _combined(last.row, heads, dim=2)  # (K', B, H, s)
        maps = torch.zeros_like(gradient[:, :, 0])
        for step in mha.weighted_rows(gradient, rows):
            of_cls = last.run.record.pooled.read(step[..., None])  # (K', B, 1)
            maps = (1 + of_cls) * maps + step  # (K', B, s)
        return last.run.computed(maps)

    def _general(self, call: Call, last: LastGradient, layers: range, heads: Heads) -> Computed:
        """Equation 6 with whole matrices, for a gradient that has more than the CLS row."""
        run, record = last.run, last.run.record
        if self._tower.pooling != "mean":
            # the score turned out to read more tokens, and the rows that were kept will not do
            record = once_more(self._tower, call, run, layers)
        attention = kept_attention(record, len(run.columns), averaged=heads == "averaged")
        maps = [
            _propagated(
                eye, torch.zeros_like(eye), _combined(gradient, heads, dim=1), attention, layers
            )
            for eye, gradient in last.matrices(self._tower)
        ]
        return run.computed(torch.stack(maps))

    def _below_pooling_head(self, call: Call, layers: range, heads: Heads) -> Computed:
        """The pool's own row, and below it equation 6 with the last self-attention's gradient."""
        recorded = all_gradients(self._tower, call, layers[-2], first=layers[0])
        record, count = recorded.run.record, len(recorded.run.columns)
        attention = kept_attention(record, count, averaged=heads == "averaged")
        maps = []
        for gradients in recorded.run.gradients(*recorded.points):
            last = recorded.last_row(gradients[-1])
            assert last is not None
            start = mha.weighted(*(_combined(each, heads, dim=1) for each in last), dim=1)  # (B, s)
            gradient = _combined(recorded.layer_gradient(layers[-2], gradients[0]), heads, dim=1)
            eye = torch.zeros_like(start)  # no residual runs around the pool
            maps.append(_propagated(eye, start, gradient, attention, layers[:-1]))
        return recorded.run.computed(torch.stack(maps))


def _propagated(
    eye: Tensor, gained: Tensor, gradient: Tensor, attention: Callable[[int], Tensor], layers: range
) -> Tensor:
    """One target's map (B, s) from the rows to begin with and the last gradient (B, H, s, s)."""
    matrices = (mha.weighted(gradient, attention(index), dim=1) for index in reversed(layers))
    return mha.propagated(eye, gained, matrices)


def _combined(tensor: Tensor, heads: Heads, *, dim: int) -> Tensor:
    """All heads, or their mean in their place."""
    return tensor.mean(dim, keepdim=True) if heads == "averaged" else tensor


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
    signed = differentiable = True  # signed where it is of the gradient
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
        expected = f"index of a layer, 0 ... {count - 1}, or -{count} ... -1 from the end"
        expect(is_integer(index) and -count <= index < count, expected, index)
        compute = self._of_gradient if of == "gradient" else self._of_attention
        return compute(call, index % count, rows)

    def _of_attention(self, call: Call, index: int, rows: Rows) -> Computed:
        tower = self._tower

        def visit(_: int, read: AttentionRead) -> Tensor:  # (B, s)
            if read.attention.is_pool or (rows == "cls" and tower.pooling == "cls"):
                return read.row.mean(1)
            matrix = read.matrix().mean(1)
            if rows == "sum":
                return matrix.sum(1)
            mean = mha.initial_row(tower.pooling, matrix[:, 0], tower.prefix, read.pooled)
            return mha.read_row(mean, matrix)

        run = without_gradient(tower, call, (range(index, index + 1), visit))
        return run.computed(run.record.visited[index].expand(len(run.columns), -1, -1))

    def _of_gradient(self, call: Call, index: int, rows: Rows) -> Computed:
        tower, is_last = self._tower, index == len(self._tower.attentions) - 1
        if is_last:
            last = last_gradient(tower, call)
            if last.output is None:  # the only row, so also the sum
                assert last.row is not None
                return last.run.computed(last.row.mean(2))
            run, output = last.run, last.output  # (K', B, H, s, d)
        else:
            recorded = all_gradients(tower, call, index)
            run = recorded.run
            output = run.stacked_gradients(recorded.points[0])
        read, pooled = run.record.reads[index], run.record.pooled
        like = output[0, :, 0, :, 0]  # (B, s)
        if rows == "sum":
            weights = torch.ones_like(like)
        elif is_last:
            weights = torch.stack([mha.start_row(g, tower, pooled) for g in output])
        else:
            weights = mha.initial_row(tower.pooling, like, tower.prefix, pooled)
        chosen = (weights[..., None, :, None] * output).sum(3)  # (K', B, H, d)
        return run.computed(mha.row_gradient(read, chosen).mean(2))
