"""Vision transformers of timm, in OpenCLIP or alone: SigLIP, EVA, PE-Core, ViTamin, MobileCLIP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from typing_extensions import override

from ..errors import InputError, UnsupportedModelError
from .steps import Residual, Step, flattened
from .timm_layers import TimmLayer, TimmProbe, unsupported_layers, unsupported_pool
from .towers import Pooling, ViTTower

_POOLINGS: dict[str, Pooling] = {"token": "cls", "avg": "mean", "map": "probe"}


@dataclass(frozen=True, eq=False, kw_only=True)
class TimmTower(ViTTower):
    """A `VisionTransformer` or `Eva` of timm, alone or as the trunk of OpenCLIP's `TimmModel`."""

    module: Any

    @property
    def trunk(self) -> Any:
        """The network of timm."""
        return getattr(self.module, "trunk", self.module)

    @override
    def grid(self, height: int, width: int) -> tuple[int, int]:
        embed = self.trunk.patch_embed
        if (height, width) == tuple(embed.img_size):
            rows, columns = embed.grid_size
            return int(rows), int(columns)
        tall, wide = embed.feat_ratio(as_scalar=False)
        fits = not (height % tall or width % wide) and height >= tall and width >= wide
        if self.trunk.dynamic_img_size and fits:
            return height // tall, width // wide
        raise InputError(
            f"the tower cannot take images of {height} x {width} pixels: as it was made it takes "
            f"its native size only, here {embed.img_size[0]} x {embed.img_size[1]}; resize or crop "
            "them, let the adapter's preprocess do it, or make the model for another size "
            "(force_image_size in OpenCLIP)."
        )

    @property
    @override
    def head(self) -> tuple[Step, ...]:
        trunk, first = self.trunk, []
        if self.probe is None:
            first = [trunk.norm]
        elif trunk.attn_pool.mlp is not None:
            pool = trunk.attn_pool
            first = [Residual(flattened([pool.norm, pool.mlp]))]
        after = [trunk.fc_norm, trunk.head_drop, trunk.head]
        after += [] if trunk is self.module else [self.module.head]
        return (*first, *flattened(after))

    @property
    @override
    def runners(self) -> tuple[nn.Module, ...]:
        return self.module, self.trunk

    @property
    @override
    def patches(self) -> nn.Module:
        module: nn.Module = self.trunk.patch_embed
        return module

    @override
    def nondeterminism(self) -> str | None:
        trunk = self.trunk
        patches = trunk.patch_drop
        if patches is not None and patches.training and getattr(patches, "prob", 0) > 0:
            return f"patch dropout {patches.prob}"
        rope = getattr(trunk, "rope", None)
        if rope is not None and rope.training:
            for what in ("shift_coords", "jitter_coords", "rescale_coords"):
                if getattr(rope, what, None):
                    return f"rotary positions that are moved at random ({what})"
        return super().nondeterminism()


def tower_of(module: nn.Module) -> TimmTower | None:
    """The tower of a vision transformer of timm or of a `TimmModel`; None for anything else.

    Raises:
        UnsupportedModelError: a pooling or an attention that is not supported.
    """
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    trunk: Any = getattr(module, "trunk", module)
    if not isinstance(trunk, (VisionTransformer, Eva)):
        return None
    for what in (*_unsupported_trunk(trunk), *unsupported_layers(trunk)):
        raise UnsupportedModelError(
            f"the {type(trunk).__name__} of timm has {what}; supported are its towers that pool "
            "the class token, the mean of the patches or one latent query, with plain attention. "
            "Merge adapters such as LoRA first, and load the model without quantisation."
        )
    rotary = getattr(trunk, "rope", None) is not None
    pooling = _POOLINGS[trunk.global_pool]
    return TimmTower(
        module=module,
        layers=tuple(TimmLayer(block, rotary=rotary) for block in trunk.blocks),
        pooling=pooling,
        prefix=int(trunk.num_prefix_tokens),
        probe=TimmProbe(trunk.attn_pool, trunk.norm) if pooling == "probe" else None,
        steps_before_mean=1,
    )


def _unsupported_trunk(trunk: Any) -> Iterator[str]:
    """What of the whole and its pool is not supported, in words."""
    if trunk.global_pool not in _POOLINGS:
        yield f"the pooling {trunk.global_pool!r}"
    if getattr(trunk, "rope_mixed", False):
        yield "rotary positions of each head's own"
    if trunk.global_pool == "avg" and getattr(trunk, "pool_include_prefix", False):
        yield "a mean over its prefix tokens too"
    pool = trunk.attn_pool
    if trunk.global_pool != "map" or pool is None:
        return
    if trunk.num_prefix_tokens and not getattr(trunk, "pool_include_prefix", True):
        yield "a pool that leaves out the prefix tokens"
    yield from unsupported_pool(pool)
