"""Small random OpenCLIP models with the vision transformers of timm, one for each kind of block."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from tests import builders

SHAPE: dict[str, Any] = {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 4}
PATCHES: dict[str, Any] = {**SHAPE, "patch_size": 8, "num_classes": 24}
ROTARY: dict[str, Any] = {"use_rot_pos_emb": True, "ref_feat_shape": (3, 3)}


def in_open_clip(trunk: nn.Module, seed: int, proj: str | None = None) -> builders.Small:
    """The trunk in a model of OpenCLIP."""
    built = builders.timm_convnext(timm_pool="avg" if proj is None else "", timm_proj=proj)
    visual = built.model.visual
    embed: Any = trunk.patch_embed
    visual.trunk, visual.image_size = trunk, embed.img_size
    if proj == "linear":
        visual.head.proj = nn.Linear(32, 24, bias=False)
    return builders.timm_small(seed, built.model, embed.img_size[0])


@builders.once
def vision_transformer(seed: int = 0, proj: str | None = None, **options: Any) -> builders.Small:
    """A `VisionTransformer` with `Block`."""
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng():
        trunk = VisionTransformer(**{**PATCHES, **options})
    return in_open_clip(trunk, seed, proj)


@builders.once
def eva(seed: int = 0, **options: Any) -> builders.Small:
    """An `Eva` with `EvaBlock` or `EvaBlockPostNorm`."""
    from timm.models.eva import Eva

    with torch.random.fork_rng():
        trunk = Eva(**{**PATCHES, "global_pool": "token", **options})
    return in_open_clip(trunk, seed)


def timm_siglip(seed: int = 0) -> builders.Small:
    """As SigLIP in OpenCLIP: patches alone, read by a latent query; no projection."""
    options: dict[str, Any] = {
        "class_token": False,
        "global_pool": "map",
        "num_classes": 0,
        "embed_dim": 24,
    }
    return vision_transformer(seed, **options)


def timm_gap(seed: int = 0) -> builders.Small:
    """As `vit_medium_patch16_gap_256`: the mean of all tokens, LayerScale, no bias of queries."""
    options: dict[str, Any] = {
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
        "init_values": 0.5,
    }
    return vision_transformer(seed, "linear", qkv_bias=False, num_classes=0, **options)


def timm_registers(seed: int = 0, **options: Any) -> builders.Small:
    """CLS before two registers, qk-norm and an inner norm in `Attention`."""
    norms: dict[str, Any] = {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True}
    return vision_transformer(seed, reg_tokens=2, **norms, **options)


def mobileclip(seed: int = 0) -> builders.Small:
    """As MobileCLIP-B: a convolutional stem before the blocks."""
    from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed

    stem = ConvStem(channels=(8, 8, 32), stride=(2, 2, 2), kernel_size=(2, 2, 2), padding=0)
    layer = partial(HybridEmbed, backbone=stem, proj=False)
    return vision_transformer(seed, embed_layer=layer, patch_size=1, no_embed_class=True)


def vitamin(seed: int = 0) -> builders.Small:
    """As ViTamin: stages of convolutions, gated MLPs, the normed mean of all tokens."""
    from timm.models.vitamin import GeGluMlp, HybridEmbed, MbConvStages, VitCfg, VitConvCfg

    shape = VitCfg(
        embed_dim=(8, 8, 32),
        depths=(1, 1, 1),
        stem_width=8,
        conv_cfg=VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6),
        head_type="1d",
    )
    layer = partial(HybridEmbed, backbone=MbConvStages(cfg=shape), proj=False)
    pooled = {"class_token": False, "global_pool": "avg", "num_classes": 0}
    mlp = {"mlp_layer": GeGluMlp, "mlp_ratio": 2.0}
    return vision_transformer(
        seed, "linear", embed_layer=layer, patch_size=1, img_size=64, **pooled, **mlp
    )


def eva01(seed: int = 0) -> builders.Small:
    """As EVA01: one map for queries, keys and values, its biases next to it; LayerScale."""
    return eva(seed, init_values=0.5)


def eva02(seed: int = 0, **options: Any) -> builders.Small:
    """As EVA02-CLIP: rotary positions, an inner norm, SwiGLU, separate maps."""
    norms = {"scale_mlp": True, "scale_attn_inner": True, "swiglu_mlp": True, "qkv_fused": False}
    return eva(seed, **{**norms, **ROTARY, **options})


def eva02_e(seed: int = 0) -> builders.Small:
    """As EVA02-E: norms after the attention and the MLP."""
    return eva(seed, use_post_norm=True)


def pe_core(seed: int = 0) -> builders.Small:
    """As PE-Core: rotary positions, CLS among the keys of the pool, which has its own heads."""
    rotary = {**ROTARY, "rope_grid_offset": 1.0, "rope_grid_indexing": "xy", "attn_type": "rope"}
    pool = {"global_pool": "map", "attn_pool_num_heads": 8, "attn_pool_mlp_ratio": 2.0}
    return eva(seed, use_pre_transformer_norm=True, **rotary, **pool)


BUILDERS = {
    "timm_siglip": timm_siglip,
    "timm_gap": timm_gap,
    "timm_registers": timm_registers,
    "mobileclip": mobileclip,
    "vitamin": vitamin,
    "eva01": eva01,
    "eva02": eva02,
    "eva02_e": eva02_e,
    "pe_core": pe_core,
}
