r"""The attention pool of a CLIP ResNet from its single mean query, and its gradient.

With tokens :math:`x_j = A_j + p_j` for the positions of the features A, :math:`x_0` for their mean,

.. math:: q = W_Q x_0 + b_Q, \quad a_{hj} = \mathrm{softmax}_j(s \, (W_{K,h}^T q_h) \cdot x_j),

.. math:: o_h = W_{V,h} \sum_j a_{hj} x_j + b_{V,h}, \quad e = W_C \, o + b_C.

A shift :math:`\delta` of all positions, the mean included, enters the query and the values; the
same shift of every key leaves the softmax as it is. Half precision is computed in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .steps import Direction

_CHUNK = 8  # targets at a time, which bounds the memory


def pooled(pool: Any, features: Tensor) -> Tensor:
    """The embedding (B, E) of features (B, C, h, w), in at least float32."""
    with torch.autocast(features.device.type, enabled=False):
        x = _tokens(pool, features)
        mixed = _attention(pool, x) @ x.mT  # (B, H, C)
        value, output = pool.v_proj, pool.c_proj
        heads = torch.einsum("bhc,hdc->bhd", mixed, _by_head(pool, value, x.dtype))
        joined = heads.flatten(1) + value.bias.to(x.dtype)
        return F.linear(joined, output.weight.to(x.dtype), output.bias.to(x.dtype))


def shift_gradient(pool: Any, features: Tensor, gradient: Tensor) -> Tensor:
    r"""The gradient (K, B, C) of a shift of all positions, given that of the embedding (K, B, E).

    With :math:`g_h = (W_C^T \nabla e)_h` and :math:`m_h = W_{V,h}^T g_h`,

    .. math:: \nabla a_{hj} = m_h \cdot x_j, \quad
        \nabla l = a \odot (\nabla a - \textstyle\sum_j a_j \nabla a_j), \quad
        \nabla \delta = \sum_h m_h + W_Q^T \big(s \, W_{K,h} \sum_j \nabla l_{hj} x_j\big)_h
    """
    with torch.autocast(features.device.type, enabled=False):
        x = _tokens(pool, features)
        attention = _attention(pool, x)
        parts = torch.split(gradient.to(x.dtype), _CHUNK)
        return torch.cat([_shift_gradient(pool, x, attention, part) for part in parts])


def _shift_gradient(pool: Any, x: Tensor, attention: Tensor, gradient: Tensor) -> Tensor:
    heads, dtype = pool.num_heads, x.dtype
    joined = gradient @ pool.c_proj.weight.to(dtype)  # (K, B, C)
    by_head = joined.view(*joined.shape[:2], heads, -1)
    mixed = torch.einsum("kbhd,hdc->kbhc", by_head, _by_head(pool, pool.v_proj, dtype))
    weights = torch.einsum("kbhc,bcs->kbhs", mixed, x)
    logits = attention * (weights - (attention * weights).sum(-1, keepdim=True))
    keys = torch.einsum("kbhs,bcs->kbhc", logits, x)
    query = torch.einsum("kbhc,hdc->kbhd", keys, _by_head(pool, pool.k_proj, dtype))
    query = (query * _scale(pool)).flatten(2)  # (K, B, C)
    through_query: Tensor = query @ pool.q_proj.weight.to(dtype)
    return mixed.sum(2) + through_query


def contributions(
    pool: Any, features: Tensor, direction: Direction, *, centred: bool
) -> tuple[Tensor, Tensor]:
    r"""What head h adds at position j, (K, B, H, h, w), and the rest (K, B).

    With :math:`m_h = W_{V,h}^T (W_C^T d)_h`, and the mean token's part spread over the positions,

    .. math:: r_{hj} = a_{hj} (m_h \cdot x_j + (W_C^T d)_h \cdot b_{V,h})
        + \frac{a_{h0}}{hw} \, m_h \cdot A_j

    The rest has the biases beside it and the mean token's own position. `centred` takes every
    position's value less their mean.
    """
    with torch.autocast(features.device.type, enabled=False):
        x = _tokens(pool, features)  # (B, C, 1 + hw)
        attention, dtype, count = _attention(pool, x), x.dtype, x.shape[-1] - 1
        output = pool.c_proj
        rows = direction.rows.to(dtype)
        constant = direction.constant + (rows @ output.bias.to(dtype)) * direction.scale
        joined = rows @ output.weight.to(dtype)  # (K, B or 1, C)
        by_head = joined.view(*joined.shape[:2], pool.num_heads, -1)
        mixed = torch.einsum("kbhd,hdc->kbhc", by_head, _by_head(pool, pool.v_proj, dtype))
        mixed = mixed.expand(-1, len(x), -1, -1)
        bias = (by_head * pool.v_proj.bias.to(dtype).view(pool.num_heads, -1)).sum(-1)
        bias = bias.expand(-1, len(x), -1)[..., None]  # (K, B, H, 1)
        positions = x[..., 1:]
        mean = features.to(dtype).flatten(2)
        if centred:
            positions = positions - positions.mean(-1, keepdim=True)
            mean = mean - mean.mean(-1, keepdim=True)
        own = torch.einsum("kbhc,bcs->kbhs", mixed, positions)
        own = attention[..., 1:] * (own if centred else own + bias)
        spread = torch.einsum("kbhc,bcs->kbhs", mixed, mean) * (attention[..., :1] / count)
        maps = (own + spread) * direction.scale[:, None, None]
        whole = ((torch.einsum("kbhc,bcs->kbhs", mixed, x) + bias) * attention).sum((-1, -2))
        rest = whole * direction.scale + constant - maps.sum((-1, -2))
        return maps.unflatten(-1, features.shape[-2:]), rest  # type: ignore[no-untyped-call]


def _tokens(pool: Any, features: Tensor) -> Tensor:
    """The mean and the positions with their embeddings, (B, C, s)."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    x = features.to(dtype).flatten(2)
    positions: Tensor = pool.positional_embedding.to(dtype).T
    return torch.cat([x.mean(-1, keepdim=True), x], -1) + positions


def _attention(pool: Any, x: Tensor) -> Tensor:
    """The attention of the mean token, (B, H, s), from no key."""
    projection = pool.q_proj
    query = F.linear(x[..., 0], projection.weight.to(x.dtype), projection.bias.to(x.dtype))
    query = query.view(len(x), pool.num_heads, -1) * _scale(pool)
    keys = _by_head(pool, pool.k_proj, x.dtype)
    return (torch.einsum("bhd,hdc->bhc", query, keys) @ x).softmax(-1)


def _by_head(pool: Any, linear: Any, dtype: torch.dtype) -> Tensor:
    weight: Tensor = linear.weight.to(dtype)
    return weight.view(pool.num_heads, -1, weight.shape[1])  # (H, C / H, C)


def _scale(pool: Any) -> float:
    return float((pool.q_proj.out_features // pool.num_heads) ** -0.5)
