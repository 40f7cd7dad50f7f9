"""The arithmetic of multi-head attention: gradients of its weights, and their propagation.

Shapes: B images, K targets, H heads, s tokens (CLS first), D = H d the width. Half-precision
tensors are computed with in float32, and autocast is off, so a map depends on neither.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from ..maps import autocast_disabled, to_float32
from ..models.attentions import Attention, PooledToken
from ..models.steps import Direction, run_steps, split_heads
from ..models.towers import Pooling, TransformerTower
from ..recording.graph import detached, no_graph
from ..recording.reads import AttentionRead


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
        value = to_float32(read.value)
        return torch.einsum("...bhid,bhjd->...bhij", to_float32(gradient), value)


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
    """
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


def propagated(identity: Tensor, gained: Tensor, matrices: Iterable[Tensor]) -> Tensor:
    """Apply v <- v + v M, one matrix (..., B, s, s) after the other, to v = identity + gained.

    Without the identity's row, which no target changes; with mean pooling 1 / N in every cell.
    """
    for matrix in matrices:
        gained = gained + read_row(identity + gained, matrix)
    return gained
