r"""CLIP's ResNet in OpenCLIP: its attention pool from the single mean query, and its gradient.

With tokens :math:`x_j = A_j + p_j` for the positions of the features A, :math:`x_0` for their mean,

.. math:: q = W_Q x_0 + b_Q, \quad a_{hj} = \mathrm{softmax}_j(s \, (W_{K,h}^T q_h) \cdot x_j),

.. math:: o_h = W_{V,h} \sum_j a_{hj} x_j + b_{V,h}, \quad e = W_C \, o + b_C.

A shift :math:`\delta` of all positions, the mean included, enters the query and the values; the
same shift of every key leaves the softmax as it is. Half precision is computed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from .open_clip_vit import native_grid
from .steps import Direction, Linear, head_products, head_sums, run_steps, split_heads
from .towers import ResNetTower


@dataclass(frozen=True, eq=False)
class OpenClipResNet(ResNetTower):
    """A `ModifiedResNet` with its attention pool."""

    module: Any

    @override
    def grid(self, height: int, width: int) -> tuple[int, int]:
        side = int(self.module.image_size)
        return native_grid((height, width), (side, side), (side // 32, side // 32))

    @property
    @override
    def embedding_dim(self) -> int:
        return int(self.module.attnpool.c_proj.out_features)

    @override
    def stages(self) -> Mapping[str, nn.Module]:
        return {
            name: getattr(self.module, name) for name in ("layer4", "layer3", "layer2", "layer1")
        }

    @override
    def head_modules(self) -> Sequence[nn.Module]:
        return (self.module.attnpool,)

    @override
    def pool(self, features: Tensor) -> Tensor:
        pool = self.module.attnpool
        with torch.autocast(features.device.type, enabled=False):
            x = _tokens(pool, features)
            heads = head_sums(Linear.of(pool.v_proj), _attention(pool, x)[None], x)[0]
            return run_steps((Linear.of(pool.c_proj),), heads.flatten(1))

    @override
    def shift_gradient(
        self, features: Tensor, gradient: Tensor, *, detached: bool = False
    ) -> Tensor:
        r"""The gradient of a shift, with :math:`g_h = (W_C^T \nabla e)_h`.

        .. math:: \nabla a_{hj} = g_h \cdot W_{V,h} x_j, \quad
            \nabla l = a \odot (\nabla a - \textstyle\sum_j a_j \nabla a_j), \quad
            \nabla \delta = W_V^T g + W_Q^T \big(s \sum_j \nabla l_{hj} W_{K,h} x_j\big)_h

        Held, :math:`W_V^T g` alone.
        """
        pool = self.module.attnpool
        with torch.autocast(features.device.type, enabled=False):
            x = _tokens(pool, features)
            query, key, value, output = (
                getattr(pool, f"{name}_proj").weight.to(x.dtype) for name in "qkvc"
            )
            joined = gradient.to(x.dtype) @ output  # (K, B, C)
            if detached:
                through_values: Tensor = joined @ value
                return through_values
            attention = _attention(pool, x)
            vectors = split_heads(joined, pool.num_heads)
            # biases, the same for every token, are cancelled by the softmax
            weights = head_products(Linear(value, None), vectors, x)
            logits = attention * (weights - (attention * weights).sum(-1, keepdim=True))
            through_query = head_sums(Linear(key, None), logits * _scale(pool), x).flatten(2)
            result: Tensor = joined @ value + through_query @ query
            return result

    @override
    def contributions(
        self, features: Tensor, direction: Direction, *, centred: bool
    ) -> tuple[Tensor, Tensor]:
        r"""What head h adds at position j, with :math:`g_h = (W_C^T d)_h`, and the rest.

        .. math:: r_{hj} = a_{hj} \, g_h \cdot (W_{V,h} x_j + b_{V,h})
            + \frac{a_{h0}}{hw} \, g_h \cdot W_{V,h} A_j

        The mean token's part is spread over the positions; the rest has the biases beside it and
        the mean token's own position.
        """
        pool = self.module.attnpool
        with torch.autocast(features.device.type, enabled=False):
            x = _tokens(pool, features)
            attention, output = _attention(pool, x), pool.c_proj
            rows, scale = direction.rows.to(x.dtype), direction.scale
            constant = direction.constant + rows @ output.bias.to(x.dtype) * scale
            vectors = split_heads(rows @ output.weight.to(x.dtype), pool.num_heads)
            # the values of positions and of their embeddings, which no image changes, apart
            value, positions = Linear.of(pool.v_proj), pool.positional_embedding.to(x.dtype)[None]
            # (K, B, H, hw), and (K, B or 1, H, 1 + hw)
            plain = head_products(Linear(value.weight, None), vectors, _flat(features))
            place = head_products(value, vectors, positions)
            own = plain + place[..., 1:]
            first, others = attention[..., :1], attention[..., 1:]
            whole = (own * others).sum(-1) + (plain.mean(-1) + place[..., 0]) * first[..., 0]
            if centred:
                own = own - own.mean(-1, keepdim=True)
                plain = plain - plain.mean(-1, keepdim=True)
            scale = scale[:, None, None]
            maps = own * (others * scale) + plain * (first * scale / plain.shape[-1])
            rest = whole.sum(-1) * direction.scale + constant - maps.sum((-1, -2))
            return maps.unflatten(-1, features.shape[-2:]), rest  # type: ignore[no-untyped-call]


def _flat(features: Tensor) -> Tensor:
    """The positions (B, hw, C), in at least float32."""
    return features.to(torch.promote_types(features.dtype, torch.float32)).flatten(2).mT


def _tokens(pool: Any, features: Tensor) -> Tensor:
    """The mean and the positions with their embeddings, (B, s, C)."""
    x = _flat(features)
    positions: Tensor = pool.positional_embedding.to(x.dtype)
    return torch.cat([x.mean(1, keepdim=True), x], 1) + positions


def _attention(pool: Any, x: Tensor) -> Tensor:
    """The attention of the mean token, (B, H, s), from no key."""
    query = split_heads(run_steps((Linear.of(pool.q_proj),), x[:, 0]), pool.num_heads)
    key = Linear(pool.k_proj.weight, None)
    return head_products(key, query[None] * _scale(pool), x)[0].softmax(-1)


def _scale(pool: Any) -> float:
    return float((pool.q_proj.out_features // pool.num_heads) ** -0.5)
