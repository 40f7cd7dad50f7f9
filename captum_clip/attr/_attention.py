"""The arithmetic of multi-head attention: rows, matrices, their gradients, their propagation.

Shapes: B images, K targets, H heads, s tokens (CLS first), D = H d the width. Half-precision
tensors are computed with in float32, and autocast is off, so a map depends on neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.towers import AttentionLayer, Linear, Pooling
from ..recording import LayerRecord


def widened(tensor: Tensor) -> Tensor:
    """The tensor in at least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def exact(tensor: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)


def _wide(linear: Linear, dtype: torch.dtype) -> Linear:
    bias = None if linear.bias is None else linear.bias.to(dtype)
    return Linear(linear.weight.to(dtype), bias)


def _by_head(weight: Tensor, heads: int) -> Tensor:
    return weight.view(heads, -1, weight.shape[-1])  # (H, d, D)


def _split(tokens: Tensor, heads: int) -> Tensor:
    """(B, s, D) -> (B, H, s, d)."""
    return _heads_last(tokens, heads).transpose(-3, -2)


def _heads_last(tokens: Tensor, heads: int) -> Tensor:
    """(..., D) -> (..., H, d)."""
    return tokens.reshape(*tokens.shape[:-1], heads, -1)


def cls_row(layer: AttentionLayer, tokens: Tensor) -> Tensor:
    """Row CLS of the attention, (B, H, s), from the tokens (B, s, D) and no key.

    q . k_j = (W_K^T q) . x_j + q . b_K, and the softmax cancels the last term.
    """
    with exact(tokens):
        tokens = widened(tokens)
        query, key = (_wide(p, tokens.dtype) for p in layer.projections()[:2])
        q = _heads_last(F.linear(tokens[:, 0], *query), layer.heads)  # (B, H, d)
        q = torch.einsum("bhd,hdw->bhw", q * layer.scale, _by_head(key.weight, layer.heads))
        return (q @ tokens.transpose(1, 2)).softmax(-1)


@torch.no_grad()
def all_rows(layer: AttentionLayer, record: LayerRecord) -> Tensor:
    """The whole attention (B, H, s, s) of a kept layer."""
    assert record.tokens is not None
    with exact(record.tokens):
        query = _projected(layer, record, 0, record.query)
        key = _projected(layer, record, 1, record.key)
        return ((query * layer.scale) @ key.transpose(-1, -2)).softmax(-1)


def _projected(
    layer: AttentionLayer, record: LayerRecord, which: int, tapped: Tensor | None
) -> Tensor:
    if tapped is None:
        assert record.tokens is not None
        tokens = widened(record.tokens)
        tapped = F.linear(tokens, *_wide(layer.projections()[which], tokens.dtype))
    return _split(widened(tapped), layer.heads)  # (B, H, s, d)


def attended(layer: AttentionLayer, row: Tensor, tokens: Tensor) -> Tensor:
    """The attention's output (B, D) for one row (B, H, s) of weights, differentiable in both.

    The value bias is weighted with the row's sum, which is one, since it is part of the gradient.
    """
    with exact(tokens):
        tokens = widened(tokens)
        value, output = (_wide(p, tokens.dtype) for p in layer.projections()[2:])
        mixed = torch.einsum("bhw,hdw->bhd", row @ tokens, _by_head(value.weight, layer.heads))
        if value.bias is not None:
            mixed = mixed + row.sum(-1, keepdim=True) * value.bias.view(layer.heads, -1)
        return F.linear(mixed.flatten(1), *output)


@torch.no_grad()
def row_gradient(layer: AttentionLayer, gradient: Tensor, tokens: Tensor) -> Tensor:
    """The gradient d y / d A of one row, (K, B, H, s), given d y / d output (K, B, D) there."""
    with exact(tokens):
        tokens = widened(tokens)
        value, output = (_wide(p, tokens.dtype) for p in layer.projections()[2:])
        mixed = _heads_last(widened(gradient) @ output.weight, layer.heads)  # (K, B, H, d)
        by_token = torch.einsum("kbhd,hdw->kbhw", mixed, _by_head(value.weight, layer.heads))
        result = torch.einsum("kbhw,bsw->kbhs", by_token, tokens)
        if value.bias is not None:
            bias = value.bias.view(layer.heads, -1)
            result = result + (mixed * bias).sum(-1, keepdim=True)
        return result


@torch.no_grad()
def matrix_gradient(
    layer: AttentionLayer, gradient: Tensor, record: LayerRecord, *, of_mixed: bool = False
) -> Tensor:
    """The gradient d y / d A (B, H, s, s) of a kept layer, given d y / d output (B, s, D).

    Args:
        layer: the layer.
        gradient: with respect to the output, or to the mixed heads where `of_mixed` says so.
        record: what the layer showed.
        of_mixed: whether the gradient already stands before the output map.
    """
    with exact(gradient):
        value = _projected(layer, record, 2, record.value)
        mixed = widened(gradient)
        if not of_mixed:
            mixed = mixed @ layer.projections().output.weight.to(mixed.dtype)
        return _split(mixed, layer.heads) @ value.transpose(-1, -2)


def weighted(gradient: Tensor, attention: Tensor, *, dim: int) -> Tensor:
    """E_h[(gradient * attention)^+], the heads at `dim`.

    Attention is never negative, so the ReLU may as well be taken of the gradient alone.
    """
    return (gradient.clamp(min=0) * attention).mean(dim)


def weighted_rows(gradient: Tensor, rows: Tensor) -> Tensor:
    """The same for K targets and L layers at once, as products of small matrices.

    Args:
        gradient: (K, B, H, s).
        rows: the CLS attention of the layers, (L, B, H, s).

    Returns:
        (L, K, B, s).
    """
    with exact(gradient):
        steps = torch.einsum("kbhs,lbhs->lkbs", gradient.clamp(min=0), rows)
    return steps / gradient.shape[2]


def pooled_row(pooling: Pooling, like: Tensor) -> Tensor:
    """The row that a tower's output reads, (B, s): e_CLS, or the mean of the patches' rows."""
    row = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
    if pooling == "cls":
        row[:, 0] = 1
    else:
        row[:, 1:] = 1 / (row.shape[1] - 1)
    return row


def start_row(gradient: Tensor) -> Tensor:
    """The row to read, (B, s), given the gradient (B, s, D) of the last attention's output.

    e_CLS wherever the score depends on the CLS token, else the mean of the patches' rows.
    """
    like = gradient[..., 0]
    cls, mean = pooled_row("cls", like), pooled_row("mean", like)
    return torch.where(gradient[:, 0].any(-1, keepdim=True), cls, mean)


def read_row(row: Tensor, matrix: Tensor) -> Tensor:
    """Row (B, s) times matrix (B, s, s)."""
    with exact(matrix):
        return torch.einsum("bi,bij->bj", row.to(matrix.dtype), matrix)


def propagated(row: Tensor, matrices: Iterable[Tensor]) -> Tensor:
    """Apply v <- v + v M, one matrix (B, s, s) after the other, from the top layer down."""
    for matrix in matrices:
        row = row + read_row(row, matrix)
    return row
