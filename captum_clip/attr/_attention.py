"""Gradients at the attentions of one forward, and the arithmetic that maps are made of.

The forward runs to its end, with a graph from an attention on, and every derivative is taken
between points of that graph. What a map leaves out is seen to have no gradient.

Shapes: B images, K targets, H heads, s tokens (CLS first), D = H d the width. Half-precision
tensors are computed with in float32, and autocast is off, so a map depends on neither.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad

from ..errors import CaptureError, UnsupportedModelError
from ..maps import autocast_disabled, to_float32
from ..models.attentions import Attention, PooledToken
from ..models.steps import Direction, call_steps, run_steps, split_heads
from ..models.towers import Pooling, ResNetTower, TextTower, TransformerTower
from ..recording.graph import detached, keeps_graph, no_graph
from ..recording.observe import Features, Kernels, Sums
from ..recording.reads import AttentionRead
from ..recording.records import Recording, ran_alike
from ._call import (
    Call,
    Pass,
    ReadsMoreError,
    batched,
    embedded_scores,
    observed,
    refuse_checkpointing,
    together,
)


@dataclass(frozen=True, eq=False)
class LastGradient:
    """The gradient of the last attention, which is the pooling head's where there is one.

    Attributes:
        row: d y / d A of the pooled row, (K', B, H, s), where all others are exactly zero.
        output: the gradient at the heads' outputs, (K', B, H, s, d), where they are not zero: then
            there is no `row`.
    """

    run: Pass
    read: AttentionRead
    row: Tensor | None = None
    output: Tensor | None = None

    def matrices(self, tower: TransformerTower) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows to read (k, B, s) of k targets at a time, and d y / d A of the last layer.

        The latter are (k, B, H, s, s).
        """
        assert self.output is not None
        for output in torch.split(self.output, together(_largest(self.read.out))):
            yield start_row(output, tower, self.read.pooled), matrix_gradient(self.read, output)


def last_gradient(tower: TransformerTower, call: Call, *kernels: Kernels) -> LastGradient:
    """Run once, read the attentions of other layers as well, and differentiate the last one."""
    last = len(tower.attentions) - 1
    if tower.pooling != "mean":
        blocks = Sums(range(last, len(tower.layers)), copies=call.copies)
        run = observed(tower, call, *kernels, Kernels([last]), blocks, leaf=True)
        read = run.record.reads[last]
        with suppress(ReadsMoreError):
            return LastGradient(run, read, row_gradient(read, _through_one_token(tower, run, read)))
    refuse_checkpointing(tower)
    run = observed(tower, call, *kernels, Kernels([last], leaf=True))
    read = run.record.reads[last]
    output = run.stacked_gradients(read.out)  # (K', B, H, rows, d)
    if tower.pooling == "attention":
        _check_first_query(output)
    elif tower.pooling == "mean" or _reads_others(output, read.pooled):
        return LastGradient(run, read, output=output)
    return LastGradient(run, read, row_gradient(read, read.select(output)))


def _through_one_token(tower: TransformerTower, run: Pass, read: AttentionRead) -> Tensor:
    """The gradients (K', B, H d) at the last heads' outputs of the pooled token.

    It alone goes once more through the rest of the last block and the head, for all targets in one
    product: a backward through all tokens would cost s times as much for each.

    Raises:
        ReadsMoreError: that token alone does not make the scores, as where a hook changes it.
    """
    record, last, embedded = (
        run.record,
        len(tower.attentions) - 1,
        embedded_scores(tower, run, directed=False),
    )
    more = ReadsMoreError("The scores depend on more than the pooled token.")
    heads = read.select(detached(read.out)).flatten(1)
    gradients = []
    # one token for each target: a batched backward would differentiate norms one by one
    for rows in torch.split(embedded.gradient, together(8 * heads.numel())):
        count = len(rows)
        leaf = heads.repeat(count, 1).requires_grad_()
        try:
            token = merged(read.attention, leaf)
            if tower.pooling == "cls":
                layer, entered = tower.layers[last], record.rows[last][0].repeat(count, 1)
                stream = entered + call_steps(layer.branch(), token.to(entered.dtype))
                token = call_steps(layer.after_attention(), stream)
            embedding = call_steps(embedded.head(tower), token)
        # of a module that needs all tokens
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise more from error
        returned = embedded.embedding.repeat(count, 1)
        # a hook may wipe what leads from the attention
        if not embedding.requires_grad or not ran_alike(record, (embedding, returned)):
            raise more
        cotangent = rows.flatten(0, 1).to(embedding.dtype)
        [gradient] = grad(embedding, leaf, cotangent, create_graph=keeps_graph())
        gradients.append(gradient.view(*rows.shape[:2], -1))
    return torch.cat(gradients)


def _reads_others(output: Tensor, pooled: PooledToken) -> bool:
    """Whether other tokens than the pooled one have a gradient (k, B, H, s, d)."""
    reached = output.ne(0).any(-1).any(-2)  # (k, B, s)
    return bool((reached & pooled.row_of(reached[0]).eq(0)).any())


def _check_first_query(gradient: Tensor) -> None:
    """Only a pooling head's first query may have a gradient (..., queries, d): it is pooled."""
    if gradient[..., 1:, :].any():
        raise CaptureError(
            "The scores depend on several queries of the tower's pooling head; only the first one, "
            "which makes the image embedding, can be explained."
        )


@dataclass(frozen=True, eq=False)
class AllGradients:
    """One forward whose graph begins at an attention, and the `points` to differentiate.

    They are the outputs of the heads (B, H, s, d) in every attention from there on.
    """

    tower: TransformerTower
    run: Pass
    points: tuple[Tensor, ...]

    @property
    def together(self) -> int:
        """How many targets are differentiated at once."""
        return together(max(*map(_largest, self.points), sum(p.numel() for p in self.points)))

    def gradients(self) -> Iterator[tuple[Tensor, ...]]:
        """Those of the points (k, B, H, s, d), of some targets at once."""
        return self.run.gradients(*self.points, together=self.together)

    def attention(self, *, averaged: bool = False) -> Callable[[int], Tensor]:
        """That of layers, as `kept_attention` has it."""
        again = len(self.run.columns) > self.together
        return kept_attention(self.run.record, again, averaged=averaged)

    def pool_row(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """D y / d A (k, B, H, s) and A (B, H, s) of a pool, given the gradient of its point."""
        read = self.run.record.reads[len(self.tower.attentions) - 1]
        _check_first_query(gradient)
        return row_gradient(read, read.select(gradient)), read.row()


def _largest(out: Tensor) -> int:
    """The most numbers of one target at heads' outputs (B, H, s, d), in A or a wider MLP."""
    return out[..., 0].numel() * max(out.shape[-2], 4 * out.shape[-1])


def all_gradients(
    tower: TransformerTower, call: Call, start: int, first: int | None = None
) -> AllGradients:
    """Run once with a graph from the attention of layer `start` on, all kept from `first`."""
    refuse_checkpointing(tower)
    others = {*range(start if first is None else first, len(tower.attentions))} - {start}
    run = observed(tower, call, Kernels([start], leaf=True), Kernels(sorted(others)))
    points = (run.record.reads[index].out for index in range(start, len(tower.attentions)))
    return AllGradients(tower, run, tuple(points))


def kept_attention(
    record: Recording, again: bool, *, averaged: bool = False
) -> Callable[[int], Tensor]:
    """A function of a kept layer: its attention (B, H, s, s), or `averaged` (B, 1, s, s)."""

    def attention(index: int) -> Tensor:
        matrix: Tensor = record.reads[index].matrix()
        return matrix.mean(1, keepdim=True) if averaged else matrix

    return cache(attention) if again else attention  # other targets need it again


def resnet_gradient(
    tower: ResNetTower, call: Call, *, detached: bool = False
) -> tuple[Pass, Tensor]:
    """Run once: the last stage's features in the recording, and d y / d shift (K', B, C).

    A shift of all positions, since Grad-CAM needs the gradient only through its mean over them;
    `detached` takes the weights of an attention pool as constants.
    """
    with suppress(UnsupportedModelError, ReadsMoreError):  # of a pool that cannot be read
        run = observed(tower, call, Features(), Kernels(range(len(tower.attentions))), leaf=True)
        return run, _shift_gradient(tower, run, detached)
    if detached:
        raise UnsupportedModelError(
            "attention='detached' needs a score of the pool's output alone; leave it out."
        )
    # the whole gradient, from the features on
    run = observed(tower, call, Features(leaf=True))
    return run, run.stacked_gradients(run.record.features).sum((-2, -1))


def _shift_gradient(tower: ResNetTower, run: Pass, detached: bool) -> Tensor:
    """The gradients (K', B, C) of a shift, from those at the heads of the pool or at the mean.

    Raises:
        ReadsMoreError: the embedding, or values and the query of the pool, are not what the
            weights make of the features.
    """
    record, read = run.record, run.record.reads.get(0)
    more = ReadsMoreError("The scores depend on more than the features' way through the pool.")
    # written-out attention shows its weights, and not the scale of its products
    if read is not None and read.weights is not None:
        raise more
    embedded = embedded_scores(tower, run, directed=False)
    features = to_float32(record.features.detach())
    with autocast_disabled(features):
        token = features.mean((-2, -1)) if read is None else heads_output(read)
        steps = () if read is None else read.attention.merge_steps()
        embedding = run_steps((*steps, *embedded.head(tower)), token.requires_grad_())
        pairs = [(embedding, to_float32(embedded.embedding))]
        if read is not None:
            query_map, _, value_map = read.attention.input_maps()
            tokens, values, first = features_mixture(read)
            query = read.select(read.query).flatten(1)
            pairs += [(value_map(tokens), values), (query_map(first), query)]
        if not ran_alike(record, *pairs):
            raise more
        gradients = partial(grad, embedding, token, retain_graph=True)
        at_token = batched(gradients, embedded.gradient.to(embedding.dtype), token)
        return at_token if read is None else shift_gradient(read, at_token, detached=detached)


def merged(attention: Attention, heads: Tensor, run: Callable[..., Tensor] = run_steps) -> Tensor:
    """The attention's output (..., D) from its heads' concatenated outputs."""
    with autocast_disabled(heads):
        dtype = next(attention.output_module.parameters(), heads).dtype
        return run(attention.merge_steps(), heads.to(dtype))


@no_graph()
def row_gradient(read: AttentionRead, gradient: Tensor) -> Tensor:
    """D y / d A of one row, (K, B, H, s), given d y / d heads' outputs there, (K, B, H d)."""
    return value_products(read, split_heads(to_float32(gradient.flatten(2)), read.attention.heads))


@no_graph()
def matrix_gradient(read: AttentionRead, gradient: Tensor) -> Tensor:
    """D y / d A (..., H, rows, s), given the gradient at the heads' outputs (..., H, rows, d)."""
    with autocast_disabled(gradient):
        return torch.einsum("...bhid,bhjd->...bhij", to_float32(gradient), to_float32(read.value))


def value_products(read: AttentionRead, vectors: Tensor) -> Tensor:
    """The products (K, B, H, s) of vectors (K, B or 1, H, d) with each head's values."""
    with autocast_disabled(vectors):
        value = to_float32(read.value)
        return torch.einsum("kbhd,bhsd->kbhs", vectors.expand(-1, len(value), -1, -1), value)


@torch.no_grad()
def features_mixture(read: AttentionRead) -> tuple[Tensor, Tensor, Tensor]:
    """A mixture (B, C) of the tokens of a ResNet's pool, the same of its values (B, H d), and more.

    That is the first token, the mean of the features (B, C), with which it asks.
    """
    features = to_float32(read.features.detach()).flatten(2).transpose(1, 2)  # (B, N, C)
    positions: Any = read.attention.positions
    tokens = torch.cat([features.mean(1, keepdim=True), features], 1) + positions.to(features.dtype)
    weights = torch.linspace(-1, 2, tokens.shape[1], device=tokens.device).to(tokens)
    weights = weights / weights.sum()  # so that a bias stays as it is
    mixed = torch.einsum("s,bsc->bc", weights, tokens)
    values = torch.einsum("s,bhsd->bhd", weights, to_float32(read.value)).flatten(1)
    return mixed, values.to(read.value.dtype), tokens[:, 0]


@torch.no_grad()
def shift_gradient(read: AttentionRead, gradient: Tensor, *, detached: bool = False) -> Tensor:
    r"""The gradient (K, B, C) of a shift of all features that a ResNet's attention pool reads.

    .. math:: W_V^T g + W_Q^T \big(s \textstyle\sum_j \nabla l_{hj} k_{hj}\big)_h, \quad
        \nabla l = a \odot (\nabla a - \textstyle\sum_j a_j \nabla a_j)

    with g (K, B, H d) the gradient at the heads' outputs; the way through the keys, the same for
    all, is canceled by the softmax. `detached` takes the weights as constants.
    """
    query_map, _, value_map = read.attention.input_maps()
    shift = gradient @ value_map.weight.to(gradient.dtype)
    if detached:
        return shift
    # in double precision, since what the softmax takes away nearly cancels
    double = {name: getattr(read, name).double() for name in ("query", "key", "value")}
    exact = replace(read, **double)
    row, weights = exact.row(), row_gradient(exact, gradient.double())
    logits = row * (weights - (row * weights).sum(-1, keepdim=True)) * read.factor
    through = torch.einsum("kbhs,bhsd->kbhd", logits, double["key"]).flatten(2).to(gradient.dtype)
    return shift + through @ query_map.weight.to(gradient.dtype)


def heads_output(read: AttentionRead) -> Tensor:
    """The heads' outputs for the pooled row, concatenated (B, H d)."""
    return to_float32(read.select(detached(read.out))).flatten(1)


def contributions(read: AttentionRead, direction: Direction) -> Tensor:
    """The share that each token has where it is attended to, d_h . v_hj, (K, B, H, s).

    Along directions on the heads' outputs.
    """
    heads = split_heads(direction.rows, read.attention.heads)  # (K, B or 1, H, d)
    return value_products(read, heads) * direction.scale[:, None, None]


def weighted(gradient: Tensor, attention: Tensor, *, dim: int) -> Tensor:
    """E_h[(gradient * attention)^+], the heads at `dim`."""
    if 1 not in (gradient.shape[dim], attention.shape[dim]):
        check_heads([gradient.shape[dim], attention.shape[dim]])
    return (gradient * attention).clamp(min=0).mean(dim)


def check_heads(counts: Sequence[int]) -> None:
    """Raise UnsupportedModelError unless layers have one number of heads."""
    if len({*counts}) > 1:
        raise UnsupportedModelError(
            f"the tower's layers have different numbers of heads, {min(counts)} and {max(counts)}, "
            "so the gradient of one cannot weight another's attention."
        )


def weighted_rows(gradient: Tensor, rows: Tensor) -> Tensor:
    """E_h[(gradient * row)^+] (L, K, B, s) of K gradients (K, B, H, s) and L rows (L, B, H, s)."""
    with autocast_disabled(gradient):
        gradient = gradient.to(rows.dtype)  # a kernel may run in another
        # (g a)^+ = g^+ a^+ + g^- a^-, without a tensor of all targets and layers at once
        steps = torch.einsum("kbhs,lbhs->lkbs", gradient.clamp(min=0), rows.clamp(min=0))
        if bool((rows < 0).any()):  # as a difference of attentions may be
            below = torch.einsum("kbhs,lbhs->lkbs", gradient.clamp(max=0), rows.clamp(max=0))
            steps = steps + below
    return steps / gradient.shape[2]


def initial_row(pooling: Pooling, like: Tensor, prefix: int, pooled: PooledToken) -> Tensor:
    """The row that a tower's output pools, (B, s): e_CLS, or the mean of the patches' rows.

    A pooling head has a row of its own, so below it the mean stands for the tokens.
    """
    if pooling == "cls":
        return pooled.row_of(like)
    row = torch.zeros_like(to_float32(like))
    hidden = pooled.hidden()
    row[:, prefix:] = 1 if hidden is None else (~hidden[:, prefix:]).to(row.dtype)
    return row / row.sum(1, keepdim=True)


def start_row(gradient: Tensor, tower: TransformerTower, pooled: PooledToken) -> Tensor:
    """The rows to begin with, (k, B, s), given gradients (k, B, H, s, d) at the last outputs.

    e_CLS wherever the score depends on the CLS token, else the mean of the patches' rows; where it
    depends on nothing there, as after an attention that a hook wiped, the row that is pooled.
    A text whose embedding is made of another token than its family says has no row to read.
    """
    if isinstance(tower, TextTower) and tower.pooling == "cls" and _reads_others(gradient, pooled):
        raise UnsupportedModelError(
            f"the {tower.noun} pools neither the first token of a text nor the token that ends it; "
            "check its end token (eos_token_id)."
        )
    gradient = gradient.transpose(2, 3).flatten(3)
    like, prefix = gradient[0, ..., 0], tower.prefix
    # a forward function of the user's may read patches in a tower that pools CLS
    mean = initial_row("mean", like, prefix, pooled)
    if prefix == 0 and pooled.rows is None:  # the first token is a patch
        return mean.expand(len(gradient), -1, -1)
    reads_cls = pooled.read(gradient).any(-1, keepdim=True)
    if tower.pooling == "cls":
        reads_cls |= ~gradient.flatten(2).any(-1, keepdim=True)
    return torch.where(reads_cls, pooled.row_of(like), mean)


def read_row(row: Tensor, matrix: Tensor) -> Tensor:
    """Rows (..., B, s) times matrices (..., B, s, s)."""
    with autocast_disabled(matrix):
        return torch.einsum("...i,...ij->...j", row.to(matrix.dtype), matrix)


def propagated(start: Tensor, matrices: Iterable[Tensor], *, residual: bool) -> Tensor:
    """Apply v <- v + v M, one matrix (..., B, s, s) after the other, to rows (..., B, s).

    With `residual` less the rows to begin with, which no target changes; with mean pooling they
    are 1 / N in every cell.
    """
    zeros = torch.zeros_like(start)
    identity, gained = (start, zeros) if residual else (zeros, start)
    for matrix in matrices:
        gained = gained + read_row(identity + gained, matrix)
    return gained
