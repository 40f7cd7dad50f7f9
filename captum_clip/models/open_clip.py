"""CLIP of OpenCLIP: its vision towers and its adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..errors import UnsupportedModelError
from . import open_clip_text, open_clip_vit, timm_vit
from .average_pool import timm_tower_of
from .base import ClipAdapter
from .open_clip_resnet import OpenClipResNet
from .processors import call_tokenizer, is_transformers_tokenizer
from .text import Row, TextPooling, TextTower
from .towers import Tower


def tower_of(module: Any) -> Tower:
    """The vision tower in a module of OpenCLIP; UnsupportedModelError where none is supported."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    visual: Any = getattr(module, "visual", module)
    if isinstance(visual, VisionTransformer):
        return open_clip_vit.tower_of(visual)
    if isinstance(visual, ModifiedResNet):
        return OpenClipResNet(module=visual, stage=visual.layer4)
    if not isinstance(visual, TimmModel):
        raise UnsupportedModelError(
            f"{type(module).__name__} has a {type(visual).__name__} as its visual tower; supported "
            "are OpenCLIP's VisionTransformer, ModifiedResNet and TimmModel."
        )
    tower = timm_tower_of(visual) or timm_vit.tower_of(visual)
    if tower is None:
        raise UnsupportedModelError(
            f"the TimmModel has a {type(visual.trunk).__name__} of timm as its trunk; supported "
            "are VisionTransformer and Eva, and ConvNeXt and FastVit with average pooling."
        )
    return tower


def check_architecture(name: str, config: Mapping[str, Any]) -> None:
    """Refuse an architecture that is not supported, before its weights are downloaded."""
    from open_clip import CLIP

    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    with torch.device("meta"):  # shapes without numbers, in a fraction of a second
        model = CLIP(config["embed_dim"], vision, text_cfg={"layers": 1})
    try:
        tower_of(model)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"load_clip({name!r}): {error}") from error


class OpenClipAdapter(ClipAdapter):
    """A `CLIP`, `CustomTextCLIP` or `CoCa` of OpenCLIP."""

    model: Any

    @property
    @override
    def dtype(self) -> torch.dtype:
        # in OpenCLIP's mixed precision the first convolution tells
        modules = self.tower.module.modules()
        return next(m for m in modules if isinstance(m, nn.Conv2d)).weight.dtype

    @property
    @override
    def text_pooling(self) -> TextPooling | None:
        rows: dict[str, Row] = {"argmax": "end", "eos": "end", "first": "first", "last": "last"}
        model, text = self.model, getattr(self.model, "text", None)
        if text is None:  # CLIP has its text tower's parts as its own
            row, causal = rows.get(model.text_pool_type), model.attn_mask is not None
        elif hasattr(text, "pool_type"):
            # a CLS of its own stands at the end
            row = "last" if text.cls_emb is not None else rows.get(text.pool_type)
            causal = text.attn_mask is not None
        else:  # a model of transformers
            pooler = type(getattr(text, "pooler", None)).__name__
            poolers: dict[str, Row] = {"MeanPooler": "mean", "ClsPooler": "first"}
            row, causal = poolers.get(pooler, "first" if "Cls" in pooler else None), False
        return None if row is None else TextPooling(row, causal, padding="max_length")

    @override
    def _text_tower(self) -> TextTower | None:
        return open_clip_text.open_clip_text_tower(self.model, self.text_pooling)

    @override
    def image_features(self, images: Tensor) -> Tensor:
        self.grid(*images.shape[-2:])
        features = self.model.encode_image(images.to(self.dtype), normalize=False)
        embedding: Tensor = features[0] if isinstance(features, tuple) else features
        return embedding

    @override
    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        # CoCa would give unit rows by default
        features: Tensor = self.model.encode_text(ids, normalize=False)
        return features

    def _tokenize(self, texts: list[str]) -> Any:
        tokenizer = self._require_tokenizer()
        if is_transformers_tokenizer(tokenizer):
            return call_tokenizer(tokenizer, texts, self.context_length)["input_ids"]
        if hasattr(tokenizer, "clean_fn"):  # OpenCLIP's own, which may be made for another context
            return tokenizer(texts, context_length=self.context_length)
        return tokenizer(texts)

    @override
    def _statistics(self) -> tuple[Sequence[float], Sequence[float]] | None:
        if self.processor is not None:
            return super()._statistics()
        visual = self.tower.module  # on which OpenCLIP notes them
        mean, std = (getattr(visual, name, None) for name in ("image_mean", "image_std"))
        return None if mean is None or std is None else (mean, std)

    @property
    @override
    def context_length(self) -> int | None:
        # the tokenizer may cut before the model does
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
