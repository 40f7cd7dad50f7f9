"""Methods that read the last layers alone: LeGrad, Grad-ECLIP and patch similarity."""

from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn import functional as F
from typing_extensions import override

from ..checks import expect, is_integer
from ..errors import UnsupportedModelError
from ..maps import to_float32
from ..models.attentions import PoolingHead
from ..models.steps import run_steps
from ..recording import LayerRecord, record_vit
from . import _attention as mha
from ._base import ViTAttribution
from ._call import Call, Computed
from ._engine import (
    PooledEmbedding,
    compare_embedding,
    embedded_scores,
    last_gradient,
    pooled_embedding,
    pooled_tokens,
    refuse_checkpointing,
)

_TOGETHER = 8  # targets in one batched backward, which bounds its memory


@final
class LeGrad(ViTAttribution):
    r"""Gradient of each layer's attention, for a score read at that layer (Bousselham et al.).

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
    the score at the embedding, and `layer` matters, as for :class:`DirectContribution`.

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
            pool = range(len(tower.layers), len(tower.attentions))
            recorded = record_vit(tower, leaf="embedding", outputs=chosen, keep=pool)
        else:
            recorded = record_vit(tower, keep=chosen, leaf=chosen[0], outputs=chosen)
        with recorded as record:
            scores = call.scores()
        embedded = embedded_scores(tower, call, record, scores)
        with torch.no_grad():
            compare_embedding(tower, embedded, pooled_tokens(tower, record))
            if tower.pooling_head is not None:
                read = record.layers[len(tower.layers)]
                read.compare(tower.pooling_head.keyed(record.outputs[chosen[-1]]), read.tokens)
            else:
                for index in chosen:
                    mha.all_rows(record.layers[index])  # compared with what the library's returned
        maps = torch.stack([self._of_layer(embedded, index) for index in record.outputs])
        return embedded.run.computed(maps.sum(0))

    def _last(self, layers: int | Literal["all"]) -> range:
        count = len(self._tower.layers)
        if layers == "all":
            return range(count)
        expected = f"layers of how many of the tower's {count} last take part, or 'all'"
        expect(is_integer(layers, least=1) and layers <= count, expected, layers)
        return range(count - layers, count)

    def _of_layer(self, embedded: PooledEmbedding, index: int) -> Tensor:
        """E_l (K', B, s)."""
        head, output = self._tower.pooling_head, embedded.run.record.outputs[index]  # (B, s, D)
        if head is None:
            layer = embedded.run.record.layers[index]
            gradients = self._gradients(embedded, to_float32(output).mean(1), layer.point()[0])
            matrices = (mha.matrix_gradient(layer, gradient) for gradient in gradients)
            return torch.stack([matrix.clamp(min=0).mean((1, 2)) for matrix in matrices])
        with torch.no_grad():
            ran = embedded.run.record.layers[len(self._tower.layers)]  # with its mask and weights
            keyed = LayerRecord(head, head.keyed(output.detach()), bias=ran.bias)
            read = mha.with_called_maps(keyed)
            read.maps = ran.maps
            heads = mha.heads_output(read, mha.pooled_attention(read))
        gradients = self._gradients(embedded, mha.merged(read, heads.requires_grad_()), heads)
        return mha.row_gradient(read, gradients).clamp(min=0).mean(2)

    def _gradients(self, embedded: PooledEmbedding, token: Tensor, leaf: Tensor) -> Tensor:
        """The gradients of a layer's scores, (K', *leaf.shape), from its pooled token (B, D)."""
        with mha.autocast_disabled(token):
            embedding = F.normalize(run_steps(embedded.head(self._tower), token), dim=-1)
            # images do not mix
            scores = torch.einsum("kbe,be->k", embedded.direction.rows, embedding)
        ones = torch.eye(len(scores), dtype=scores.dtype, device=scores.device)
        batched = embedded.run.batched
        # the blocks of a user's own forward may contain operations that no batched backward passes
        rows = torch.split(ones, _TOGETHER) if batched else ones.unbind()
        options: Any = {"retain_graph": True, "allow_unused": True, "is_grads_batched": batched}
        parts = [
            leaf.new_zeros(*r.shape[:-1], *leaf.shape) if gradient is None else gradient
            for r in rows
            for gradient in grad(scores, leaf, r, **options)  # None where a hook wiped it
        ]
        return torch.cat(parts) if batched else torch.stack(parts)


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
    another score than the model's; here the model's own heads and its own score stand.

    In a tower with a pooling head (SigLIP, PE-Core) its query replaces that of CLS. Where CLS has
    no gradient, as with mean pooling, the mean of the patches' rows and of their queries stands for
    it. The map is non-negative; the negative map is the map of ``-target``.

    Source: Zhao et al., ICML 2024 (Gradient-based Visual Explanation for Transformer-based CLIP).
    """

    name = "grad-eclip"
    towers = ("vit", "text")

    @override
    def _compute(self, call: Call) -> Computed:
        tower = self._tower
        last = last_gradient(tower, call)
        layer = last.run.record.layers[len(tower.attentions) - 1]
        if last.output is None:
            maps = last.row.sum(2).clamp(min=0) * self._loosened(layer, None)
            return last.run.computed(maps)
        mha.all_rows(layer)  # compared with what the library's returned
        general = []
        for output in last.output:  # (B, s, D), one target after the other
            start = mha.start_row(output, tower, layer.pooled)
            gradient = mha.read_row(start, mha.heads_gradient(layer, output))
            row = mha.row_gradient(layer, gradient[None])[0].sum(1)  # (B, s)
            general.append(row.clamp(min=0) * self._loosened(layer, start))
        return last.run.computed(torch.stack(general))

    @torch.no_grad()
    def _loosened(self, layer: LayerRecord, start: Tensor | None) -> Tensor:
        """Min-max over the patches of the cosine between keys and the pooled query, (B, s).

        The query is that of CLS or the pooling head, or of a row `start` (B, s) of tokens.
        """
        attention, span = layer.attention, layer.span
        key = mha.projected_heads(layer, "key").transpose(1, 2).flatten(2)  # (B, s, D)
        with mha.autocast_disabled(key):
            if isinstance(attention, PoolingHead):
                query = attention.query().to(key).expand(len(key), -1, -1).flatten(1)
            elif start is None:
                query = mha.pooled_query(layer).flatten(1)  # (B, D)
            else:
                queries = mha.projected_heads(layer, "query").transpose(1, 2).flatten(2)
                query = mha.read_row(start, queries)
            cosine = F.cosine_similarity(query[:, None], key, dim=-1)
        hidden = layer.pooled.hidden()
        if hidden is None:
            hidden = torch.zeros_like(cosine, dtype=torch.bool)
        low = cosine.masked_fill(hidden, torch.inf)[:, span].amin(1, keepdim=True)
        high = cosine.masked_fill(hidden, -torch.inf)[:, span].amax(1, keepdim=True)
        extent = (high - low).clamp(min=torch.finfo(cosine.dtype).tiny)
        return ((cosine - low) / extent).masked_fill(hidden, 0)


def _all_compared(_: int, record: LayerRecord) -> LayerRecord:
    """Compare all rows, since the values of all tokens pass the output map, each by itself."""
    heads, output = record.heads_output, record.output
    if output is not None and not isinstance(record.attention, PoolingHead):
        mha.all_rows(record)
        if heads is not None and not record.attention.linear:
            record.compare(mha.merged(record, heads.flatten(0, 1)).view_as(output), output)
    mha.compare_output(record)
    return record


Mixing = Literal["identity", "qq", "kk"]


@final
class PatchSimilarity(ViTAttribution):
    r"""Similarity of each patch to the text, not the model's score (MaskCLIP, ClearCLIP).

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
    score at the embedding, and `layer` matters, as for :class:`DirectContribution`.

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
        module = tower.attentions[last]
        if isinstance(module, PoolingHead) and attention == "qq":
            raise UnsupportedModelError(
                "attention='qq' needs a query of every patch, and this tower's "
                "last attention is a pooling head's, which has one query of its own; take 'kk' "
                "or 'identity'."
            )
        stream = range(last, len(tower.layers))
        visit = range(last, last + 1), _all_compared
        embedded = pooled_embedding(tower, call, visit, stream=stream)
        layer: LayerRecord = embedded.run.record.visited[last]
        with torch.no_grad(), mha.autocast_disabled(embedded.token):
            mixed = mha.projected_heads(layer, "value")  # (B, H, s, d)
            if attention != "identity":
                which: Literal["query", "key"] = "query" if attention == "qq" else "key"
                heads = mha.projected_heads(layer, which)
                mixed = ((heads * module.scale(heads.shape[-1])) @ heads.mT).softmax(-1) @ mixed
            batch, _, count, _ = mixed.shape
            flat = mixed.transpose(1, 2).flatten(2).flatten(0, 1)  # (B s, D)
            flat = run_steps((*module.merge_steps(), *module.branch()), flat)
            # the pooled token goes along, since a hook may tell tokens from each other
            tokens = torch.cat([flat, embedded.token.flatten(0, -2)[:batch]])
            flat = run_steps(embedded.head(tower), tokens)
            if tower.pooling != "mean":
                embedded.run.record.compare("the embedding", flat[-batch:], embedded.embedding)
            patches = F.normalize(flat[:-batch], dim=-1).view(batch, count, -1)  # (B, s, E)
            rows: Tensor = embedded.direction.rows.expand(-1, batch, -1)
            maps = torch.einsum("kbe,bse->kbs", rows, patches)
        return embedded.run.computed(maps)
