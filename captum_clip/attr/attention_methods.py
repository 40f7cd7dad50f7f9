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

    with ``weights="elementwise"``, and with ``weights="pooled"``

    .. math:: L = \bigl(E_h[g_h \, A_{n,h}]\bigr)^+[CLS, patches], \quad
              g_h = \text{mean of } \nabla A_{n,h}[CLS, patches]

    Where the gradient leaves row CLS empty, as with mean pooling, the mean of the patches' rows
    takes its place. In a tower with a pooling head (SigLIP, PE-Core) the last attention is the
    head's, which has one row, that of its query. The map is the last term of
    :class:`LastGradAttention`.

    Args:
        forward_func: the scores, as for :class:`ViTAttribution`; a `TextSimilarity` as well.
        layer: the model, with a forward function of your own.

    Keyword Args:
        weights (str): "elementwise", the default, multiplies each entry of the attention with its
            gradient, as Mamooler's code does. "pooled" is the form of Chefer et al., to which
            Mamooler's text refers. There the gradient is one number per head, and the ReLU comes
            after the mean over heads.

    Returns:
        `attribute` returns maps (B, 1, h, w), and `attribute_targets` maps (B, K, h, w). The maps
        of a text are (B, 1, T) and (B, K, T). They are non-negative; the negative map is the
        map of ``-target``.

    Raises:
        UnsupportedModelError: the tower is convolutional, or its last attention shows neither its
            weights nor queries and keys; or the gradient has more than row CLS, and the tower
            checkpoints its activations.
        CaptureError: no gradient leads from the scores back to the tower.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391); Chefer et al. 2021 (arXiv:2103.15679).

    Example:
        >>> from captum_clip import AttentionGradCam, ClipSimilarity, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> AttentionGradCam(forward).attribute(images, target=0).shape
        torch.Size([1, 1, 7, 7])
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
            in_map = last.row[..., last.run.record.span]
            head_weights = in_map.mean(-1, keepdim=True)  # (K', B, H, 1)
            maps = (head_weights * last.read.row()).mean(2).clamp(min=0)
        return last.run.computed(maps)

    def _general(self, last: LastGradient, weights: Weights) -> Tensor:
        """Compute the maps from whole matrices, for a gradient that has more than the CLS row."""
        attention = last.read.matrix()  # (B, H, s, s)
        maps = []
        for start, gradient in last.matrices(self._tower):
            if weights == "elementwise":
                matrix = mha.weighted(gradient, attention, dim=-3)  # (k, B, s, s)
                maps.append(mha.read_row(start, matrix))
            else:
                row_weights = start.to(gradient)[:, :, None, :, None]
                gradient_row = (row_weights * gradient).sum(3)  # (k, B, H, s)
                head_weights = gradient_row[..., self._tower.prefix :].mean(-1)
                matrix = (head_weights[..., None, None] * attention).mean(2)
                maps.append(mha.read_row(start, matrix).clamp(min=0))
        return torch.cat(maps)


@final
class AttentionRollout(ViTAttribution):
    r"""Attention rollout: attention chained over all layers (Abnar and Zuidema).

    .. math:: v \leftarrow v \cdot \mathrm{rownorm}(E_h[A_l] + I) \quad (l = n \ldots 1), \quad
              v_0 = e_{CLS}

    and the map is v without the CLS column. Towers with mean pooling start from the mean of the
    patches' rows, and those with a pooling head from its attention, around which no residual runs.
    A forward function of your own may read patches and not CLS, as its gradient at the last block
    shows. Then a tower with CLS pooling starts from the mean of the patches' rows as well.

    The map does not depend on the target otherwise, so `target` may be left out.

    Args:
        forward_func: the scores, as for :class:`ViTAttribution`; a `TextSimilarity` as well.
        layer: the model, with a forward function of your own.

    Keyword Args:
        start_layer (int): first layer that takes part, 0-based, 0 by default. A pooling head counts
            as one more layer.

    Returns:
        `attribute` returns maps (B, 1, h, w). `attribute_targets` repeats them K times,
        (B, K, h, w), so that tables of methods stay rectangular. The maps of a text are (B, 1, T)
        and (B, K, T).

    Raises:
        InputError: `start_layer` is no layer of the tower.
        UnsupportedModelError: the tower is convolutional, or an attention shows neither its weights
            nor queries and keys.

    Source: Abnar and Zuidema 2020 (arXiv:2005.00928).

    Example:
        >>> from captum_clip import AttentionRollout, ClipSimilarity, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> AttentionRollout(forward).attribute(images).shape
        torch.Size([1, 1, 7, 7])
    """

    name = "rollout"
    differentiable = True
    towers = ("vit", "text")
    needs_target = False

    def _compute(self, call: Call, *, start_layer: int = 0) -> Computed:
        tower = self._tower
        layers = self._layers(start_layer)
        last_block = len(tower.layers) - 1
        # A forward function of the user's may read patches in a tower that pools CLS.
        may_read_patches = tower.pooling == "cls" and not isinstance(call.forward, Similarity)
        starts_from_row = tower.pooling != "mean" and not may_read_patches

        def take(index: int, read: AttentionRead) -> Tensor:
            if index == layers[-1] and starts_from_row:
                return read.row().mean(1, keepdim=True)  # (B, 1, s)
            return read.matrix().mean(1)  # (B, s, s)

        kernels = Kernels(layers, take)
        if may_read_patches:
            # The gradient is wanted at the last block's tokens, so the graph begins behind it.
            run = observed(tower, call, kernels, Outputs([last_block], starts=True))
        else:
            run = without_gradient(tower, call, kernels)
        record = run.record
        first_row = record.reads[layers[-1]][:, 0]
        chained = layers
        if tower.pooling == "attention":
            # No residual runs around the pool, so its attention alone is the row to start from.
            row = first_row
            chained = layers[:-1]
        elif may_read_patches and run.scores.requires_grad:
            gradient = run.stacked_gradients(record.outputs[last_block])  # (K', B, s, D)
            row = mha.start_row(gradient[:, :, None], tower, record.pooled)  # (K', B, s)
        else:
            row = mha.initial_row(tower.pooling, first_row, tower.prefix, record.pooled)
        for index in reversed(chained):
            mean = record.reads[index]  # (B, s, s), or (B, 1, s) where one row is read
            row_sums = 1 + mean.sum(-1)
            if mean.shape[1] == 1:
                row = (row + mean[:, 0]) / row_sums
            else:
                # The normalized rows of the matrix would be a copy of it, so v is divided instead.
                row = row / row_sums
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

    Over several layers the map depends on the scale of the score, since gradients are multiplied.
    The authors' notebook explains logits, a hundred times the cosine: for its maps pass
    ``lambda images: 100 * forward(images)`` with ``layer=model``.

    Args:
        forward_func: the scores, as for :class:`ViTAttribution`; a `TextSimilarity` as well.
        layer: the model, with a forward function of your own.

    Keyword Args:
        start_layer (int): first layer that takes part, 0-based, 0 by default. A pooling head counts
            as one more layer.

    Returns:
        `attribute` returns maps (B, 1, h, w), and `attribute_targets` maps (B, K, h, w). The maps
        of a text are (B, 1, T) and (B, K, T). They are non-negative; the negative map is the
        map of ``-target``.

    Raises:
        InputError: `start_layer` is no layer of the tower.
        UnsupportedModelError: the tower is convolutional or checkpoints its activations, or an
            attention shows neither its weights nor queries and keys.
        CaptureError: no gradient leads from the scores back to the tower.

    Source: Chefer et al. 2021 (arXiv:2103.15679), equations 5 and 6 there.

    Example:
        >>> from captum_clip import AllGradAttention, ClipSimilarity, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> AllGradAttention(forward).attribute_targets(images).shape
        torch.Size([1, 2, 7, 7])
    """

    name = "all-grad"
    differentiable = True
    towers = ("vit", "text")

    def _compute(self, call: Call, *, start_layer: int = 0) -> Computed:
        tower = self._tower
        layers = self._layers(start_layer)
        recorded = all_gradients(tower, call, start_layer)
        record = recorded.run.record
        attention = recorded.attention()
        has_pool = tower.pooling == "attention"

        def layer_matrix(index: int, gradient: Tensor) -> Tensor:  # (k, B, s, s)
            attention_gradient = mha.matrix_gradient(record.reads[index], gradient)
            return mha.weighted(attention_gradient, attention(index), dim=-3)

        maps = []
        for gradients in recorded.gradients():
            by_layer = dict(zip(layers, gradients, strict=True))
            if has_pool:
                pool_gradient, pool_attention = recorded.pool_row(by_layer.pop(layers[-1]))
                start = mha.weighted(pool_gradient, pool_attention, dim=-2)  # (k, B, s)
            else:
                start = mha.start_row(gradients[-1], tower, record.pooled)
            matrices = (
                layer_matrix(index, gradient) for index, gradient in reversed(by_layer.items())
            )
            # No residual runs around a pool.
            maps.append(mha.propagated(start, matrices, residual=not has_pool))
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

    Args:
        forward_func: the scores, as for :class:`ViTAttribution`; a `TextSimilarity` as well.
        layer: the model, with a forward function of your own.

    Keyword Args:
        heads (str): "paired", the default, multiplies head h of the last gradient with head h of
            every layer, as the equation says. The heads of different layers do not correspond,
            though. "averaged" takes :math:`E_h[\nabla A_n]^+ \odot E_h[A_l]`, which renumbering
            the heads does not change.
        start_layer (int): first layer that takes part, 0-based, 0 by default. A pooling head counts
            as one more layer.

    Returns:
        `attribute` returns maps (B, 1, h, w), and `attribute_targets` maps (B, K, h, w). The maps
        of a text are (B, 1, T) and (B, K, T). They are non-negative; the negative map is the
        map of ``-target``.

    Raises:
        InputError: `start_layer` is no layer of the tower.
        UnsupportedModelError: the tower is convolutional, or an attention shows neither its weights
            nor queries and keys; or `heads` is "paired", and the layers have different numbers of
            heads. It is also raised if the gradient has more than row CLS, and the tower
            checkpoints its activations.
        CaptureError: no gradient leads from the scores back to the tower.

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
        layers = self._layers(start_layer)
        pooling = self._tower.pooling
        if pooling == "attention" and len(layers) > 1:
            return self._below_pooling_head(call, layers, heads)

        def take(_: int, read: AttentionRead) -> Tensor:  # (B, H or 1, s)
            return _combined(read.row(), heads, dim=1)

        # With mean pooling the gradient has many rows, so whole matrices are needed.
        kernels = Kernels(layers[:-1], keep if pooling == "mean" else take)
        last = last_gradient(self._tower, call, kernels)
        if last.row is None:
            return self._general(call, last, layers, heads)
        # The gradient has one row, so R changes in that row alone.
        record = last.run.record
        rows = [record.reads[index] for index in layers[:-1]]
        rows.append(take(layers[-1], last.read))
        mha.check_heads([row.shape[1] for row in rows])
        gradient = _combined(last.row, heads, dim=2)  # (K', B, H, s)
        steps = mha.weighted_rows(gradient, torch.stack(rows))  # (L, K', B, s)
        growth = 1 + record.pooled.read(steps[..., None])  # (L, K', B, 1)
        # What a layer gives to the row grows in all layers above it.
        growth_above = growth.flip(0).cumprod(0).flip(0)[1:]  # (L - 1, K', B, 1)
        from_below = (growth_above * steps[:-1]).sum(0)
        return last.run.computed(steps[-1] + from_below)

    def _general(self, call: Call, last: LastGradient, layers: range, heads: Pairing) -> Computed:
        """Equation 6 with whole matrices, for a gradient that has more than the CLS row."""
        run = last.run
        record = run.record
        if self._tower.pooling != "mean":
            # Only the gradient showed that the rows which were kept are not enough.
            again = without_gradient(self._tower, call, Kernels(layers))
            again.record.compare("a second forward", again.scores, run.scores)
            # The result has the record of the first forward, which is verified after this.
            verify(again.record, call.method)
            record = again.record
        is_reused = len(run.columns) > 1
        attention = kept_attention(record, is_reused, averaged=heads == "averaged")
        maps = []
        for start, gradient in last.matrices(self._tower):
            gradient = _combined(gradient, heads, dim=-3)
            matrices = _layer_matrices(gradient, attention, layers)
            maps.append(mha.propagated(start, matrices, residual=True))
        return run.computed(torch.cat(maps))

    def _below_pooling_head(self, call: Call, layers: range, heads: Pairing) -> Computed:
        """Chain from the pool's own row down, with the last self-attention's gradient."""
        self_attentions = layers[:-1]
        last = self_attentions[-1]
        recorded = all_gradients(self._tower, call, last, first=layers[0])
        last_read = recorded.run.record.reads[last]
        attention = recorded.attention(averaged=heads == "averaged")
        maps = []
        for gradients in recorded.gradients():
            pool_gradient, pool_attention = recorded.pool_row(gradients[-1])
            pool_gradient = _combined(pool_gradient, heads, dim=-2)
            pool_attention = _combined(pool_attention, heads, dim=-2)
            start = mha.weighted(pool_gradient, pool_attention, dim=-2)  # (k, B, s)
            gradient = mha.matrix_gradient(last_read, gradients[0])  # (k, B, H, s, s)
            gradient = _combined(gradient, heads, dim=-3)
            matrices = _layer_matrices(gradient, attention, self_attentions)
            # No residual runs around the pool.
            maps.append(mha.propagated(start, matrices, residual=False))
        return recorded.run.computed(torch.cat(maps))


def _layer_matrices(
    gradient: Tensor, attention: Callable[[int], Tensor], layers: range
) -> Iterator[Tensor]:
    """Weight the layers' attentions by one gradient, from the last down: matrices (k, B, s, s)."""
    for index in reversed(layers):
        yield mha.weighted(gradient, attention(index), dim=-3)


def _combined(tensor: Tensor, heads: Pairing, *, dim: int) -> Tensor:
    """Keep the heads at `dim` if they are "paired", else take their mean."""
    if heads == "paired":
        return tensor
    return tensor.mean(dim, keepdim=True)


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
    no gradient, as with mean pooling, its row and query are the means of those of the patches.

    Args:
        forward_func: the scores, as for :class:`ViTAttribution`; a `TextSimilarity` as well.
        layer: the model, with a forward function of your own.

    Returns:
        `attribute` returns maps (B, 1, h, w), and `attribute_targets` maps (B, K, h, w). The maps
        of a text are (B, 1, T) and (B, K, T). They are non-negative; the negative map is the
        map of ``-target``.

    Raises:
        UnsupportedModelError: the tower is convolutional, or its last attention shows no queries
            and keys; or the gradient has more than row CLS, and the tower checkpoints its
            activations.
        CaptureError: no gradient leads from the scores back to the tower.

    Source: Zhao et al., ICML 2024 (Gradient-based Visual Explanation for Transformer-based CLIP).

    Example:
        >>> from captum_clip import ClipSimilarity, GradEclip, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> GradEclip(forward).attribute(images, target=0).shape
        torch.Size([1, 1, 7, 7])
    """

    name = "grad-eclip"
    differentiable = True
    towers = ("vit", "text")

    def _compute(self, call: Call) -> Computed:
        last = last_gradient(self._tower, call)
        read = last.read
        if last.row is not None:
            positive = last.row.sum(2).clamp(min=0)  # (K', B, s)
            return last.run.computed(positive * self._spread(read, None))
        assert last.output is not None
        start = mha.start_row(last.output, self._tower, read.pooled)  # (K', B, s)
        # The map is linear in the gradient up to the ReLU, so the rows are summed first.
        gradient = torch.einsum("kbs,kbhsd->kbhd", start.to(last.output), last.output)
        positive = mha.row_gradient(read, gradient).sum(2).clamp(min=0)
        spread = torch.stack([self._spread(read, row) for row in start])
        return last.run.computed(positive * spread)

    @no_graph()
    def _spread(self, read: AttentionRead, start: Tensor | None) -> Tensor:
        """Compute the cosine between keys and the pooled query, min-max over patches, (B, s).

        The query is that of CLS or the pooling head, or of a row `start` (B, s) of tokens.
        """
        if read.query is None or read.key is None:
            raise UnsupportedModelError(
                f"grad-eclip: {read.name} shows no queries and keys; use another method."
            )
        query = to_float32(read.query)
        keys = to_float32(read.key).transpose(1, 2).flatten(2)  # (B, s, D)
        with autocast_disabled(keys):
            if start is None:
                pooled_query = read.select(query).flatten(1)  # (B, D)
            else:
                queries = query.transpose(1, 2).flatten(2)
                pooled_query = mha.read_row(start, queries)
            cosine = F.cosine_similarity(pooled_query[:, None], keys, dim=-1)
        hidden = read.pooled.hidden()
        if hidden is None:
            hidden = torch.zeros_like(cosine, dtype=torch.bool)
        in_span = cosine[:, read.span]
        hidden_in_span = hidden[:, read.span]
        # Padding has keys as well, whose cosines would stretch the range.
        low = in_span.masked_fill(hidden_in_span, torch.inf).amin(1, keepdim=True)
        high = in_span.masked_fill(hidden_in_span, -torch.inf).amax(1, keepdim=True)
        # If all cosines are equal, the extent is zero, and so is the map.
        smallest = torch.finfo(cosine.dtype).tiny
        extent = (high - low).clamp(min=smallest)
        return ((cosine - low) / extent).masked_fill(hidden, 0)


Of = Literal["attention", "gradient"]
LayerRows = Literal["cls", "sum"]


@final
class LayerAttention(ViTAttribution):
    r"""The attention of one layer, or the score's gradient with respect to it, heads averaged.

    .. math:: E_h[A_l] \quad \text{or} \quad E_h[\nabla A_l]

    The map is row CLS, or the sum of all rows, without the CLS column. This is the layer-wise view
    of Mamooler's Figures 2 and 3.

    Args:
        forward_func: the scores, as for :class:`ViTAttribution`.
        layer: the model, with a forward function of your own.

    Keyword Args:
        index (int): the layer, 0-based. A negative index counts from the end, and the default, -1,
            is the last layer. A pooling head is one more layer, whose attention has one row, that
            of its query.
        of (str): "attention", the default, which no target changes, so `target` may be left out;
            or "gradient", which keeps its sign.
        rows (str): "cls", the default, shows row CLS, and "sum" the sum of all rows. With mean
            pooling and in the layers below a pooling head, "cls" is the mean of the patches' rows.
            The same holds for the last layer's gradient where a forward function leaves row CLS
            without one.

    Returns:
        `attribute` returns maps (B, 1, h, w), and `attribute_targets` maps (B, K, h, w).

    Raises:
        InputError: `index` is no layer of the tower.
        UnsupportedModelError: the tower is no vision transformer, or the layer's attention shows
            neither its weights nor queries and keys. It is also raised if more than row CLS of the
            last layer needs a gradient, and the tower checkpoints its activations.
        CaptureError: no gradient leads from the scores back to the tower.

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
    signed = True  # if it shows a gradient
    differentiable = True
    listed = False  # It is a view of one layer, not a map to compare.

    @classmethod
    def properties(cls, *, of: Of = "attention", **options: Any) -> dict[str, bool]:
        of_gradient = of == "gradient"
        return {"signed": of_gradient, "needs_target": of_gradient}

    def _compute(
        self, call: Call, *, index: int = -1, of: Of = "attention", rows: LayerRows = "cls"
    ) -> Computed:
        count = len(self._tower.attentions)
        expected = f"index of a layer, 0 ... {count - 1}, or -{count} ... -1 from the end"
        expect(is_integer(index) and -count <= index < count, expected, index)
        if of == "gradient":
            return self._of_gradient(call, index % count, rows)
        return self._of_attention(call, index % count, rows)

    def _of_attention(self, call: Call, index: int, rows: LayerRows) -> Computed:
        tower = self._tower

        def take(_: int, read: AttentionRead) -> Tensor:  # (B, s)
            if read.attention.is_pool or (rows == "cls" and tower.pooling == "cls"):
                return read.row().mean(1)
            matrix = read.matrix().mean(1)  # (B, s, s)
            if rows == "sum":
                return matrix.sum(1)
            mean = mha.initial_row(tower.pooling, matrix[:, 0], tower.prefix, read.pooled)
            return mha.read_row(mean, matrix)

        run = without_gradient(tower, call, Kernels([index], take))
        row = run.record.reads[index]
        return run.computed(row.expand(len(run.columns), -1, -1))

    def _of_gradient(self, call: Call, index: int, rows: LayerRows) -> Computed:
        tower = self._tower
        is_last = index == len(tower.attentions) - 1
        if is_last:
            last = last_gradient(tower, call)
            if last.output is None:
                # All other rows are zero, so this one is their sum as well.
                assert last.row is not None
                return last.run.computed(last.row.mean(2))
            run, gradient = last.run, last.output  # (K', B, H, s, d)
        else:
            recorded = all_gradients(tower, call, index)
            run = recorded.run
            gradient = run.stacked_gradients(recorded.points[0])
        pooled = run.record.pooled
        like = gradient[0, :, 0, :, 0]  # (B, s)
        if rows == "sum":
            weights = torch.ones_like(like)
        elif is_last:
            weights = mha.start_row(gradient, tower, pooled)
        else:
            weights = mha.initial_row(tower.pooling, like, tower.prefix, pooled)
        # d y / d A is linear in the gradient at the outputs, so rows are summed there, once.
        row_sum = (weights[..., None, :, None] * gradient).sum(3)  # (K', B, H, d)
        gradient_row = mha.row_gradient(run.record.reads[index], row_sum)  # (K', B, H, s)
        return run.computed(gradient_row.mean(2))
