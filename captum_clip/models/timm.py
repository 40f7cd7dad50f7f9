"""Towers of timm, in OpenCLIP or alone: SigLIP, EVA, PE-Core, ViTamin, MobileCLIP, ConvNeXt.

One layer covers three blocks (`Block`, `EvaBlock`, `EvaBlockPostNorm`) with three attentions.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..errors import UnsupportedModelError
from .adapter import Family
from .attentions import AttentionLayer, LatentPoolingHead
from .steps import Linear, Residual, Step, flattened
from .towers import POOLINGS, ResNetTower, ViTTower

FORCED_SIZE = "by name, with {image_size}, or with open_clip's force_image_size"
_IMAGE_SIZE = "with timm.create_model(..., img_size={side})"
# The class of a block -> the paths of what follows its attention, and of the MLP's branch.
_BLOCKS = {
    "Block": (("ls1",), ("norm2", "mlp", "ls2")),
    "EvaBlock": (("gamma_1",), ("norm2", "mlp", "gamma_2")),
    "EvaBlockPostNorm": (("norm1",), ("mlp", "norm2")),
}


class TimmLayer(AttentionLayer):
    """A block of timm and its attention, which may have an inner norm."""

    inner_norm_name = "norm"

    def __init__(self, block: Any) -> None:
        super().__init__(block, block.attn, block.attn.num_heads)
        inputs = ("q_proj", "k_proj", "v_proj") if block.attn.qkv is None else ("qkv",)
        self.maps = (*inputs, "proj")
        names = (kind.__name__ for kind in type(block).__mro__)
        self.branch_paths, self.mlp_paths = next(_BLOCKS[n] for n in names if n in _BLOCKS)

    def input_maps(self) -> list[Linear]:
        attention, maps = self.attention, super().input_maps()
        if attention.qkv is None or getattr(attention.qkv, "bias", None) is not None:
            return maps
        # EVA keeps its biases next to its map, that of the keys as zeros, and never calls `qkv`.
        biases = [getattr(attention, f"{name}_bias", None) for name in "qkv"]
        return [Linear(m.weight, bias) for m, bias in zip(maps, biases, strict=True)]


class TimmTower(ViTTower):
    """A `VisionTransformer` or `Eva` of timm, alone or as the trunk of OpenCLIP's `TimmModel`."""

    @property
    def trunk(self) -> Any:
        """The network of timm."""
        return getattr(self.module, "trunk", self.module)

    @property
    def head(self) -> tuple[Step, ...]:
        trunk, pool = self.trunk, self.trunk.attn_pool
        steps: list[Step] = []
        if self.pooling_head is None:
            steps.append(trunk.norm)
        elif pool.mlp is not None:
            steps.append(Residual(flattened([pool.norm, pool.mlp])))
        steps += flattened([trunk.fc_norm, trunk.head_drop, trunk.head])
        if trunk is not self.module:  # OpenCLIP's TimmModel has a projection around the trunk.
            steps += flattened([self.module.head])
        return tuple(steps)


class TimmCNN(ResNetTower):
    """An OpenCLIP `TimmModel` whose trunk, a ConvNeXt or FastViT (MobileCLIP S), ends so."""

    @property
    def head(self) -> tuple[Step, ...]:
        head = self.module.trunk.head
        inner = (getattr(head, name, None) for name in ("norm", "pre_logits", "drop", "fc"))
        return flattened([*(module for module in inner if module is not None), self.module.head])


def timm_tower(module: Any) -> TimmTower | TimmCNN | None:
    """The tower of a network of timm, alone or as a trunk; None if its kind is unknown."""
    from timm.models.convnext import ConvNeXt
    from timm.models.eva import Eva
    from timm.models.fastvit import FastVit
    from timm.models.vision_transformer import VisionTransformer

    trunk: Any = getattr(module, "trunk", module)
    if isinstance(trunk, (VisionTransformer, Eva)):
        return _timm_vit(module, trunk)
    stages = {f"stage {i}": stage for i, stage in enumerate(getattr(trunk, "stages", ()))}
    if type(trunk) is FastVit and not trunk.fork_feat:
        stages["final_conv"] = trunk.final_conv
    elif type(trunk) is not ConvNeXt or not isinstance(trunk.norm_pre, nn.Identity):
        return None
    # The head of the trunk, or the one of OpenCLIP, may pool in another way.
    averages = getattr(trunk.head.global_pool, "pool_type", None) == "avg"
    if not averages or hasattr(module.head, "pool"):
        return None
    stride = int(trunk.feature_info[-1]["reduction"])
    return TimmCNN(
        module=module,
        native=tuple(module.image_size),
        patch=(stride, stride),
        resizable=True,  # There are no positions.
        stages=dict(reversed(stages.items())),
    )


def _timm_vit(module: nn.Module, trunk: Any) -> TimmTower:
    for what in _unsupported(trunk):
        raise UnsupportedModelError(
            f"the {type(trunk).__name__} of timm has {what}; supported are its towers that pool "
            "the class token, the mean of the patches or one latent query, with plain attention. "
            "Merge adapters such as LoRA first, and load the model without quantization."
        )
    pooling = POOLINGS[trunk.global_pool]
    is_latent, embed = pooling == "attention", trunk.patch_embed
    return TimmTower(
        module=module,
        native=tuple(embed.img_size),
        patch=embed.feat_ratio(as_scalar=False),
        resizable=bool(trunk.dynamic_img_size),
        remade_by=_IMAGE_SIZE if trunk is module else FORCED_SIZE,
        stem=embed,
        layers=tuple(TimmLayer(block) for block in trunk.blocks),
        pooling=pooling,
        prefix=int(trunk.num_prefix_tokens),
        pooling_head=LatentPoolingHead(trunk.attn_pool, trunk.norm, "proj") if is_latent else None,
        steps_before_mean=1,
    )


def _unsupported(trunk: Any) -> Iterator[str]:
    """What of a tower is not supported, in words."""
    from timm.layers import Attention, AttentionRope
    from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
    from timm.models.vision_transformer import Block

    if trunk.global_pool not in POOLINGS:
        yield f"the pooling {trunk.global_pool!r}"
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


TIMM = Family("timm.models", timm_tower, towers=["VisionTransformer", "Eva"])
