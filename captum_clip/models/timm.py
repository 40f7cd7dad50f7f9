"""Towers of timm, in OpenCLIP or alone: SigLIP, EVA, PE-Core, ViTamin, MobileCLIP, ConvNeXt.

One layer covers three blocks (`Block`, `EvaBlock`, `EvaBlockPostNorm`) with three attentions.
"""

from typing import Any

from torch import nn

from ..errors import UnsupportedModelError
from .adapter import Family
from .attentions import AttentionLayer, LatentPoolingHead
from .steps import Linear, Residual, Step, flattened
from .towers import POOLINGS, ResNetTower, ViTTower

FORCED_SIZE = "by name, with {image_size}, or with open_clip's force_image_size"
_IMAGE_SIZE = "with timm.create_model(..., img_size={side})"
# Classes of blocks have these paths to the step after their attention, and to the MLP's branch.
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
        self.maps = ("qkv", "proj")
        if block.attn.qkv is None:
            self.maps = ("q_proj", "k_proj", "v_proj", "proj")
        # A user's block may be derived from one of these, and the nearest base counts.
        for base in reversed(type(block).__mro__):
            if base.__name__ in _BLOCKS:
                self.branch_paths, self.mlp_paths = _BLOCKS[base.__name__]

    def input_maps(self) -> list[Linear]:
        maps = super().input_maps()
        attention = self.attention
        if attention.qkv is None or getattr(attention.qkv, "bias", None) is not None:
            return maps
        # EVA never calls `qkv`. It has the biases beside that map, the one of the keys as zeros.
        with_biases = []
        for name, linear in zip("qkv", maps, strict=True):
            bias = getattr(attention, f"{name}_bias", None)
            with_biases.append(Linear(linear.weight, bias))
        return with_biases


class TimmTower(ViTTower):
    """A `VisionTransformer` or `Eva` of timm, alone or as the trunk of OpenCLIP's `TimmModel`."""

    @property
    def trunk(self) -> Any:
        """The network of timm."""
        return getattr(self.module, "trunk", self.module)

    @property
    def head(self) -> tuple[Step, ...]:
        trunk = self.trunk
        pool = trunk.attn_pool
        steps: list[Step] = []
        if self.pooling_head is None:
            steps.append(trunk.norm)
        elif pool.mlp is not None:
            steps.append(Residual(flattened([pool.norm, pool.mlp])))
        steps += flattened([trunk.fc_norm, trunk.head_drop, trunk.head])
        # OpenCLIP's TimmModel has a projection around the trunk.
        if trunk is not self.module:
            steps += flattened([self.module.head])
        return tuple(steps)


class TimmCNN(ResNetTower):
    """An OpenCLIP `TimmModel` around a ConvNeXt or FastViT (MobileCLIP S) with average pooling."""

    @property
    def head(self) -> tuple[Step, ...]:
        steps = []
        for name in ("norm", "pre_logits", "drop", "fc"):
            module = getattr(self.module.trunk.head, name, None)
            if module is not None:
                steps.append(module)
        return flattened([*steps, self.module.head])


def timm_tower(module: Any) -> TimmTower | TimmCNN | None:
    """The tower of a network of timm, alone or as a trunk; None if its kind is unknown."""
    from timm.models.convnext import ConvNeXt
    from timm.models.eva import Eva
    from timm.models.fastvit import FastVit
    from timm.models.vision_transformer import VisionTransformer

    trunk: Any = getattr(module, "trunk", module)
    if isinstance(trunk, (VisionTransformer, Eva)):
        return _timm_vit(module, trunk)
    is_fastvit = type(trunk) is FastVit and not trunk.fork_feat
    # With a norm before its head, the last stage would not be what the head pools.
    is_convnext = type(trunk) is ConvNeXt and isinstance(trunk.norm_pre, nn.Identity)
    if not (is_fastvit or is_convnext):
        return None
    stages = {f"stage {i}": stage for i, stage in enumerate(trunk.stages)}
    if is_fastvit:
        stages["final_conv"] = trunk.final_conv
    # The head of the trunk, or OpenCLIP's around it, may pool in another way.
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
    unsupported = _unsupported_part(trunk)
    if unsupported is not None:
        raise UnsupportedModelError(
            f"the {type(trunk).__name__} of timm has {unsupported}; supported are its towers that "
            "pool the class token, the mean of the patches or one latent query, with plain "
            "attention. Merge adapters such as LoRA first, and load the model without quantization."
        )
    pooling = POOLINGS[trunk.global_pool]
    pooling_head = None
    if pooling == "attention":
        pooling_head = LatentPoolingHead(trunk.attn_pool, trunk.norm, "proj")
    stem = trunk.patch_embed
    return TimmTower(
        module=module,
        native=tuple(stem.img_size),
        patch=stem.feat_ratio(as_scalar=False),
        resizable=bool(trunk.dynamic_img_size),
        remade_by=_IMAGE_SIZE if trunk is module else FORCED_SIZE,
        stem=stem,
        layers=tuple(TimmLayer(block) for block in trunk.blocks),
        pooling=pooling,
        prefix=int(trunk.num_prefix_tokens),
        pooling_head=pooling_head,
        steps_before_mean=1,
    )


def _unsupported_part(trunk: Any) -> str | None:
    """Words for the first part of a tower that is not supported, if there is one."""
    from timm.layers import Attention, AttentionRope
    from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
    from timm.models.vision_transformer import Block

    if trunk.global_pool not in POOLINGS:
        return f"the pooling {trunk.global_pool!r}"
    if trunk.global_pool == "avg" and getattr(trunk, "pool_include_prefix", False):
        return "a mean over its prefix tokens too"
    leaves_out_prefix = not getattr(trunk, "pool_include_prefix", True)
    if trunk.global_pool == "map" and trunk.num_prefix_tokens and leaves_out_prefix:
        return "a pool that leaves out the prefix tokens"
    for index, block in enumerate(trunk.blocks):
        attention: Any = getattr(block, "attn", None)
        if not isinstance(block, (Block, EvaBlock, EvaBlockPostNorm)):
            return f"a {type(block).__name__} as layer {index}"
        if not isinstance(attention, (Attention, AttentionRope, EvaAttention)):
            return f"a {type(attention).__name__} in layer {index}"
    return None


TIMM = Family("timm.models", timm_tower, towers=["VisionTransformer", "Eva"])
