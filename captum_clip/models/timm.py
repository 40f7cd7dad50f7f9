"""Towers of timm, in OpenCLIP or alone: SigLIP, EVA, PE-Core, ViTamin, MobileCLIP, ConvNeXt.

One layer covers three blocks (`Block`, `EvaBlock`, `EvaBlockPostNorm`) with three attentions.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..errors import UnsupportedModelError
from .adapter import Family
from .attentions import AttentionLayer, PoolingHead, Which
from .steps import (
    Linear,
    Projections,
    Residual,
    Step,
    flattened,
    linear_maps,
    linear_or_called,
    run_steps,
)
from .towers import AveragePooledTower, Pooling, ViTTower

_POOLINGS: dict[str, Pooling] = {"token": "cls", "avg": "mean", "map": "attention"}
# class -> the parts after the attention, and those of the MLP
_BLOCKS = {
    "Block": (("ls1",), ("norm2", "mlp", "ls2")),
    "EvaBlock": (("gamma_1",), ("norm2", "mlp", "gamma_2")),
    "EvaBlockPostNorm": (("norm1",), ("mlp", "norm2")),
}


class TimmLayer(AttentionLayer):
    """A block of timm and its attention: qk-norm, rotary positions and an inner norm are known."""

    token_argument = (0, "x")
    inner_norm_part = "norm"
    unknown_parts = ("gate",)

    def __init__(self, block: Any, *, rotary: bool) -> None:
        super().__init__(block, block.attn, block.attn.num_heads)
        self._rotary = rotary
        inputs = ("q_proj", "k_proj", "v_proj") if block.attn.qkv is None else ("qkv",)
        # EVA uses `qkv` by its weight, so a hook on it would never fire
        self.maps = (*inputs, "proj")
        names = (kind.__name__ for kind in type(block).__mro__)
        self.branch_parts, self.mlp_parts = next(_BLOCKS[n] for n in names if n in _BLOCKS)

    @override
    def unsupported(self) -> Iterator[str]:
        yield from super().unsupported()
        if getattr(self.attention, "num_kv_groups", 1) > 1:
            yield "grouped queries"

    @override
    def projections(self) -> Projections:
        attention, maps = self.attention, super().projections()
        if attention.qkv is None or getattr(attention.qkv, "bias", None) is not None:
            return maps
        # EVA keeps them next to its map, that of the keys as zeros
        biases = [getattr(attention, f"{name}_bias", None) for name in "qkv"]
        inputs = (Linear(m.weight, bias) for m, bias in zip(maps[:3], biases, strict=True))
        return Projections._make((*inputs, maps.output))

    @override
    def context(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return kwargs.get("rope")

    @property
    @override
    def plain(self) -> bool:
        norms = (self.attention.q_norm, self.attention.k_norm)
        return not self._rotary and all(isinstance(norm, nn.Identity) for norm in norms)

    @override
    def rotated(self, which: Which, heads: Tensor, context: Any) -> Tensor:
        from timm.layers import apply_rot_embed_cat

        attention = self.attention
        heads = attention.q_norm(heads) if which == "query" else attention.k_norm(heads)
        prefix = getattr(attention, "num_prefix_tokens", 0)  # these have no place to turn by
        if context is None or heads.shape[2] <= prefix:
            return heads
        half = getattr(attention, "rotate_half", False)
        patches = apply_rot_embed_cat(heads[:, :, prefix:], context, half=half)
        return torch.cat([heads[:, :, :prefix], patches.type_as(heads)], dim=2)


class TimmPoolingHead(PoolingHead):
    """An `AttentionPoolLatent` with one latent query."""

    query_part = "latent"
    maps = ("q", "kv", "proj")
    splits = ((), ("key", "value"))

    def __init__(self, pool: Any, norm: nn.Module) -> None:
        # the pool may add positions first: what its map of keys and values sees are the tokens
        super().__init__(pool.kv, pool.proj, pool.num_heads)
        self.owner = self.head = pool
        self.norm, self.modules = norm, (norm, pool)

    @override
    def unsupported(self) -> Iterator[str]:
        yield from super().unsupported()
        if self.head.latent_len != 1:
            yield f"{self.head.latent_len} latent queries"
        if not all(isinstance(norm, nn.Identity) for norm in (self.head.q_norm, self.head.k_norm)):
            yield "norms of queries and keys"

    def projections(self) -> Projections:
        """See `Attention`."""
        pool = self.head
        both = Linear.of(pool.kv)
        key, value = linear_maps(both.weight.chunk(2), both.bias)
        return Projections(Linear.of(pool.q), key, value, linear_or_called(pool.proj))

    @override
    def query(self) -> Tensor:
        query = run_steps((linear_or_called(self.head.q),), self.embedded_query())
        return query.view(self.heads, -1)

    @override
    def keyed(self, hidden: Tensor) -> Tensor:
        normed, positions = super().keyed(hidden), self.head.pos_embed
        return normed if positions is None else normed + positions.to(normed.dtype)


class TimmTower(ViTTower):
    """A `VisionTransformer` or `Eva` of timm, alone or as the trunk of OpenCLIP's `TimmModel`."""

    @property
    def trunk(self) -> Any:
        """The network of timm."""
        return getattr(self.module, "trunk", self.module)

    @override
    def larger(self, side: int) -> str:
        if self.trunk is self.module:
            return f"with timm.create_model(..., img_size={side})"
        return f"by name, with `image_size={side}`, or with open_clip's force_image_size"

    @property
    @override
    def head(self) -> tuple[Step, ...]:
        trunk, pool, first = self.trunk, self.trunk.attn_pool, []
        if self.pooling_head is None:
            first = [trunk.norm]
        elif pool.mlp is not None:
            first = [Residual(flattened([pool.norm, pool.mlp]))]
        after = [trunk.fc_norm, trunk.head_drop, trunk.head]
        after += [] if trunk is self.module else [self.module.head]
        return (*first, *flattened(after))


class TimmCNN(AveragePooledTower):
    """An OpenCLIP `TimmModel` whose trunk, a ConvNeXt or FastViT (MobileCLIP S), ends so."""

    @property
    @override
    def embedding_dim(self) -> int:
        weight = next(self.module.parameters())
        with torch.no_grad():
            return self._embed(weight.new_zeros(1, self.module.trunk.head.in_features)).shape[-1]

    @override
    def head_steps(self) -> Sequence[Step]:
        head = self.module.trunk.head
        parts = (getattr(head, name, None) for name in ("norm", "pre_logits", "drop", "fc"))
        return flattened([*(part for part in parts if part is not None), self.module.head])


def tower_of(module: Any) -> TimmTower | TimmCNN | None:
    """The tower of a network of timm, alone or as a trunk; None where it is of no known kind."""
    from timm.models.convnext import ConvNeXt
    from timm.models.eva import Eva
    from timm.models.fastvit import FastVit
    from timm.models.vision_transformer import VisionTransformer

    trunk: Any = getattr(module, "trunk", module)
    if isinstance(trunk, (VisionTransformer, Eva)):
        return _vit_of(module, trunk)
    stages = {f"stage {i}": stage for i, stage in enumerate(getattr(trunk, "stages", ()))}
    if type(trunk) is FastVit and not trunk.fork_feat:
        stages["final_conv"] = trunk.final_conv
    elif type(trunk) is not ConvNeXt or not isinstance(trunk.norm_pre, nn.Identity):
        return None
    # the head of the trunk or of OpenCLIP may pool in another way
    averages = getattr(trunk.head.global_pool, "pool_type", None) == "avg"
    if not averages or hasattr(module.head, "pool"):
        return None
    stride = int(trunk.feature_info[-1]["reduction"])
    return TimmCNN(
        module=module,
        native=tuple(module.image_size),
        patch=(stride, stride),
        resizable=True,  # there are no positions
        stages=dict(reversed(stages.items())),
        head_modules=(trunk.head, module.head),
    )


def _vit_of(module: nn.Module, trunk: Any) -> TimmTower:
    for what in _unsupported(trunk):
        raise UnsupportedModelError(
            f"the {type(trunk).__name__} of timm has {what}; supported are its towers that pool "
            "the class token, the mean of the patches or one latent query, with plain attention. "
            "Merge adapters such as LoRA first, and load the model without quantisation."
        )
    rotary = getattr(trunk, "rope", None) is not None
    pooling = _POOLINGS[trunk.global_pool]
    pool = TimmPoolingHead(trunk.attn_pool, trunk.norm) if pooling == "attention" else None
    embed = trunk.patch_embed
    return TimmTower(
        module=module,
        native=tuple(embed.img_size),
        patch=embed.feat_ratio(as_scalar=False),
        resizable=bool(trunk.dynamic_img_size),
        patches=embed,
        layers=tuple(TimmLayer(block, rotary=rotary) for block in trunk.blocks),
        pooling=pooling,
        prefix=int(trunk.num_prefix_tokens),
        pooling_head=pool,
        steps_before_mean=1,
    )


def _unsupported(trunk: Any) -> Iterator[str]:
    """The parts and properties of a tower that are not supported, in words."""
    from timm.layers import Attention, AttentionRope
    from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
    from timm.models.vision_transformer import Block

    if trunk.global_pool not in _POOLINGS:
        yield f"the pooling {trunk.global_pool!r}"
    if getattr(trunk, "rope_mixed", False):
        yield "rotary positions of each head's own"
    if trunk.global_pool == "avg" and getattr(trunk, "pool_include_prefix", False):
        yield "a mean over its prefix tokens too"
    left_out = trunk.num_prefix_tokens and not getattr(trunk, "pool_include_prefix", True)
    if trunk.global_pool == "map" and left_out:
        yield "a pool that leaves out the prefix tokens"
    for index, block in enumerate(trunk.blocks):
        attention: Any = getattr(block, "attn", None)
        if not isinstance(block, (Block, EvaBlock, EvaBlockPostNorm)):
            yield f"a {type(block).__name__} as layer {index}"
        elif not isinstance(attention, (Attention, AttentionRope, EvaAttention)):
            yield f"a {type(attention).__name__} in layer {index}"


FAMILIES = (Family("timm.models", tower_of, towers=["VisionTransformer", "Eva"]),)
