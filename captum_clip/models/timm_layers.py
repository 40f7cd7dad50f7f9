"""The blocks, attentions and pooling head of timm's vision transformers.

One layer covers three blocks (`Block`, `EvaBlock`, `EvaBlockPostNorm`) with three attentions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from .multihead import linear_maps
from .steps import Linear
from .towers import AttentionLayer, Exposed, Probe, Projections, Which
from .unmodified import nonlinear_parts

# class -> what follows the attention, and the MLP
_BLOCKS = {
    "Block": (("ls1",), ("norm2", "mlp", "ls2")),
    "EvaBlock": (("gamma_1",), ("norm2", "mlp", "gamma_2")),
    "EvaBlockPostNorm": (("norm1",), ("mlp", "norm2")),
}


class TimmLayer(AttentionLayer):
    """A block of timm and its attention: qk-norm, rotary positions and an inner norm are known."""

    block: Any
    attention: Any
    token_argument = (0, "x")
    inner_norm_part = "norm"

    def __init__(self, block: Any, *, rotary: bool) -> None:
        super().__init__(block, block.attn, block.attn.num_heads)
        self._rotary = rotary
        names = (kind.__name__ for kind in type(block).__mro__)
        self.branch_parts, self.mlp_parts = next(_BLOCKS[n] for n in names if n in _BLOCKS)

    @override
    def projections(self) -> Projections:
        own = self.attention
        if own.qkv is None:
            inputs = [Linear.of(module) for module in (own.q_proj, own.k_proj, own.v_proj)]
        else:
            inputs = linear_maps(own.qkv.weight.chunk(3), own.qkv.bias)
            if own.qkv.bias is None:  # EVA keeps them beside its map, that of the keys as zeros
                biases = (getattr(own, f"{name}_bias", None) for name in "qkv")
                inputs = [Linear(m.weight, bias) for m, bias in zip(inputs, biases, strict=True)]
        return Projections._make((*inputs, Linear.of(own.proj)))

    @property
    @override
    def scale(self) -> float:
        return float(self.attention.scale)

    @override
    def context(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return kwargs.get("rope")

    @property
    @override
    def plain(self) -> bool:
        norms = (self.attention.q_norm, self.attention.k_norm)
        return not self._rotary and all(isinstance(norm, nn.Identity) for norm in norms)

    @override
    def turned(self, which: Which, heads: Tensor, context: Any) -> Tensor:
        from timm.layers import apply_rot_embed_cat

        own = self.attention
        heads = own.q_norm(heads) if which == "query" else own.k_norm(heads)
        prefix = getattr(own, "num_prefix_tokens", 0)  # these have no place to turn by
        if context is None or heads.shape[2] <= prefix:
            return heads
        half = getattr(own, "rotate_half", False)
        patches = apply_rot_embed_cat(heads[:, :, prefix:], context, half=half)
        return torch.cat([heads[:, :, :prefix], patches.type_as(heads)], dim=2)

    @override
    def qkv_modules(self) -> Mapping[Exposed, tuple[nn.Module, bool]]:
        # EVA's `qkv` is used by its weight, so a hook on it would never fire
        own, modules = self.attention, dict(super().qkv_modules())
        if own.qkv is None:
            modules |= {"query": (own.q_proj, True), "key": (own.k_proj, True)}
            modules["value"] = (own.v_proj, True)
        return modules


class TimmProbe(Probe):
    """An `AttentionPoolLatent` with one latent query."""

    def __init__(self, pool: Any, norm: nn.Module) -> None:
        # the pool may add positions first: what its map of keys and values sees are the tokens
        super().__init__(pool.kv, pool.proj, pool.num_heads)
        self.pool = pool
        self.norm, self.modules = norm, (norm, pool)

    @override
    def projections(self) -> Projections:
        pool = self.pool
        key, value = linear_maps(pool.kv.weight.chunk(2), pool.kv.bias)
        return Projections(Linear.of(pool.q), key, value, Linear.of(pool.proj))

    @property
    @override
    def scale(self) -> float:
        return float(self.pool.scale)

    @override
    def query(self) -> Tensor:
        query: Tensor = self.pool.q(self.pool.latent[0, 0])
        return query.view(self.heads, -1)

    @override
    def keyed(self, hidden: Tensor) -> Tensor:
        normed, positions = super().keyed(hidden), self.pool.pos_embed
        return normed if positions is None else normed + positions.to(normed.dtype)


def unsupported_layers(trunk: Any) -> Iterator[str]:
    """What of its blocks is not supported, in words."""
    from timm.layers import Attention, AttentionRope
    from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
    from timm.models.vision_transformer import Block

    for index, block in enumerate(trunk.blocks):
        attention: Any = getattr(block, "attn", None)
        if not isinstance(block, (Block, EvaBlock, EvaBlockPostNorm)):
            yield f"a {type(block).__name__} as layer {index}"
        elif not isinstance(attention, (Attention, AttentionRope, EvaAttention)):
            yield f"a {type(attention).__name__} in layer {index}"
        else:
            yield from _unsupported_attention(index, attention)


def _unsupported_attention(index: int, attention: Any) -> Iterator[str]:
    if getattr(attention, "gate", None) is not None:
        yield f"a gated attention in layer {index}"
    if getattr(attention, "num_kv_groups", 1) > 1:
        yield f"grouped queries in layer {index}"
    names = ("q_proj", "k_proj", "v_proj") if attention.qkv is None else ("qkv",)
    for what in nonlinear_parts(attention, (*names, "proj")):
        yield f"{what} in layer {index}"


def unsupported_pool(pool: Any) -> Iterator[str]:
    """What of an `AttentionPoolLatent` is not supported, in words."""
    if pool.latent_len != 1:
        yield f"a pool with {pool.latent_len} latent queries"
    if not all(isinstance(norm, nn.Identity) for norm in (pool.q_norm, pool.k_norm)):
        yield "a pool with norms of queries and keys"
    for what in nonlinear_parts(pool, ("q", "kv", "proj")):
        yield f"a pool with {what}"
