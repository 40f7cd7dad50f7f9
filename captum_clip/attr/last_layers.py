"""Methods that read the last layers alone: LeGrad, Grad-ECLIP and patch similarity."""

from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn import functional as F
from typing_extensions import override

from ..checks import expect, is_integer
from ..errors import UnsupportedModelError
from ..maps import autocast_disabled, to_float32
from ..models.attentions import PoolingHead
from ..models.steps import run_steps
from ..recording.again import read_pool
from ..recording.graph import detached, no_graph
from ..recording.observe import Kernels, Outputs, Probes, Sums
from ..recording.reads import AttentionRead
from . import _attention as mha
from ._base import ViTAttribution
from ._call import TOGETHER, Call, Computed, batched
from ._engine import (
    PooledEmbedding,
    begin_at,
    compare_embedding,
    embedded_scores,
    last_gradient,
    observed,
    pooled_embedding,
    pooled_tokens,
    refuse_checkpointing,
)


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

    @classmethod
    @override
    def _laws(cls, **options: Any) -> tuple[str, ...]:
        return ("blocks", "embedding")

    @override
    def _compute(self, call: Call, *, layers: int | Literal["all"] = 2) -> Computed:
        tower, chosen = self._tower, self._last(layers)
        refuse_checkpointing(tower)
        if tower.pooling == "attention":  # it is differentiated itself, so no graph comes before it
            pool = Kernels([len(tower.layers)])
            run = observed(tower, call, Outputs(chosen), pool, leaf=True)
            embedded = embedded_scores(tower, run)
        else:
            # below the block that leads into the graph, a probe sees what scores read
            probes = [] if call.is_cosine else [Probes(range(chosen[0] - 1))]
            kernels = begin_at(chosen[0]), Kernels(chosen[1:])
            run = observed(tower, call, Outputs(chosen), *kernels, *probes)
            embedded = embedded_scores(tower, run, run.record.reads[chosen[0]].out)
        record = run.record
        compare_embedding(tower, embedded, pooled_tokens(tower, record))
        maps = torch.stack([self._of_layer(embedded, index) for index in chosen])
        return run.computed(maps.sum(0))

    def _last(self, layers: int | Literal["all"]) -> range:
        count = len(self._tower.layers)
        if layers == "all":
            return range(count)
        expected = f"layers of how many of the tower's {count} last take part, or 'all'"
        expect(is_integer(layers, least=1) and layers <= count, expected, layers)
        return range(count - layers, count)

    def _of_layer(self, embedded: PooledEmbedding, index: int) -> Tensor:
        """E_l (K', B, s)."""
        record = embedded.run.record
        head, output = self._tower.pooling_head, record.outputs[index]  # (B, s, D)
        if head is None:
            read = record.reads[index]
            gradients = self._gradients(embedded, to_float32(output).mean(1), read.out)
            count = read.value.shape[2]
            together = max(1, TOGETHER // (count * gradients[0].numel() // gradients.shape[-1]))
            chunks = torch.split(gradients, together)
            matrices = (mha.matrix_gradient(read, chunk) for chunk in chunks)
            return torch.cat([matrix.clamp(min=0).mean((2, 3)) for matrix in matrices])
        read = read_pool(record, output.detach())
        if index == len(self._tower.layers) - 1:  # which ran
            ran = record.reads[index + 1]
            record.compare(read.name, read.row().flatten(1), ran.row().flatten(1))
        heads = read.select(read.out.detach()).flatten(1).requires_grad_()
        merged = to_float32(mha.merged(head, heads))
        if index == len(self._tower.layers) - 1:
            record.compare(read.name, merged, record.pool)
        gradients = self._gradients(embedded, merged, heads)
        return mha.row_gradient(read, gradients).clamp(min=0).mean(2)

    def _gradients(self, embedded: PooledEmbedding, token: Tensor, leaf: Tensor) -> Tensor:
        """The gradients of a layer's scores, (K', *leaf.shape), from its pooled token (B, D)."""
        with autocast_disabled(token):
            embedding = F.normalize(run_steps(embedded.head(self._tower), token), dim=-1)
            # images do not mix
            # so one number for a target, whose gradient is that of every image
            scores = torch.einsum("kbe,be->k", embedded.direction.rows, embedding)
        ones = torch.eye(len(scores), dtype=scores.dtype, device=scores.device)

        def gradients(row: Tensor, **more: bool) -> tuple[Tensor, ...]:
            (gradient,) = grad(scores, leaf, row, retain_graph=True, allow_unused=True, **more)
            # None where a hook wiped it
            return (leaf.new_zeros(*row.shape[:-1], *leaf.shape) if gradient is None else gradient,)

        return batched(gradients, ones, leaf)


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
    differentiable = True
    towers = ("vit", "text")

    @override
    def _compute(self, call: Call) -> Computed:
        tower = self._tower
        last = last_gradient(tower, call)
        read = last.read
        if last.row is not None:
            maps = last.row.sum(2).clamp(min=0) * self._spread(read, None)
            return last.run.computed(maps)
        assert last.output is not None
        start = mha.start_row(last.output, tower, read.pooled)  # (K', B, s)
        gradient = torch.einsum("kbs,kbhsd->kbhd", start.to(last.output), last.output)
        rows = mha.row_gradient(read, gradient).sum(2).clamp(min=0)
        spread = torch.stack([self._spread(read, each) for each in start])
        return last.run.computed(rows * spread)

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
        if hidden is None:
            hidden = torch.zeros_like(cosine, dtype=torch.bool)
        # padding has keys as well, whose cosines would stretch the range
        low = cosine.masked_fill(hidden, torch.inf)[:, span].amin(1, keepdim=True)
        high = cosine.masked_fill(hidden, -torch.inf)[:, span].amax(1, keepdim=True)
        extent = (high - low).clamp(min=torch.finfo(cosine.dtype).tiny)
        return ((cosine - low) / extent).masked_fill(hidden, 0)


Mixing = Literal["identity", "qq", "kk"]


@final
class PatchSimilarity(ViTAttribution):
    r"""Similarity of each patch to the text, not the model's score (MaskCLIP, ClearCLIP).

    .. math:: L_p = \cos\bigl(t, \; P \, \mathrm{LN}(W_O S V + b)_p\bigr)

    V are the values of the last attention. S is the identity (MaskCLIP), or, head by head,
    :math:`\mathrm{softmax}(q q^T / \sqrt{d})` or :math:`\mathrm{softmax}(k k^T / \sqrt{d})`
    (ClearCLIP). The residual and the MLP of the block are left out; the tower's norm and
    projection P follow. This is a dense similarity for segmentation and **not the model's score**.
    The model does not read the patches like this: a place may be similar to a text and still have
    no effect on the score.

    In a tower with a pooling head (SigLIP, PE-Core) the last attention is the head's. With the
    identity, a patch's value is the cosine of the image if the head attended to that patch alone,
    its MLP included. With a forward function of your own, t is the direction of the
    score at the embedding, and `layer` matters, as for :class:`DirectContribution`.

    The map is signed and costs one forward, without a gradient, for any number of texts.

    Option, keyword-only: ``attention``, "identity", "qq" or "kk" for S.

    Raises:
        UnsupportedModelError: "qq" in a tower with a pooling head, whose patches have no queries.

    Source: Zhou et al. 2022 (arXiv:2112.01071), MaskCLIP; Lan et al. 2024 (arXiv:2407.12442),
    ClearCLIP.
    """

    name = "patches"
    signed = differentiable = True

    @classmethod
    @override
    def _laws(cls, **options: Any) -> tuple[str, ...]:
        return ("blocks", "merge", "embedding")  # every token passes the output map

    @override
    def _compute(self, call: Call, *, attention: Mixing = "identity") -> Computed:
        tower, last = self._tower, len(self._tower.attentions) - 1
        module = tower.attentions[last]
        if isinstance(module, PoolingHead) and attention == "qq":
            raise UnsupportedModelError(
                "attention='qq' needs a query for every patch, but this tower's "
                "last attention is a pooling head with a single query; use 'kk' "
                "or 'identity'."
            )
        blocks = Sums(range(last, len(tower.layers)), copies=call.copies)
        embedded = pooled_embedding(tower, call, Kernels([last]), blocks)
        record = embedded.run.record
        read = record.reads[last]
        with no_graph(), autocast_disabled(embedded.token):
            made = mha.merged(module, read.select(detached(read.out)).flatten(1))
            returned = record.pool if read.attention.is_pool else record.rows[last][1]
            record.compare(read.name, to_float32(made), returned)
            if record.rows:
                record.compare_sums()
            mixed = to_float32(read.value)  # (B, H, s, d)
            heads = {"identity": mixed, "qq": read.query, "kk": read.key}[attention]
            if heads is None:
                raise UnsupportedModelError(
                    f"attention={attention!r} needs queries and keys, but {read.name} shows none; "
                    "use 'identity'."
                )
            if attention != "identity":
                heads = to_float32(heads)
                factor = heads.shape[-1] ** -0.5 if read.scale is None else read.scale
                mixed = ((heads * factor) @ heads.mT).softmax(-1) @ mixed
            batch, _, count, _ = mixed.shape
            flat = mixed.transpose(1, 2).flatten(2).flatten(0, 1)  # (B s, D)
            flat = run_steps((*module.merge_steps(), *module.branch()), flat)
            # the pooled token goes along, since a hook may tell tokens from each other
            tokens = torch.cat([flat, embedded.token.flatten(0, -2)[:batch]])
            flat = run_steps(embedded.head(tower), tokens)
            if tower.pooling != "mean":
                returned = embedded.embedding.to(embedded.dtype)
                record.compare("the embedding", flat[-batch:], returned)
            patches = F.normalize(flat[:-batch], dim=-1).view(batch, count, -1)  # (B, s, E)
            rows: Tensor = embedded.direction.rows.expand(-1, batch, -1)
            maps = torch.einsum("kbe,bse->kbs", rows, patches)
        return embedded.run.computed(maps)
