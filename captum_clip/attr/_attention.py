"""The arithmetic of multi-head attention: rows, matrices, their gradients, their propagation.

Shapes: B images, K targets, H heads, s tokens (CLS first), D = H d the width. Half-precision
tensors are computed with in float32, and autocast is off, so a map depends on neither.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..maps import to_float32
from ..models.steps import (
    Direction,
    Linear,
    PooledToken,
    head_products,
    head_sums,
    run_steps,
    split_heads,
)
from ..models.towers import (
    Attention,
    AttentionLayer,
    Pooling,
    PoolingHead,
    ViTTower,
    Which,
)
from ..recording import LayerRecord


def autocast_disabled(tensor: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)


def _split(tokens: Tensor, heads: int) -> Tensor:
    """(B, s, D) -> (B, H, s, d)."""
    return split_heads(tokens, heads).transpose(-3, -2)


def pooled_attention(attention: Attention, record: LayerRecord) -> Tensor:
    """The row that is pooled, CLS or a pooling head's, (B, H, s), mostly without computing keys.

    q . k_j = (W_K^T q) . x_j + q . b_K, and the softmax cancels the last term. Where queries and
    keys are rotated (RoPE) or normed the keys are needed.
    """
    with autocast_disabled(record.tokens):
        tokens = to_float32(record.tokens)
        query, key = attention.projections()[:2]
        if isinstance(attention, PoolingHead):
            q = attention.query().to(tokens.dtype)[None]  # (1, H, d)
        else:
            read = record.pooled.read(tokens)
            q = split_heads(run_steps((query,), read), attention.heads)  # (B, H, d)
        if isinstance(attention, AttentionLayer) and not attention.plain:
            q = _rotated(attention, "query", q[:, :, None], record)
            k = _split(run_steps((key,), tokens), attention.heads)
            products = (q * attention.scale @ _rotated(attention, "key", k, record).mT)[:, :, 0]
        else:
            products = head_products(Linear(key.weight, None), q[None] * attention.scale, tokens)[0]
        if record.bias is not None:  # CLS and the query of a pooling head stand first
            products = products + record.bias[:, :, 0]
        return record.pooled.masked(products).softmax(-1)


@torch.no_grad()
def all_rows(layer: AttentionLayer, record: LayerRecord) -> Tensor:
    """The whole attention (B, H, s, s) of a kept layer."""
    query, key = (projected_heads(layer, which, record) for which in ("query", "key"))
    with autocast_disabled(query):
        products = (query * layer.scale) @ key.transpose(-1, -2)
        if record.bias is not None:
            products = products + record.bias
        return record.pooled.masked(products).softmax(-1)


@torch.no_grad()
def projected_heads(
    attention: Attention, which: Literal["query", "key", "value"], record: LayerRecord
) -> Tensor:
    """Queries, keys or values of all tokens (B, H, s, d), as they enter the products."""
    with autocast_disabled(record.tokens):
        exposed = getattr(record, which)
        if exposed is None:
            projection = getattr(attention.projections(), which)
            exposed = run_steps((projection,), to_float32(record.tokens))
        heads = _split(to_float32(exposed), attention.heads)
        if which == "value" or not isinstance(attention, AttentionLayer) or attention.plain:
            return heads
        return _rotated(attention, which, heads, record)


def _rotated(layer: AttentionLayer, which: Which, heads: Tensor, record: LayerRecord) -> Tensor:
    # norms of queries and keys expect the tower's own type
    own = layer.projections().query.weight.dtype
    return layer.rotated(which, heads.to(own), record.context).to(heads.dtype)


def heads_output(attention: Attention, row: Tensor, tokens: Tensor) -> Tensor:
    """The heads' outputs, concatenated (B, D), for one row (B, H, s), differentiable in both.

    The value bias is weighted with the row's sum, which is one, since it is part of the gradient.
    """
    with autocast_disabled(tokens):
        value = attention.projections().value
        return head_sums(value, row[None], to_float32(tokens))[0].flatten(1)


def attended(layer: AttentionLayer, record: LayerRecord) -> Tensor:
    """The heads' outputs, concatenated (B, s, D), in whose graph the weights are constants.

    Fused, so no weights (B, H, s, s) are kept for the backward.
    """
    query, key = (projected_heads(layer, which, record) for which in ("query", "key"))
    with autocast_disabled(query):
        projection = layer.projections().value
        value = _split(run_steps((projection,), to_float32(record.tokens)), layer.heads)
        mask = record.pooled.mask(query.dtype)
        if record.bias is not None:
            mask = record.bias.to(query.dtype) if mask is None else mask + record.bias
        heads = F.scaled_dot_product_attention(query, key, value, mask, scale=layer.scale)
        return heads.transpose(1, 2).flatten(2)


def merged(attention: Attention, heads: Tensor) -> Tensor:
    """The attention's output (..., D) from the heads' concatenated outputs."""
    with autocast_disabled(heads):
        output = attention.projections().output
        if attention.linear:
            return run_steps((output,), heads)
        return attention.merge(heads.to(output.weight.dtype)).to(heads.dtype)


@torch.no_grad()
def heads_gradient(attention: Attention, gradient: Tensor, record: LayerRecord) -> Tensor:
    """D y / d heads' outputs (..., D), given the gradient at `record.point`."""
    with autocast_disabled(gradient):
        gradient = to_float32(gradient)
        if record.point(attention)[1]:
            return gradient
        return gradient @ attention.projections().output.weight.to(gradient.dtype)


@torch.no_grad()
def row_gradient(attention: Attention, gradient: Tensor, tokens: Tensor) -> Tensor:
    """D y / d A of one row, (K, B, H, s), given d y / d heads' outputs (K, B, D) there."""
    with autocast_disabled(tokens):
        heads = split_heads(to_float32(gradient), attention.heads)  # (K, B, H, d)
        return head_products(attention.projections().value, heads, to_float32(tokens))


@torch.no_grad()
def matrix_gradient(layer: AttentionLayer, gradient: Tensor, record: LayerRecord) -> Tensor:
    """D y / d A (..., H, s, s) of a kept layer, given the gradient (..., s, D) at its point."""
    # not from weights that a library returns: they are not upstream of its output
    heads = heads_gradient(layer, gradient, record)
    value = projected_heads(layer, "value", record)
    with autocast_disabled(gradient):
        return _split(heads, layer.heads) @ value.transpose(-1, -2)


def contributions(
    attention: Attention,
    direction: Direction,
    row: Tensor,
    tokens: Tensor,
    *,
    mean: Tensor | None = None,
) -> Tensor:
    """The share of each token along directions on the heads' outputs: a_hj d_h . v_hj.

    For the pooled weights (B, H, s) and tokens (B, s, D), less the value of a token `mean`
    (B, 1, D): (K, B, H, s).
    """
    with autocast_disabled(tokens):
        tokens, value = to_float32(tokens), attention.projections().value
        if mean is not None:
            tokens, value = tokens - mean, Linear(value.weight, None)
        heads = split_heads(direction.rows, attention.heads)  # (K, B or 1, H, d)
        return head_products(value, heads, tokens) * (row * direction.scale[:, None, None])


def weighted(gradient: Tensor, attention: Tensor, *, dim: int) -> Tensor:
    """E_h[(gradient * attention)^+], the heads at `dim`.

    Attention is never negative, so the ReLU may as well be taken of the gradient alone.
    """
    return (gradient.clamp(min=0) * attention).mean(dim)


def weighted_rows(gradient: Tensor, rows: Tensor) -> Tensor:
    """The same for K targets (K, B, H, s) and L layers (L, B, H, s) at once, (L, K, B, s)."""
    with autocast_disabled(gradient):
        steps = torch.einsum("kbhs,lbhs->lkbs", gradient.clamp(min=0), rows)
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


def start_row(gradient: Tensor, tower: ViTTower, pooled: PooledToken) -> Tensor:
    """The row to begin with, (B, s), given the gradient (B, s, D) of the last attention's output.

    e_CLS wherever the score depends on the CLS token, else the mean of the patches' rows; where it
    depends on nothing there, as after an attention that a hook wiped, the row that is pooled.
    """
    like, prefix = gradient[..., 0], tower.prefix
    mean = initial_row("mean", like, prefix, pooled)
    if prefix == 0 and pooled.rows is None:  # the first token is a patch
        return mean
    reads_cls = pooled.read(gradient).any(-1, keepdim=True)
    if tower.pooling == "cls":
        reads_cls |= ~gradient.flatten(1).any(-1, keepdim=True)
    return torch.where(reads_cls, pooled.row_of(like), mean)


def read_row(row: Tensor, matrix: Tensor) -> Tensor:
    """Row (B, s) times matrix (B, s, s)."""
    with autocast_disabled(matrix):
        return torch.einsum("bi,bij->bj", row.to(matrix.dtype), matrix)


def propagated(own: Tensor, gained: Tensor, matrices: Iterable[Tensor]) -> Tensor:
    """Apply v <- v + v M, one matrix (B, s, s) after the other, to v = own + gained; v - own.

    `own` is the identity's row, which no target changes; with mean pooling 1 / N in every cell.
    """
    for matrix in matrices:
        gained = gained + read_row(own + gained, matrix)
    return gained
