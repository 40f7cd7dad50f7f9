"""Gradients at the attentions of one forward, and the arithmetic that maps are made of.

The forward runs to its end, with a graph from an attention on, and every derivative is taken
between points of that graph. Parts that a map leaves out are checked to have no gradient.

Shapes: B images, K targets, H heads, s tokens (CLS first), D = H d the width. Half-precision
tensors are converted to float32, and autocast is off, so a map depends on neither.
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
    rows_at_once,
)


@dataclass(frozen=True, eq=False)
class LastGradient:
    """The gradient of the last attention, which is the pooling head's where there is one.

    Either `row` or `output` is given: one row is enough where the scores read one token.

    Attributes:
        row: d y / d A of the pooled row, (K', B, H, s), where all other rows are exactly zero.
        output: the gradient at the heads' outputs, (K', B, H, s, d), where other rows are not zero.
    """

    run: Pass
    read: AttentionRead
    row: Tensor | None = None
    output: Tensor | None = None

    def matrices(self, tower: TransformerTower) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the rows to read (k, B, s) and d y / d A (k, B, H, s, s), k targets at a time."""
        assert self.output is not None
        chunk_size = rows_at_once(_numbers_of_target(self.read.out))
        for output in torch.split(self.output, chunk_size):
            yield start_row(output, tower, self.read.pooled), matrix_gradient(self.read, output)


def last_gradient(tower: TransformerTower, call: Call, *kernels: Kernels) -> LastGradient:
    """Run once, read the attentions of other layers as well, and differentiate the last one."""
    last = len(tower.attentions) - 1
    if tower.pooling != "mean":
        blocks = Sums(range(last, len(tower.layers)), copies=call.copies)
        run = observed(tower, call, *kernels, Kernels([last]), blocks, leaf=True)
        read = run.record.reads[last]
        # Scores that read more than this token are left to a forward with a longer graph, below.
        with suppress(ReadsMoreError):
            at_token = _through_one_token(tower, run, read)
            return LastGradient(run, read, row_gradient(read, at_token))
    # The scores may depend on any token, so the gradient is taken at the outputs of all.
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
    """Compute the gradients (K', B, H d) at the last heads' outputs of the pooled token.

    That token alone goes once more through the rest of the last block and the head, for all targets
    in one product. A backward through all tokens would cost s times as much for each.

    Raises:
        ReadsMoreError: that token alone does not make the scores, as where a hook changes it.
    """
    record = run.record
    last = len(tower.attentions) - 1
    embedded = embedded_scores(tower, run, directed=False)
    reads_more = ReadsMoreError("The scores depend on more than the pooled token.")
    heads = read.select(detached(read.out)).flatten(1)  # (B, H d)
    gradients = []
    # The token is copied for each target: a batched backward would differentiate norms one by one.
    for rows in torch.split(embedded.gradient, rows_at_once(8 * heads.numel())):
        count = len(rows)
        leaf = heads.repeat(count, 1).requires_grad_()
        try:
            token = merged(read.attention, leaf)
            if tower.pooling == "cls":
                layer = tower.layers[last]
                entered, *_ = record.rows[last]
                entered = entered.repeat(count, 1)
                stream = entered + call_steps(layer.branch(), token.to(entered.dtype))
                token = call_steps(layer.after_attention(), stream)
            embedding = call_steps(embedded.head(tower), token)
        # A module of the user's may need all tokens.
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise reads_more from error
        returned = embedded.embedding.repeat(count, 1)
        # A hook may have cut the graph between the attention and the embedding.
        if not embedding.requires_grad or not ran_alike(record, (embedding, returned)):
            raise reads_more
        # Images and targets are one batch here, in which no token reads another.
        cotangent = rows.flatten(0, 1).to(embedding.dtype)
        [gradient] = grad(embedding, leaf, cotangent, create_graph=keeps_graph())
        gradients.append(gradient.view(*rows.shape[:2], -1))
    return torch.cat(gradients)


def _reads_others(output: Tensor, pooled: PooledToken) -> bool:
    """Whether other tokens than the pooled one have a gradient (k, B, H, s, d)."""
    has_gradient = output.ne(0).any(-1).any(-2)  # (k, B, s)
    is_other = pooled.row_of(has_gradient[0]).eq(0)
    return bool((has_gradient & is_other).any())


def _check_first_query(gradient: Tensor) -> None:
    """Raise CaptureError if another query than a pooling head's first has a gradient.

    The gradients are (..., queries, d). The first query makes the embedding.
    """
    if gradient[..., 1:, :].any():
        raise CaptureError(
            "The scores depend on several queries of the tower's pooling head; only the first one, "
            "which makes the image embedding, can be explained."
        )


@dataclass(frozen=True, eq=False)
class AllGradients:
    """One forward whose graph begins at an attention, and the points to differentiate.

    Attributes:
        points: the outputs of the heads (B, H, s, d) in every attention from there on.
    """

    tower: TransformerTower
    run: Pass
    points: tuple[Tensor, ...]

    @property
    def chunk_size(self) -> int:
        """How many targets are differentiated at once."""
        largest = max(_numbers_of_target(point) for point in self.points)
        of_all_points = sum(point.numel() for point in self.points)
        return rows_at_once(max(largest, of_all_points))

    def gradients(self) -> Iterator[tuple[Tensor, ...]]:
        """Give the gradients of k targets at a time, one (k, B, H, s, d) for each point."""
        return self.run.gradients(*self.points, together=self.chunk_size)

    def attention(self, *, averaged: bool = False) -> Callable[[int], Tensor]:
        """Give a function of a layer as `kept_attention` does."""
        is_reused = len(self.run.columns) > self.chunk_size
        return kept_attention(self.run.record, is_reused, averaged=averaged)

    def pool_row(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Give d y / d A (k, B, H, s) and A (B, H, s) of a pool, from the gradient at its point."""
        read = self.run.record.reads[len(self.tower.attentions) - 1]
        _check_first_query(gradient)
        return row_gradient(read, read.select(gradient)), read.row()


def _numbers_of_target(out: Tensor) -> int:
    """How many numbers a backward holds of a target at heads' outputs (B, H, s, d).

    It is the size of the attention (B, H, s, s), or of an MLP that is four times as wide.
    """
    rows, width = out.shape[-2:]
    return out[..., 0].numel() * max(rows, 4 * width)


def all_gradients(
    tower: TransformerTower, call: Call, start: int, first: int | None = None
) -> AllGradients:
    """Run once with a graph from the attention of layer `start` on.

    The attentions are read from there on, or from an earlier layer, `first`.
    """
    refuse_checkpointing(tower)
    count = len(tower.attentions)
    if first is None:
        first = start
    others = [index for index in range(first, count) if index != start]
    run = observed(tower, call, Kernels([start], leaf=True), Kernels(others))
    points = [run.record.reads[index].out for index in range(start, count)]
    return AllGradients(tower, run, tuple(points))


def kept_attention(
    record: Recording, is_reused: bool, *, averaged: bool = False
) -> Callable[[int], Tensor]:
    """Give a function of a layer that was read: its attention (B, H, s, s).

    If `averaged`, it is the mean over heads, (B, 1, s, s). A matrix that further targets need is
    kept, since making it costs a product of queries and keys.
    """

    def attention(index: int) -> Tensor:
        matrix: Tensor = record.reads[index].matrix()
        return matrix.mean(1, keepdim=True) if averaged else matrix

    return cache(attention) if is_reused else attention


def resnet_gradient(
    tower: ResNetTower, call: Call, *, detached: bool = False
) -> tuple[Pass, Tensor]:
    """Run once, with the last stage's features in the recording; compute d y / d shift (K', B, C).

    All positions shift alike, since Grad-CAM needs the gradient only through its mean over them.
    `detached` takes the weights of an attention pool as constants.
    """
    # Some pools cannot be read, and some scores depend on more than the pool.
    with suppress(UnsupportedModelError, ReadsMoreError):
        kernels = Kernels(range(len(tower.attentions)))
        run = observed(tower, call, Features(), kernels, leaf=True)
        return run, _shift_gradient(tower, run, detached)
    if detached:
        raise UnsupportedModelError(
            "attention='detached' needs a score of the pool's output alone; leave it out."
        )
    run = observed(tower, call, Features(leaf=True))
    gradient = run.stacked_gradients(run.record.features)  # (K', B, C, h, w)
    return run, gradient.sum((-2, -1))


def _shift_gradient(tower: ResNetTower, run: Pass, constant_weights: bool) -> Tensor:
    """Compute the gradients (K', B, C) of a shift, from those at the pool's heads or at the mean.

    Raises:
        ReadsMoreError: the embedding, or values and the query of the pool, are not what the
            weights make of the features.
    """
    record = run.record
    read = record.reads.get(0)
    reads_more = ReadsMoreError(
        "The scores depend on more than the features' way through the pool."
    )
    # Written-out attention shows its weights, and not the scale of its products.
    if read is not None and read.weights is not None:
        raise reads_more
    embedded = embedded_scores(tower, run, directed=False)
    features = to_float32(record.features.detach())
    with autocast_disabled(features):
        if read is None:
            token = features.mean((-2, -1)).requires_grad_()
            embedding = run_steps(embedded.head(tower), token)
        else:
            token = heads_output(read).requires_grad_()
            steps = (*read.attention.merge_steps(), *embedded.head(tower))
            embedding = run_steps(steps, token)
        compared = [(embedding, to_float32(embedded.embedding))]
        if read is not None:
            compared += _pool_inputs(read)
        if not ran_alike(record, *compared):
            raise reads_more
        gradients = partial(grad, embedding, token, retain_graph=True)
        at_token = batched(gradients, embedded.gradient.to(embedding.dtype), token)
        if read is None:
            return at_token
        return shift_gradient(read, at_token, constant_weights=constant_weights)


def _pool_inputs(read: AttentionRead) -> list[tuple[Tensor, Tensor]]:
    """Pair a value and the first query of a ResNet's pool as its maps make them and as they ran."""
    query_map, _, value_map = read.attention.input_maps()
    tokens = pool_tokens(read)
    mixed_token, mixed_value = mixed_values(read, tokens)
    queries, _ = read.shown
    query = read.select(queries).flatten(1)
    value_pair = value_map(mixed_token), mixed_value
    query_pair = query_map(tokens[:, 0]), query
    return [value_pair, query_pair]


def merged(attention: Attention, heads: Tensor) -> Tensor:
    """Compute the attention's output (..., D) from its heads' concatenated outputs."""
    with autocast_disabled(heads):
        # The kernel may have run in another type than that of the weights.
        dtype = next(attention.output_module.parameters(), heads).dtype
        return run_steps(attention.merge_steps(), heads.to(dtype))


@no_graph()
def row_gradient(read: AttentionRead, gradient: Tensor) -> Tensor:
    """Compute d y / d A of one row, (K, B, H, s), from the gradient at its heads' outputs.

    The latter is (K, B, H d) or (K, B, H, d).
    """
    vectors = split_heads(to_float32(gradient.flatten(2)), read.attention.heads)
    return value_products(read, vectors)


@no_graph()
def matrix_gradient(read: AttentionRead, gradient: Tensor) -> Tensor:
    """Compute d y / d A (..., H, rows, s) from the gradient at heads' outputs (..., H, rows, d)."""
    with autocast_disabled(gradient):
        return torch.einsum("...bhid,bhjd->...bhij", to_float32(gradient), to_float32(read.value))


def value_products(read: AttentionRead, vectors: Tensor) -> Tensor:
    """Compute the products (K, B, H, s) of vectors (K, B or 1, H, d) with each head's values."""
    with autocast_disabled(vectors):
        value = to_float32(read.value)
        vectors = vectors.expand(-1, len(value), -1, -1)
        return torch.einsum("kbhd,bhsd->kbhs", vectors, value)


@torch.no_grad()
def pool_tokens(read: AttentionRead) -> Tensor:
    """The tokens (B, 1 + N, C) of a ResNet's pool: the features' mean, then the features."""
    features = to_float32(read.features.detach()).flatten(2).transpose(1, 2)  # (B, N, C)
    positions: Any = read.attention.positions
    mean = features.mean(1, keepdim=True)
    tokens: Tensor = torch.cat([mean, features], 1) + positions.to(features.dtype)
    return tokens


@torch.no_grad()
def mixed_values(read: AttentionRead, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mix the tokens (B, 1 + N, C) of a ResNet's pool to one (B, C), its values to one (B, H d).

    The map of values must turn the former into the latter. So one product shows whether the values
    that ran were made of the features.
    """
    weights = torch.linspace(-1, 2, tokens.shape[1], device=tokens.device).to(tokens)
    # Weights that add up to 1 leave the map's bias as it is.
    weights = weights / weights.sum()
    mixed_token = torch.einsum("s,bsc->bc", weights, tokens)
    mixed_value = torch.einsum("s,bhsd->bhd", weights, to_float32(read.value)).flatten(1)
    return mixed_token, mixed_value.to(read.value.dtype)


@torch.no_grad()
def shift_gradient(read: AttentionRead, gradient: Tensor, *, constant_weights: bool) -> Tensor:
    r"""The gradient (K, B, C) of a shift of all features that a ResNet's attention pool reads.

    .. math:: W_V^T g + W_Q^T \big(s \textstyle\sum_j \nabla l_{hj} k_{hj}\big)_h, \quad
        \nabla l = a \odot (\nabla a - \textstyle\sum_j a_j \nabla a_j)

    with g (K, B, H d) the gradient at the heads' outputs, and l the logits. All keys shift alike,
    which the softmax cancels. With `constant_weights` the first term is all.
    """
    query_map, _, value_map = read.attention.input_maps()
    shift = gradient @ value_map.weight.to(gradient.dtype)
    if constant_weights:
        return shift
    # The way through the softmax nearly cancels, so it is computed in double precision.
    queries, keys = (vectors.double() for vectors in read.shown)
    exact = replace(read, query=queries, key=keys, value=read.value.double())
    row = exact.row()  # (B, H, s)
    row_slope = row_gradient(exact, gradient.double())  # (K, B, H, s)
    mean_slope = (row * row_slope).sum(-1, keepdim=True)
    logits_slope = row * (row_slope - mean_slope)
    at_query = torch.einsum("kbhs,bhsd->kbhd", logits_slope * read.factor, keys)
    at_query = at_query.flatten(2).to(gradient.dtype)
    return shift + at_query @ query_map.weight.to(gradient.dtype)


def heads_output(read: AttentionRead) -> Tensor:
    """The heads' outputs for the pooled row, concatenated (B, H d)."""
    return to_float32(read.select(detached(read.out))).flatten(1)


def contributions(read: AttentionRead, direction: Direction) -> Tensor:
    """Compute the share of each token where it is attended to, d_h . v_hj, (K, B, H, s).

    The directions d are those on the heads' outputs.
    """
    heads = split_heads(direction.rows, read.attention.heads)  # (K, B or 1, H, d)
    return value_products(read, heads) * direction.scale[:, None, None]


def weighted(gradient: Tensor, attention: Tensor, *, dim: int) -> Tensor:
    """Compute E_h[(gradient * attention)^+], with the heads at `dim`."""
    head_counts = [gradient.shape[dim], attention.shape[dim]]
    # A mean over heads multiplies with any number of heads.
    if 1 not in head_counts:
        check_heads(head_counts)
    return (gradient * attention).clamp(min=0).mean(dim)


def check_heads(counts: Sequence[int]) -> None:
    """Raise UnsupportedModelError unless layers have one number of heads."""
    if len({*counts}) > 1:
        raise UnsupportedModelError(
            f"the tower's layers have different numbers of heads, {min(counts)} and {max(counts)}, "
            "so the gradient of one cannot weight another's attention."
        )


def weighted_rows(gradient: Tensor, rows: Tensor) -> Tensor:
    """Compute E_h[(gradient * row)^+] (L, K, B, s) of gradients (K, B, H, s), rows (L, B, H, s)."""
    with autocast_disabled(gradient):
        # The kernel of another layer may have run in another type.
        gradient = gradient.to(rows.dtype)
        # (g a)^+ = g^+ a^+ + g^- a^- needs no tensor of all targets, layers and heads at once.
        steps = torch.einsum("kbhs,lbhs->lkbs", gradient.clamp(min=0), rows.clamp(min=0))
        # A difference of attentions may be negative.
        if bool((rows < 0).any()):
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
    if pooled.visible is None:
        row[:, prefix:] = 1
    else:
        row[:, prefix:] = pooled.visible[:, prefix:].to(row.dtype)
    return row / row.sum(1, keepdim=True)


def start_row(gradient: Tensor, tower: TransformerTower, pooled: PooledToken) -> Tensor:
    """The rows to begin with, (k, B, s), given gradients (k, B, H, s, d) at the last outputs.

    The row is e_CLS wherever the score depends on the CLS token, else the mean of the patches'
    rows. Where the score depends on no token, as after an attention that a hook wiped, it is the
    row that is pooled.

    Raises:
        UnsupportedModelError: a text's embedding is made of another token than its family says, so
            there is no row to read.
    """
    if isinstance(tower, TextTower) and tower.pooling == "cls" and _reads_others(gradient, pooled):
        raise UnsupportedModelError(
            f"the {tower.noun} pools neither the first token of a text nor the token that ends it; "
            "check its end token (eos_token_id)."
        )
    of_tokens = gradient.transpose(2, 3).flatten(3)  # (k, B, s, H d)
    like = of_tokens[0, ..., 0]
    # A forward function of the user's may read patches in a tower that pools CLS.
    mean = initial_row("mean", like, tower.prefix, pooled)
    first_is_patch = tower.prefix == 0 and pooled.rows is None
    if first_is_patch:
        return mean.expand(len(of_tokens), -1, -1)
    reads_cls = pooled.read(of_tokens).any(-1, keepdim=True)
    if tower.pooling == "cls":
        reads_cls |= ~of_tokens.flatten(2).any(-1, keepdim=True)
    return torch.where(reads_cls, pooled.row_of(like), mean)


def read_row(row: Tensor, matrix: Tensor) -> Tensor:
    """Multiply rows (..., B, s) with matrices (..., B, s, s)."""
    with autocast_disabled(matrix):
        return torch.einsum("...i,...ij->...j", row.to(matrix.dtype), matrix)


def propagated(start: Tensor, matrices: Iterable[Tensor], *, residual: bool) -> Tensor:
    """Apply v <- v + v M for one matrix (..., B, s, s) after the other, from a row (..., B, s).

    With `residual` the row to begin with is left out of the result: no target changes it, and with
    mean pooling it is 1 / N in every cell.
    """
    zeros = torch.zeros_like(start)
    # v is the sum of two rows, of which only the second one is in the result.
    if residual:
        left_out, gained = start, zeros
    else:
        left_out, gained = zeros, start
    for matrix in matrices:
        gained = gained + read_row(left_out + gained, matrix)
    return gained
