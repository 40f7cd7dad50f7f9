"""Methods that read attention and its gradient."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import expect, is_integer
from ..errors import UnsupportedModelError
from ..maps import autocast_disabled, to_float32
from ..recording.graph import no_graph
from ..recording.laws import verify
from ..recording.observe import Kernels, Outputs, keep
from ..recording.reads import AttentionRead
from ..targets.similarity import Similarity
from . import _attention as mha
from ._attention import LastGradient, all_gradients, kept_attention, last_gradient
from ._base import ViTAttribution
from ._call import Call, Computed, observed, without_gradient

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

    def _compute(self, call: Call, *, weights: Weights = "elementwise") -> Computed:
        last = last_gradient(self._tower, call)
        if last.row is None:
            maps = self._general(last, weights)
        elif weights == "elementwise":
            maps = mha.weighted_rows(last.row, last.read.row()[None])[0]
        else:
            pooled = last.row[..., last.run.record.span].mean(-1, keepdim=True)  # (K', B, H, 1)
            maps = (pooled * last.read.row()).mean(2).clamp(min=0)
        return last.run.computed(maps)

    def _general(self, last: LastGradient, weights: Weights) -> Tensor:
        """Compute the maps from whole matrices, for a gradient that has more than the CLS row."""
        attention, prefix = last.read.matrix(), self._tower.prefix  # (B, H, s, s)
        maps = []
        for start, gradient in last.matrices(self._tower):
            if weights == "elementwise":
                maps.append(mha.read_row(start, mha.weighted(gradient, attention, dim=-3)))
            else:
                row = (start.to(gradient)[:, :, None, :, None] * gradient).sum(3)  # (k, B, H, s)
                pooled = row[..., prefix:].mean(-1)[..., None, None]  # (k, B, H, 1, 1)
                maps.append(mha.read_row(start, (pooled * attention).mean(2)).clamp(min=0))
        return torch.cat(maps)


@final
class AttentionRollout(ViTAttribution):
    r"""Attention rollout: attention chained over all layers (Abnar and Zuidema).

    .. math:: v \leftarrow v \cdot \mathrm{rownorm}(E_h[A_l] + I) \quad (l = n \ldots 1), \quad
              v_0 = e_{CLS}

    and the map is v without the CLS column. Towers with mean pooling start from the mean of the
    patches' rows, those with a pooling head from its attention, around which no residual runs.
    So do towers with CLS pooling start from that mean where a score of a forward function of your
    own reads patches and not CLS, as its gradient at the last block shows.

    It does not depend on the target otherwise: `target` may be left out, and ``attribute_targets``
    repeats the map K times, so that tables of methods stay rectangular.

    Option, keyword-only: ``start_layer``, the first layer that takes part, 0-based;
    a pooling head counts as one more layer.

    Source: Abnar and Zuidema 2020 (arXiv:2005.00928).
    """

    name = "rollout"
    differentiable = True
    towers = ("vit", "text")
    needs_target = False

    def _compute(self, call: Call, *, start_layer: int = 0) -> Computed:
        layers, tower = self._layers(start_layer), self._tower
        # a forward function of the user's may read patches in a tower that pools CLS
        is_open = tower.pooling == "cls" and not isinstance(call.forward, Similarity)

        def take(index: int, read: AttentionRead) -> Tensor:
            if index == layers[-1] and tower.pooling != "mean" and not is_open:
                return read.row().mean(1, keepdim=True)  # (B, 1, s)
            return read.matrix().mean(1)  # (B, s, s)

        kernels = Kernels(layers, take)
        if is_open:
            run = observed(tower, call, kernels, Outputs([len(tower.layers) - 1], starts=True))
        else:
            run = without_gradient(tower, call, kernels)
        means = run.record.reads
        if tower.pooling == "attention":  # no residual runs around the pool
            row, layers = means[layers[-1]][:, 0], layers[:-1]
        elif is_open and run.scores.requires_grad:
            tokens = run.stacked_gradients(run.record.outputs[len(tower.layers) - 1])
            row = mha.start_row(tokens[:, :, None], tower, run.record.pooled)  # (K', B, s)
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

    It needs the gradient of every layer, so each target costs a backward, several at once where
    memory allows; the forward is shared.
    The map is non-negative; the negative map is the map of ``-target``.

    Over several layers the map depends on the scale of the score, since gradients are multiplied.
    The authors' notebook explains logits, a hundred times the cosine: for its maps pass
    ``lambda images: 100 * forward(images)`` with ``layer=model``.

    Option, keyword-only: ``start_layer``, the first layer that takes part, 0-based;
    a pooling head counts as one more layer.

    Source: Chefer et al. 2021 (arXiv:2103.15679), equations 5 and 6 there.
    """

    name = "all-grad"
    differentiable = True
    towers = ("vit", "text")

    def _compute(self, call: Call, *, start_layer: int = 0) -> Computed:
        tower, layers = self._tower, self._layers(start_layer)
        recorded = all_gradients(tower, call, start_layer)
        record, attention, maps = recorded.run.record, recorded.attention(), list[Tensor]()
        for *below, top in recorded.gradients():
            if is_pool := tower.pooling == "attention":  # no residual runs around it
                start = mha.weighted(*recorded.pool_row(top), dim=-2)  # (k, B, s)
            else:
                start, below = mha.start_row(top, tower, record.pooled), [*below, top]
            steps = (
                mha.weighted(
                    mha.matrix_gradient(record.reads[index], gradient), attention(index), dim=-3
                )
                for index, gradient in reversed(list(zip(layers, below, strict=False)))
            )
            maps.append(mha.propagated(start, steps, residual=not is_pool))
        return recorded.run.computed(torch.cat(maps))


Pairing = Literal["paired", "averaged"]


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

    def _compute(self, call: Call, *, heads: Pairing = "paired", start_layer: int = 0) -> Computed:
        layers, pooling = self._layers(start_layer), self._tower.pooling
        if pooling == "attention" and len(layers) > 1:
            return self._below_pooling_head(call, layers, heads)

        def take(_: int, read: AttentionRead) -> Tensor:
            return _combined(read.row(), heads, dim=1)

        # of a mean the rows alone will not do
        kernels = Kernels(layers[:-1], keep if pooling == "mean" else take)
        last = last_gradient(self._tower, call, kernels)
        if last.row is None:
            return self._general(call, last, layers, heads)
        top = _combined(last.read.row(), heads, dim=1)
        below = [last.run.record.reads[index] for index in layers[:-1]]
        # the gradient has one row, so R changes in that row alone
        mha.check_heads([row.shape[1] for row in (*below, top)])
        rows = torch.stack([*below, top])  # (L, B, H, s)
        gradient = _combined(last.row, heads, dim=2)  # (K', B, H, s)
        steps = mha.weighted_rows(gradient, rows)  # (L, K', B, s)
        of_cls = 1 + last.run.record.pooled.read(steps[..., None])  # (L, K', B, 1)
        # what a layer gives passes all those above it
        passed = of_cls.flip(0).cumprod(0).flip(0)[1:]
        return last.run.computed(steps[-1] + (passed * steps[:-1]).sum(0))

    def _general(self, call: Call, last: LastGradient, layers: range, heads: Pairing) -> Computed:
        """Equation 6 with whole matrices, for a gradient that has more than the CLS row."""
        run, record = last.run, last.run.record
        if self._tower.pooling != "mean":
            # the score turned out to read more tokens, and the rows that were kept will not do
            again = without_gradient(self._tower, call, Kernels(layers))
            again.record.compare("a second forward", again.scores, run.scores)
            verify(again.record, call.method)
            record = again.record
        attention = kept_attention(record, len(run.columns) > 1, averaged=heads == "averaged")
        maps = []
        for start, gradient in last.matrices(self._tower):
            steps = _steps(_combined(gradient, heads, dim=-3), attention, layers)
            maps.append(mha.propagated(start, steps, residual=True))
        return run.computed(torch.cat(maps))

    def _below_pooling_head(self, call: Call, layers: range, heads: Pairing) -> Computed:
        """The pool's own row, and below it equation 6 with the last self-attention's gradient."""
        recorded = all_gradients(self._tower, call, layers[-2], first=layers[0])
        attention = recorded.attention(averaged=heads == "averaged")
        maps = []
        for below, *_, top in recorded.gradients():
            pool = [_combined(each, heads, dim=-2) for each in recorded.pool_row(top)]
            gradient = mha.matrix_gradient(recorded.run.record.reads[layers[-2]], below)
            steps = _steps(_combined(gradient, heads, dim=-3), attention, layers[:-1])
            # no residual runs around the pool
            maps.append(mha.propagated(mha.weighted(*pool, dim=-2), steps, residual=False))
        return recorded.run.computed(torch.cat(maps))


def _steps(gradient: Tensor, attention: Callable[[int], Tensor], layers: range) -> Iterator[Tensor]:
    """The matrices (k, B, s, s) of layers, from the last one down, with one gradient for all."""
    return (mha.weighted(gradient, attention(index), dim=-3) for index in reversed(layers))


def _combined(tensor: Tensor, heads: Pairing, *, dim: int) -> Tensor:
    """All heads, or their mean in their place."""
    return tensor.mean(dim, keepdim=True) if heads == "averaged" else tensor


@final
class GradEclip(ViTAttribution):
    r"""Last-layer values weighted by their gradient, spread by the keys (Zhao et al.).

    .. math:: L_p = \Bigl(\sum_h \frac{\partial y}{\partial A_{n,h}[CLS, p]}\Bigr)^+ \lambda_p,
              \quad \lambda = \text{min-max over patches of } \cos(q_{CLS}, k_p)

    where :math:`\partial y / \partial A_{n,h}[CLS, p]` is the gradient at head h's output times
    the value :math:`v_{hp}`, and q and k are a token's concatenated queries and keys of all heads,
    as they enter the attention. The min-max weights take the softmax's place, which is too sparse
    for a map.

    The authors' code runs the last block again with one head of full width, so that it explains
    another score than the model's; here the model's own heads and its own score stand. For texts,
    their notebook adds up eight layers and takes its range over all 77 tokens; here it is the last
    layer, and the tokens of the text.

    In a tower with a pooling head (SigLIP, PE-Core) its query replaces that of CLS. Where CLS has
    no gradient, as with mean pooling, the mean of the patches' rows and of their queries stands for
    it. The map is non-negative; the negative map is the map of ``-target``.

    Source: Zhao et al., ICML 2024 (Gradient-based Visual Explanation for Transformer-based CLIP).
    """

    name = "grad-eclip"
    differentiable = True
    towers = ("vit", "text")

    def _compute(self, call: Call) -> Computed:
        tower = self._tower
        last = last_gradient(tower, call)
        read = last.read
        if last.row is not None:
            return last.run.computed(last.row.sum(2).clamp(min=0) * self._spread(read, None))
        assert last.output is not None
        start = mha.start_row(last.output, tower, read.pooled)  # (K', B, s)
        gradient = torch.einsum("kbs,kbhsd->kbhd", start.to(last.output), last.output)
        rows = mha.row_gradient(read, gradient).sum(2).clamp(min=0)
        return last.run.computed(rows * torch.stack([self._spread(read, each) for each in start]))

    @no_graph()
    def _spread(self, read: AttentionRead, start: Tensor | None) -> Tensor:
        """Min-max over the patches of the cosine between keys and the pooled query, (B, s).

        The query is that of CLS or the pooling head, or of a row `start` (B, s) of tokens.
        """
        if read.query is None or read.key is None:
            raise UnsupportedModelError(
                f"grad-eclip: {read.name} shows no queries and keys; use another method."
            )
        query, key = to_float32(read.query), to_float32(read.key)
        with autocast_disabled(key):
            if start is None:
                row = read.select(query).flatten(1)  # (B, D)
            else:
                row = mha.read_row(start, query.transpose(1, 2).flatten(2))
            cosine = F.cosine_similarity(row[:, None], key.transpose(1, 2).flatten(2), dim=-1)
        span = read.span
        hidden = read.pooled.hidden()
        hidden = torch.zeros_like(cosine, dtype=torch.bool) if hidden is None else hidden
        # padding has keys as well, whose cosines would stretch the range
        low = cosine.masked_fill(hidden, torch.inf)[:, span].amin(1, keepdim=True)
        high = cosine.masked_fill(hidden, -torch.inf)[:, span].amax(1, keepdim=True)
        extent = (high - low).clamp(min=torch.finfo(cosine.dtype).tiny)
        return ((cosine - low) / extent).masked_fill(hidden, 0)


Of = Literal["attention", "gradient"]
LayerRows = Literal["cls", "sum"]


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
    def properties(cls, *, of: Of = "attention", **options: Any) -> dict[str, bool]:
        return dict.fromkeys(("signed", "needs_target"), of == "gradient")

    def _compute(
        self, call: Call, *, index: int = -1, of: Of = "attention", rows: LayerRows = "cls"
    ) -> Computed:
        count = len(self._tower.attentions)
        expected = f"index of a layer, 0 ... {count - 1}, or -{count} ... -1 from the end"
        expect(is_integer(index) and -count <= index < count, expected, index)
        compute = self._of_gradient if of == "gradient" else self._of_attention
        return compute(call, index % count, rows)

    def _of_attention(self, call: Call, index: int, rows: LayerRows) -> Computed:
        tower = self._tower

        def take(_: int, read: AttentionRead) -> Tensor:  # (B, s)
            if read.attention.is_pool or (rows == "cls" and tower.pooling == "cls"):
                return read.row().mean(1)
            matrix = read.matrix().mean(1)
            if rows == "sum":
                return matrix.sum(1)
            mean = mha.initial_row(tower.pooling, matrix[:, 0], tower.prefix, read.pooled)
            return mha.read_row(mean, matrix)

        run = without_gradient(tower, call, Kernels([index], take))
        return run.computed(run.record.reads[index].expand(len(run.columns), -1, -1))

    def _of_gradient(self, call: Call, index: int, rows: LayerRows) -> Computed:
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
            weights = mha.start_row(output, tower, pooled)
        else:
            weights = mha.initial_row(tower.pooling, like, tower.prefix, pooled)
        chosen = (weights[..., None, :, None] * output).sum(3)  # (K', B, H, d)
        return run.computed(mha.row_gradient(read, chosen).mean(2))
