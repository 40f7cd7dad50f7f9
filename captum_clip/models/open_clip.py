"""CLIP of OpenCLIP: its vision towers and its adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import override

from ..errors import InputError, UnsupportedModelError
from . import attention_pool, multihead, timm_cnn
from .base import ClipAdapter
from .processors import count_tokens, describe, is_transformers_tokenizer, process, statistics
from .towers import (
    AttentionLayer,
    Exposed,
    Pooling,
    Projections,
    ResNetTower,
    Tower,
    ViTTower,
)
from .unmodified import has_no_foreign_hooks, is_linear, is_unmodified

MODELS = ("CLIP", "CustomTextCLIP")
TOWERS = ("CLIP", "CustomTextCLIP", "VisionTransformer", "ModifiedResNet", "TimmModel")

_POOLINGS: dict[str, Pooling] = {"tok": "cls", "avg": "mean"}


class _OpenClipLayer(AttentionLayer):
    """What the two kinds of blocks have in common: one stacked weight for query, key and value."""

    block: Any
    attention: Any

    def __init__(self, block: Any) -> None:
        super().__init__(block, block.attn, block.attn.num_heads)

    def projections(self) -> Projections:
        """See `AttentionLayer`."""
        return multihead.projections(self.attention)

    @property
    def scale(self) -> float:
        """See `AttentionLayer`."""
        return float(self.attention.head_dim**-0.5)


class MultiheadLayer(_OpenClipLayer):
    """A `ResidualAttentionBlock` with `torch.nn.MultiheadAttention`."""

    def _batch_first(self, tokens: Tensor) -> Tensor:
        return tokens if self.attention.batch_first else tokens.transpose(0, 1)

    def tokens(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """See `AttentionLayer`."""
        return self._batch_first(args[0] if args else kwargs["query"])

    def residual(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """See `AttentionLayer`."""
        return self._batch_first(args[0] if args else kwargs["q_x"])

    def output(self, result: Any) -> Tensor:
        """See `AttentionLayer`."""
        return self._batch_first(result[0])  # (output, weights or None)

    def replaced(self, result: Any, output: Tensor) -> Any:
        """See `AttentionLayer`."""
        return (self._batch_first(output), *result[1:])

    def tail(self, residual: Tensor, attended: Tensor) -> Tensor:
        """See `AttentionLayer`."""
        block = self.block
        hidden = residual + block.ls_1(attended)
        out: Tensor = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
        return out


class CustomLayer(_OpenClipLayer):
    """A `CustomResidualAttentionBlock` with OpenCLIP's own `Attention`."""

    def tokens(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """See `AttentionLayer`."""
        tokens: Tensor = args[0] if args else kwargs["x"]
        return tokens

    residual = tokens

    def output(self, result: Any) -> Tensor:
        """See `AttentionLayer`."""
        output: Tensor = result
        return output

    def replaced(self, result: Any, output: Tensor) -> Any:
        """See `AttentionLayer`."""
        return output

    def tail(self, residual: Tensor, attended: Tensor) -> Tensor:
        """See `AttentionLayer`."""
        block = self.block
        hidden = residual + block.ls_1(block.ln_attn(attended))
        out: Tensor = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
        return out

    def qkv_modules(self) -> Mapping[Exposed, tuple[nn.Module, bool]]:
        """See `AttentionLayer`."""
        return {"heads_output": (self.attention.out_proj, False)}


def _native_grid(
    size: tuple[int, int], native: tuple[int, int], grid: tuple[int, int]
) -> tuple[int, int]:
    if size != native:
        raise InputError(
            f"the tower cannot take images of {size[0]} x {size[1]} pixels: OpenCLIP towers take "
            f"their native size only, here {native[0]} x {native[1]}; resize or crop them, or let "
            "the adapter's preprocess do it."
        )
    return grid


@dataclass(frozen=True, eq=False)
class OpenClipViT(ViTTower):
    """A `VisionTransformer` that pools its CLS token or the mean of its patches."""

    module: Any

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See `Tower`."""
        return _native_grid((height, width), tuple(self.module.image_size), self.module.grid_size)

    def embed(self, token: Tensor) -> Tensor:
        """See `ViTTower`; for one token the order of norm and pooling makes no difference."""
        normed: Tensor = self.module.ln_post(token)
        return normed if self.module.proj is None else normed @ self.module.proj

    @property
    def is_unmodified(self) -> bool:
        """See `Tower`."""
        from open_clip import transformer as library

        block: Any = self.layers[-1].block
        blocks = (library.ResidualAttentionBlock, library.CustomResidualAttentionBlock)
        return (
            is_unmodified(self.module, (library.VisionTransformer,))
            and is_unmodified(self.module.transformer, (library.Transformer,))
            and is_unmodified(block, blocks)
            and is_unmodified(block.attn, (nn.MultiheadAttention, library.Attention))
            and all(has_no_foreign_hooks(module) for module in block.modules())
        )

    @property
    def checkpointing(self) -> bool:
        """See `ViTTower`."""
        return bool(self.module.transformer.grad_checkpointing)

    def nondeterminism(self) -> str | None:
        """See `Tower`; dropout of patches or attention is a number here, not a `Dropout`."""
        patches = self.module.patch_dropout
        if patches.training and getattr(patches, "prob", 0) > 0:
            return f"patch dropout {patches.prob}"
        for layer in self.layers:
            attention: Any = layer.attention
            if attention.training and getattr(attention, "dropout", 0) > 0:
                return f"attention dropout {attention.dropout}"
        return super().nondeterminism()


@dataclass(frozen=True, eq=False)
class OpenClipResNet(ResNetTower):
    """A `ModifiedResNet` with its attention pool."""

    module: Any

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See `Tower`."""
        side = int(self.module.image_size)
        return _native_grid((height, width), (side, side), (side // 32, side // 32))

    @property
    def embedding_dim(self) -> int:
        """See `Tower`."""
        return int(self.module.attnpool.c_proj.out_features)

    @property
    def is_unmodified(self) -> bool:
        """See `Tower`."""
        from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet

        pool = self.module.attnpool
        return (
            is_unmodified(self.module, (ModifiedResNet,))
            and is_unmodified(pool, (AttentionPool2d,))
            and all(is_linear(getattr(pool, f"{name}_proj")) for name in "qkvc")
        )

    def stages(self) -> Mapping[str, nn.Module]:
        """See `ResNetTower`."""
        return {
            name: getattr(self.module, name) for name in ("layer4", "layer3", "layer2", "layer1")
        }

    def head_modules(self) -> Sequence[nn.Module]:
        """See `ResNetTower`."""
        return (self.module.attnpool,)

    def pool(self, features: Tensor) -> Tensor:
        """See `ResNetTower`."""
        return attention_pool.pooled(self.module.attnpool, features)

    def shift_gradient(self, features: Tensor, gradient: Tensor) -> Tensor:
        """See `ResNetTower`."""
        return attention_pool.shift_gradient(self.module.attnpool, features, gradient)


def tower_of(module: nn.Module) -> Tower | None:
    """The vision tower in a module of OpenCLIP; None where the module is none of `TOWERS`.

    Raises:
        UnsupportedModelError: a tower, a pooling or an attention that is not supported.
    """
    from open_clip import CLIP, CustomTextCLIP
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    visual: Any = module.visual if isinstance(module, (CLIP, CustomTextCLIP)) else module
    if isinstance(visual, VisionTransformer):
        return _vit(visual)
    if isinstance(visual, ModifiedResNet):
        return OpenClipResNet(module=visual, stage=visual.layer4)
    if isinstance(visual, TimmModel):
        return _timm(visual)
    if visual is not module:
        raise UnsupportedModelError(
            f"{type(module).__name__} has a {type(visual).__name__} as its visual tower; supported "
            "are OpenCLIP's VisionTransformer, ModifiedResNet and TimmModel."
        )
    return None


def _timm(visual: Any) -> Tower:
    tower = timm_cnn.tower_of(visual)
    if tower is None:
        raise UnsupportedModelError(
            f"the TimmModel has a {type(visual.trunk).__name__} of timm as its trunk; supported "
            "are ConvNeXt and FastVit with average pooling."
        )
    return tower


def _vit(visual: Any) -> OpenClipViT:
    if getattr(visual, "attn_pool", None) is not None or visual.pool_type not in _POOLINGS:
        pool = "an attentional pool" if visual.pool_type in _POOLINGS else "no single pooled token"
        raise UnsupportedModelError(
            f"the VisionTransformer has {pool} (pool_type={visual.pool_type!r}); supported are the "
            "CLS token (pool_type='tok') and the mean of the patches (pool_type='avg')."
        )
    return OpenClipViT(
        module=visual,
        layers=tuple(_layer(i, block) for i, block in enumerate(visual.transformer.resblocks)),
        pooling=_POOLINGS[visual.pool_type],
    )


def _layer(index: int, block: Any) -> AttentionLayer:
    from open_clip.transformer import Attention

    attention = getattr(block, "attn", None)
    if isinstance(attention, nn.MultiheadAttention):
        refused = {"separate query, key and value weights": attention.in_proj_weight is None}
        refused |= dict.fromkeys(multihead.unsupported_parts(attention), True)
    elif isinstance(attention, Attention):
        refused = {
            "an output map that is no torch.nn.Linear": not is_linear(attention.out_proj),
            "qk_norm": not isinstance(attention.ln_q, nn.Identity),
            "scaled_cosine": bool(attention.scaled_cosine),
            "scale_heads": bool(attention.scale_heads),
            "inner_norm": not isinstance(attention.ln_inner, nn.Identity),
        }
    else:
        refused = {f"the class {type(attention).__name__}": True}
    for what, found in refused.items():
        if found:
            raise UnsupportedModelError(
                f"layer {index} of the VisionTransformer has an attention with {what}; supported "
                "are torch.nn.MultiheadAttention with one stacked input weight and OpenCLIP's "
                "Attention without qk_norm, scaled_cosine, scale_heads and inner_norm."
            )
    plain = isinstance(attention, nn.MultiheadAttention)
    return MultiheadLayer(block) if plain else CustomLayer(block)


def check_architecture(name: str, config: Mapping[str, Any]) -> None:
    """Refuse an architecture that is not supported, before its weights are downloaded.

    Raises:
        UnsupportedModelError: its vision tower is not supported, or it has a text decoder (CoCa).
    """
    from open_clip import CLIP

    if "multimodal_cfg" in config:
        raise UnsupportedModelError(f"load_clip({name!r}): the model has a text decoder (CoCa).")
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    with torch.device("meta"):  # shapes without numbers, in a fraction of a second
        model = CLIP(config["embed_dim"], vision, text_cfg={"layers": 1})
    try:
        tower_of(model)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"load_clip({name!r}): {error}") from error


class OpenClipAdapter(ClipAdapter):
    """A `CLIP` or `CustomTextCLIP` of OpenCLIP."""

    model: Any

    @property
    def dtype(self) -> torch.dtype:
        """See `ClipAdapter`; in OpenCLIP's mixed precision the first convolution tells."""
        modules = self.tower.module.modules()
        return next(m for m in modules if isinstance(m, nn.Conv2d)).weight.dtype

    @property
    def is_unmodified(self) -> bool:
        """See `ClipAdapter`."""
        from open_clip import CLIP, CustomTextCLIP

        own = is_unmodified(self.model, (CLIP, CustomTextCLIP), "encode_image")
        return own and self.tower.is_unmodified

    def image_features(self, images: Tensor) -> Tensor:
        """See `ClipAdapter`."""
        self.grid(*images.shape[-2:])
        features = self.model.encode_image(images.to(self.dtype))
        embedding: Tensor = features[0] if isinstance(features, tuple) else features
        return embedding

    def _text_features(self, tokens: Any) -> Tensor:
        features: Tensor = self.model.encode_text(tokens)
        return features

    def _process(self, images: list[Image.Image]) -> Tensor:
        return process(self._require_processor(), images)

    def _tokenize(self, texts: list[str]) -> Any:
        tokenizer = self._require_tokenizer()
        if is_transformers_tokenizer(tokenizer):
            length = self.context_length
            padding = True if length is None else "max_length"
            padded = tokenizer(texts, padding=padding, max_length=length, return_tensors="pt")
            return padded["input_ids"]
        return tokenizer(texts)

    def _count(self, text: str) -> int | None:
        return count_tokens(self._require_tokenizer(), text)

    def _statistics(self) -> tuple[Sequence[float], Sequence[float]] | None:
        told = statistics(self.processor)
        if told is None and self.processor is None:  # what OpenCLIP noted on the model
            visual: Any = self.tower.module
            mean, std = (getattr(visual, name, None) for name in ("image_mean", "image_std"))
            return None if mean is None or std is None else (mean, std)
        return told

    @property
    def context_length(self) -> int | None:
        """See `ClipAdapter`; the tokenizer may cut before the model does."""
        # 0 where a text model of transformers has no table of positions (mt5), or no tokenizer's
        lengths = (getattr(owner, "context_length", 0) for owner in (self.model, self.tokenizer))
        return min((int(length) for length in lengths if length), default=None)

    @property
    @override
    def vocabulary_size(self) -> int | None:
        # a text model of transformers keeps its own in its configuration
        text = getattr(self.model, "text", self.model)
        owner = getattr(text, "config", None) or text
        return getattr(owner, "vocab_size", None)

    def _describe_preprocessing(self) -> object:
        return describe(self.processor)


def adapter_of(model: nn.Module, *, name: str, **parts: Any) -> OpenClipAdapter | None:
    """The adapter of an OpenCLIP model; None where the model is something else."""
    from open_clip import CLIP, CustomTextCLIP

    if not isinstance(model, (CLIP, CustomTextCLIP)):
        return None
    tower = tower_of(model)
    return None if tower is None else OpenClipAdapter(model, tower, name=name, **parts)
