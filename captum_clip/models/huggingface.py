"""CLIP of transformers, and the classes that were made from it: vision tower and adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import override

from ..errors import InputError
from . import huggingface_text
from .base import ClipAdapter
from .huggingface_layers import LIBRARY, HuggingFaceLayer, check_attention, is_librarys
from .processors import count_tokens, describe, is_transformers_tokenizer, process, statistics
from .steps import Step
from .text import TextReadout, TextTower
from .towers import ViTTower
from .unmodified import has_no_foreign_hooks

LAYOUTS = {
    "clip": "CLIP",
    "metaclip_2": "MetaClip2",
    "altclip": "AltCLIP",
    "chinese_clip": "ChineseCLIP",
    "clipseg": "CLIPSeg",
    "owlvit": "OwlViT",
    "owlv2": "Owlv2",
}
"""Modules of transformers -> what their classes are called; all with CLIP's vision tower."""

MODELS = tuple(f"{prefix}Model" for prefix in LAYOUTS.values())
TOWERS = tuple(
    f"{prefix}{kind}" for kind in ("Model", "VisionModel") for prefix in LAYOUTS.values()
)

_SUFFIXES = ("Model", "VisionModel", "VisionModelWithProjection", "VisionTransformer")
_ROBERTAS = ("altclip_text_model", "roberta", "xlm-roberta", "camembert")


@dataclass(frozen=True, eq=False)
class HuggingFaceTower(ViTTower):
    """The vision transformer of a `CLIPModel`, with the model's projection where there is one."""

    module: Any
    projection: nn.Module | None

    @property
    def native(self) -> tuple[int, int]:
        """Height and width that it was made for."""
        side = int(self.module.config.image_size)
        return side, side

    @override
    def grid(self, height: int, width: int) -> tuple[int, int]:
        # positions are interpolated for other sizes than the native one
        patch = int(self.module.config.patch_size)
        fits = height % patch == 0 and width % patch == 0 and min(height, width) >= patch
        if not fits and (height, width) != self.native:
            raise InputError(
                f"the tower cannot take images of {height} x {width} pixels: height and width must "
                f"be multiples of its patch size {patch}; resize or crop them, its native size is "
                f"{self.native[0]} x {self.native[1]}."
            )
        return height // patch, width // patch

    @override
    def embed(self, token: Tensor) -> Tensor:
        # without a projection it ends after the norm
        normed: Tensor = self.module.post_layernorm(token)
        return normed if self.projection is None else self.projection(normed)

    @property
    @override
    def head(self) -> tuple[Step, ...]:
        norm: nn.Module = self.module.post_layernorm
        return (norm,) if self.projection is None else (norm, self.projection)

    @property
    @override
    def projection_module(self) -> nn.Module | None:
        return self.projection

    @override
    def embedding(self, result: Any) -> Tensor:
        return pooled_output(result)

    @override
    def with_embedding(self, result: Any, embedding: Tensor) -> Any:
        return with_pooled_output(result, embedding)

    @property
    @override
    def is_unmodified(self) -> bool:
        block, attention = self.layers[-1].block, self.layers[-1].attention
        own = (self.module, self.module.encoder, block, attention)
        return all(map(is_librarys, own)) and all(map(has_no_foreign_hooks, block.modules()))

    @property
    @override
    def patches(self) -> nn.Module:
        module: nn.Module = self.module.embeddings.patch_embedding
        return module

    @property
    @override
    def checkpointing(self) -> bool:
        blocks: list[Any] = [layer.block for layer in self.layers]
        return any(block.gradient_checkpointing and block.training for block in blocks)

    @override
    def nondeterminism(self) -> str | None:
        # attention dropout is a number here, mostly not a module
        for layer in self.layers:
            attention: Any = layer.attention
            rate = getattr(attention, "attention_dropout", getattr(attention, "dropout", 0))
            if attention.training and isinstance(rate, float) and rate > 0:
                return f"attention dropout {rate}"
        return super().nondeterminism()


def tower_of(module: nn.Module) -> HuggingFaceTower | None:
    """The vision tower in a module of transformers; None where the module is none of `TOWERS`.

    Raises:
        UnsupportedModelError: its attention is not made of plain linear maps.
    """
    if not _is_of(module, _SUFFIXES):
        return None
    inner: Any = module
    while not hasattr(inner, "encoder"):
        inner = inner.vision_model
    for index, block in enumerate(inner.encoder.layers):
        check_attention(index, block.self_attn)
    return HuggingFaceTower(
        module=inner,
        layers=tuple(HuggingFaceLayer(block) for block in inner.encoder.layers),
        pooling="cls",
        projection=getattr(module, "visual_projection", None),
    )


def _is_of(module: nn.Module, suffixes: tuple[str, ...]) -> bool:
    names = {
        (f"{LIBRARY}{name}.modeling_{name}", prefix + suffix)
        for name, prefix in LAYOUTS.items()
        for suffix in suffixes
    }
    return any((kind.__module__, kind.__name__) in names for kind in type(module).__mro__)


class HuggingFaceAdapter(ClipAdapter):
    """A `CLIPModel` of transformers, or another of `MODELS`."""

    model: Any
    tower: HuggingFaceTower

    @property
    @override
    def is_unmodified(self) -> bool:
        return is_librarys(self.model, "get_image_features") and self.tower.is_unmodified

    @property
    @override
    def text_readout(self) -> TextReadout | None:
        if type(self.model).__name__ in ("AltCLIPModel", "ChineseCLIPModel"):  # a BERT's CLS
            return TextReadout("first", causal=False, padding="longest")
        return TextReadout("end", causal=True, padding="longest")

    @override
    def _text_tower(self) -> TextTower | None:
        return huggingface_text.text_tower_of(self.model, self.text_readout)

    @override
    def image_features(self, images: Tensor) -> Tensor:
        size = (images.shape[-2], images.shape[-1])
        self.grid(*size)
        # not every class, in every version, casts pixels inside or knows of interpolation
        options = {} if size == self.tower.native else {"interpolate_pos_encoding": True}
        pixels = images.to(self.dtype)
        return embedding_of(self.model.get_image_features(pixel_values=pixels, **options))

    def _text_features(self, tokens: Any) -> Tensor:
        if isinstance(tokens, Tensor):
            tokens = {"input_ids": tokens}
        # some tokenizers give token types as well, which CLIP does not take
        known = {key: tokens[key] for key in ("input_ids", "attention_mask") if key in tokens}
        return embedding_of(self.model.get_text_features(**known))

    def _process(self, images: list[Image.Image]) -> Tensor:
        return process(self._require_processor(), images)

    def _tokenize(self, texts: list[str]) -> Any:
        tokenizer = self._require_tokenizer()
        if not is_transformers_tokenizer(tokenizer):
            return tokenizer(texts)
        readout = self.text_readout
        if readout is not None and readout.padding == "max_length":
            length = self.context_length
            return tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt")
        return tokenizer(texts, padding=True, return_tensors="pt")

    def _count(self, text: str) -> int | None:
        return count_tokens(self._require_tokenizer(), text)

    def _statistics(self) -> tuple[Sequence[float], Sequence[float]] | None:
        return statistics(self.processor)

    @property
    @override
    def context_length(self) -> int:
        config = self.model.config.text_config
        # positions of RoBERTa's relatives begin after that of the padding token
        taken = config.pad_token_id + 1 if config.model_type in _ROBERTAS else 0
        return int(config.max_position_embeddings) - taken

    @property
    @override
    def vocabulary_size(self) -> int:
        return int(self.model.config.text_config.vocab_size)

    def _describe_preprocessing(self) -> object:
        return describe(self.processor)


def pooled_output(result: Any) -> Tensor:
    """The pooled token (B, D) in what a vision tower of transformers returned."""
    pooled: Tensor = result[1] if isinstance(result, tuple) else result.pooler_output
    return pooled


def with_pooled_output(result: Any, pooled: Tensor) -> Any:
    """What a vision tower returned, with another pooled token."""
    if isinstance(result, tuple):
        return (result[0], pooled, *result[2:])
    return type(result)(**{**result, "pooler_output": pooled})


def first_token(result: Any) -> Tensor:
    """The first token (B, D) of the last states that a vision tower of transformers returned."""
    states: Tensor = result[0]
    return states[:, 0]


def with_first_token(result: Any, token: Tensor) -> Any:
    """What a vision tower returned, with another first token."""
    states = torch.cat([token[:, None], result[0][:, 1:]], 1)
    if isinstance(result, tuple):
        return (states, *result[1:])
    return type(result)(**{**result, "last_hidden_state": states})


def embedding_of(features: Any) -> Tensor:
    """The embeddings in what `get_image_features` or `get_text_features` returned."""
    # a tensor in transformers 4, an output object in 5
    embedding: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return embedding


def adapter_of(model: nn.Module, *, name: str, **processors: Any) -> HuggingFaceAdapter | None:
    """The adapter of one of `MODELS`; None where the model is something else."""
    tower = tower_of(model) if _is_of(model, ("Model",)) else None
    return None if tower is None else HuggingFaceAdapter(model, tower, name=name, **processors)
