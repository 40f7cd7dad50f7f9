"""The arithmetic of multi-head attention: rows, matrices, their gradients, their propagation.

Shapes: B images, K targets, H heads, s tokens (CLS first), D = H d the width. Half-precision
tensors are computed with in float32, and autocast is off, so a map depends on neither.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UnsupportedModelError
from ..maps import to_float32
from ..models.attentions import Exposed, PooledToken, PoolingHead, Which
from ..models.steps import (
    Direction,
    Linear,
    call_steps,
    head_products,
    head_sums,
    linear_or_called,
    run_steps,
    split_heads,
)
from ..models.towers import Pooling, TransformerTower
from ..recording import LayerRecord


def autocast_disabled(tensor: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)


def _split(tokens: Tensor, heads: int) -> Tensor:
    """(B, s, D) -> (B, H, s, d)."""
    return split_heads(tokens, heads).transpose(-3, -2)


def pooled_attention(
    record: LayerRecord, *, compare: bool = True, through_output: bool = False
) -> Tensor:
    """The row that is pooled, CLS or a pooling head's, (B, H, s), mostly without computing keys.

    q . k_j = (W_K^T q) . x_j + q . b_K, and the softmax cancels the last term. Where queries and
    keys are rotated (RoPE) or normed the keys are needed. With `compare` what the row makes of the
    values is held against the heads' outputs, or what else the library shows of them;
    `through_output` holds it against the attention's output in any case, so that the output map
    is known as well, which a gradient passes.
    """
    with autocast_disabled(record.tokens):
        row, exposed, output = _pooled_row(record), record.heads_output, record.output
        if not compare or (exposed is None and output is None):
            return row
        heads = heads_output(record, row.detach())
        if exposed is not None:  # a norm after them may hide their length
            record.compare(heads, record.pick(exposed))
        if output is not None and (exposed is None or through_output):
            record.compare(merged(record, heads), record.pick(output))
        return row


compare_output = partial(pooled_attention, through_output=True)


def _pooled_row(record: LayerRecord) -> Tensor:
    query = pooled_query(record)
    scaled = query * record.attention.scale(query.shape[-1])
    if record.key is not None or not record.attention.plain:
        products = (projected_heads(record, "key") @ scaled[..., None])[..., 0]
    else:
        key = Linear(record.maps.key.weight, None)
        products = head_products(key, scaled[None], to_float32(record.tokens))[0]
    if record.bias is not None:  # CLS and the query of a pooling head stand first
        products = products + record.bias[:, :, 0]
    return record.pooled.masked(products).softmax(-1)


def pooled_query(record: LayerRecord) -> Tensor:
    """The query of the pooled row as it enters the products, (B or 1, H, d)."""
    attention, read = record.attention, record.pooled.read
    if isinstance(attention, PoolingHead):
        return attention.query().to(to_float32(record.tokens).dtype)[None]
    if record.query is not None:
        query = to_float32(read(record.query))
    else:
        query = run_steps((record.maps.query,), to_float32(read(record.tokens)))
    query = split_heads(query, attention.heads)  # (B, H, d)
    return query if attention.plain else _rotated(record, "query", query[:, :, None])[:, :, 0]


@torch.no_grad()
def all_rows(record: LayerRecord) -> Tensor:
    """The whole attention (B, H, s, s) of a kept layer.

    It is held against what the library's attention returned by Freivalds' check, with one vector r:
    A (V (W_O r)) beside the output times r, so no product of (s, s) with (s, D) is made.
    """
    layer = record.attention
    query, key = projected_heads(record, "query"), projected_heads(record, "key")
    with autocast_disabled(query):
        products = (query * layer.scale(query.shape[-1])) @ key.transpose(-1, -2)
        if record.bias is not None:
            products = products + record.bias
        rows = record.pooled.masked(products).softmax(-1)
        if record.output is not None or record.heads_output is not None:
            _compare_rows(record, rows)
        return rows


def _compare_rows(record: LayerRecord, rows: Tensor) -> None:
    output, bias = record.maps.output, None
    returned = record.heads_output
    if isinstance(output, Linear) and record.attention.linear and record.output is not None:
        returned, bias = record.output, output.bias
        vector = _any_vector(returned.shape[-1]).to(rows)
        at_heads = vector @ output.weight.to(rows.dtype)
    else:
        assert returned is not None
        at_heads = vector = _any_vector(returned.shape[-1]).to(rows)
    heads = split_heads(at_heads, record.attention.heads)
    values = value_products(record, heads[None, None])[0]  # (B, H, s)
    made = (rows @ values[..., None])[..., 0].sum(1)  # (B, s)
    if bias is not None:
        made = made + vector @ bias.to(rows.dtype)
    whole = to_float32(returned.detach())
    record.compare(made, (whole @ vector).to(returned.dtype), whole.flatten(1))


@cache
def _any_vector(width: int) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(0), device="cpu")


def projected_heads(record: LayerRecord, which: Exposed) -> Tensor:
    """Queries, keys or values of all tokens (B, H, s, d), as they enter the products."""
    with autocast_disabled(record.tokens):
        exposed = getattr(record, which)
        if exposed is None:
            exposed = run_steps((getattr(record.maps, which),), to_float32(record.tokens))
        heads = _split(to_float32(exposed), record.attention.heads)
        return heads if which == "value" else _rotated(record, which, heads)


def _rotated(record: LayerRecord, which: Which, heads: Tensor) -> Tensor:
    if record.attention.plain:
        return heads
    # norms of queries and keys expect the tower's own type
    dtype = (record.maps.query.weight if record.query is None else record.query).dtype
    return record.attention.rotated(which, heads.to(dtype), record.context).to(heads.dtype)


def value_products(record: LayerRecord, vectors: Tensor) -> Tensor:
    """The products (K, B, H, s) of vectors (K, B or 1, H, d) with each head's values."""
    if record.value is None:
        return head_products(record.maps.value, vectors, to_float32(record.tokens))
    values = split_heads(to_float32(record.value), record.attention.heads)  # (B, s, H, d)
    return torch.einsum("kbhd,bshd->kbhs", vectors, values)


def heads_output(record: LayerRecord, row: Tensor) -> Tensor:
    """The heads' outputs, concatenated (B, D), for one row (B, H, s), differentiable in it.

    The value bias is weighted with the row's sum, which is one, since it is part of the gradient.
    """
    with autocast_disabled(row):
        if record.value is None:
            sums = head_sums(record.maps.value, row[None], to_float32(record.tokens))[0]
        else:
            values = split_heads(to_float32(record.value), record.attention.heads)
            sums = torch.einsum("bhs,bshd->bhd", row, values)
        return sums.flatten(1)


def attended(record: LayerRecord) -> Tensor:
    """The attention's output (B, rows, D), in whose graph its weights are constants.

    Fused, so no weights (B, H, s, s) are kept for the backward.
    """
    return merged(record, _attended_heads(record), call_steps)  # a norm's hook holds its gate


def _attended_heads(record: LayerRecord) -> Tensor:
    layer = record.attention
    if isinstance(layer, PoolingHead):
        with torch.no_grad():
            row = pooled_attention(record)[:, :, None]  # (B, H, 1, s)
        with autocast_disabled(row):
            return (row @ _split(_values(record), layer.heads)).transpose(1, 2).flatten(2)
    with torch.no_grad():
        query, key = projected_heads(record, "query"), projected_heads(record, "key")
    with autocast_disabled(query):
        value = _split(_values(record), layer.heads)
        mask = record.pooled.mask(query.dtype)
        if record.bias is not None:
            mask = record.bias.to(query.dtype) if mask is None else mask + record.bias
        scale = layer.scale(query.shape[-1])
        heads = F.scaled_dot_product_attention(query, key, value, mask, scale=scale)
        return heads.transpose(1, 2).flatten(2)


def _values(record: LayerRecord) -> Tensor:
    """The values (B, s, D) of all tokens, differentiable in these."""
    called = None if record.value is None else with_called_maps(record).value
    return run_steps((record.maps.value,), to_float32(record.tokens)) if called is None else called


def with_called_maps(record: LayerRecord) -> LayerRecord:
    """A record of the same tokens, with what those of its maps give that have to be called."""
    again = replace(record, query=None, key=None, value=None)
    for module, names in record.attention.exposed().items():
        if names and linear_or_called(module) is module:
            parts = to_float32(module(record.tokens)).chunk(len(names), -1)
            for name, part in zip(names, parts, strict=True):
                setattr(again, name, part)
    return again


def merged(record: LayerRecord, heads: Tensor, run: Callable[..., Tensor] = run_steps) -> Tensor:
    """The attention's output (..., D) from the heads' concatenated outputs."""
    attention, output = record.attention, record.maps.output
    with autocast_disabled(heads):
        if isinstance(output, Linear) and attention.linear:
            return run_steps((output,), heads)
        dtype = next(attention.output_module.parameters(), record.tokens).dtype
        return run(attention.merge_steps(output), heads.to(dtype)).to(heads.dtype)


@torch.no_grad()
def heads_gradient(record: LayerRecord, gradient: Tensor) -> Tensor:
    """D y / d heads' outputs (..., D), given the gradient at `record.point`."""
    with autocast_disabled(gradient):
        gradient, output = to_float32(gradient), record.maps.output
        if record.point()[1]:
            return gradient
        assert isinstance(output, Linear)
        return gradient @ output.weight.to(gradient.dtype)


@torch.no_grad()
def row_gradient(record: LayerRecord, gradient: Tensor) -> Tensor:
    """D y / d A of one row, (K, B, H, s), given d y / d heads' outputs (K, B, D) there."""
    with autocast_disabled(record.tokens):
        return value_products(record, split_heads(to_float32(gradient), record.attention.heads))


@torch.no_grad()
def matrix_gradient(record: LayerRecord, gradient: Tensor) -> Tensor:
    """D y / d A (..., H, s, s) of a kept layer, given the gradient (..., s, D) at its point."""
    # not from weights that a library returns: they are not upstream of its output
    heads = heads_gradient(record, gradient)
    value = projected_heads(record, "value")
    with autocast_disabled(gradient):
        return _split(heads, record.attention.heads) @ value.transpose(-1, -2)


def contributions(record: LayerRecord, direction: Direction) -> Tensor:
    """The share that each token has where it is attended to, d_h . v_hj, (K, B, H, s).

    Along directions on the heads' outputs.
    """
    with autocast_disabled(direction.rows):
        heads = split_heads(direction.rows, record.attention.heads)  # (K, B or 1, H, d)
        return value_products(record, heads) * direction.scale[:, None, None]


def weighted(gradient: Tensor, attention: Tensor, *, dim: int) -> Tensor:
    """E_h[(gradient * attention)^+], the heads at `dim`.

    Attention is never negative, so the ReLU may as well be taken of the gradient alone.
    """
    if gradient.shape[dim] not in (attention.shape[dim], 1) and attention.shape[dim] != 1:
        raise UnsupportedModelError(
            f"the tower's layers have different numbers of heads, {gradient.shape[dim]} and "
            f"{attention.shape[dim]}, so the gradient of one weighs no attention of another."
        )
    return (gradient.clamp(min=0) * attention).mean(dim)


def weighted_rows(gradient: Tensor, rows: Tensor) -> Tensor:
    """E_h[(gradient * row)^+] (L, K, B, s) of K gradients (K, B, H, s) and L rows (L, B, H, s)."""
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


def start_row(gradient: Tensor, tower: TransformerTower, pooled: PooledToken) -> Tensor:
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


def propagated(identity: Tensor, gained: Tensor, matrices: Iterable[Tensor]) -> Tensor:
    """Apply v <- v + v M, one matrix (B, s, s) after the other, to v = identity + gained.

    Without the identity's row, which no target changes; with mean pooling 1 / N in every cell.
    """
    for matrix in matrices:
        gained = gained + read_row(identity + gained, matrix)
    return gained
