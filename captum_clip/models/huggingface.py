"""CLIP of transformers, and the classes that were made from it: vision tower and adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from ..errors import InputError
from .base import ClipAdapter, Family
from .huggingface_layers import (
    ALTCLIP_TEXT,
    BERT_TEXT,
    CLIP_TEXT,
    HuggingFaceLayer,
    HuggingFaceTextTower,
    TextLayout,
    layers_of,
)
from .processors import call_tokenizer, is_transformers_tokenizer
from .steps import Step
from .text import CLS_POOLING, TextPooling, TextTower
from .towers import Tower, ViTTower

_ROBERTAS = ("altclip_text_model", "roberta", "xlm-roberta", "camembert")


class PooledOutput(Tower):
    """A tower whose output of transformers has the embedding (B, D) as its pooled token."""

    @override
    def embedding(self, result: Any) -> Tensor:
        pooled: Tensor = result[1] if isinstance(result, tuple) else result.pooler_output
        return pooled

    @override
    def with_embedding(self, result: Any, embedding: Tensor) -> Any:
        return _with_part(result, 1, "pooler_output", embedding)


@dataclass(frozen=True, eq=False, kw_only=True)
class HuggingFaceTower(PooledOutput, ViTTower):
    """The vision transformer of a `CLIPModel`, with the model's projection where there is one.

    Relatives say what their parts are called.
    """

    module: Any
    projection_module: nn.Module | None = None

    layer_class: ClassVar[type[HuggingFaceLayer]] = HuggingFaceLayer
    final_norm: ClassVar[str | None] = "post_layernorm"
    patch_map = "embeddings.patch_embedding"
    runner_parts = ("encoder",)
    projection_part: ClassVar[str] = "visual_projection"

    @classmethod
    def found_in(cls, module: Any) -> Self:
        """The tower in a module of its family; errors as :func:`layers_of`."""
        return cls.of(
            vision_of(module), projection_module=getattr(module, cls.projection_part, None)
        )

    @classmethod
    def of(cls, module: Any, **parts: Any) -> Self:
        """The tower in a vision transformer; CLS is read where `parts` say nothing else."""
        layers = layers_of(cls.layer_class, module.encoder)
        return cls(module=module, layers=layers, **{"pooling": "cls", **parts})

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

    @property
    @override
    def head(self) -> tuple[Step, ...]:
        # without a projection it ends after the norm
        norm = None if self.final_norm is None else getattr(self.module, self.final_norm)
        return tuple(step for step in (norm, self.projection_module) if step is not None)


class FirstTokenTower(HuggingFaceTower):
    """A vision transformer whose first token is read by the model around it."""

    @override
    def embedding(self, result: Any) -> Tensor:
        states: Tensor = result[0]
        return states[:, 0]

    @override
    def with_embedding(self, result: Any, embedding: Tensor) -> Any:
        states = torch.cat([embedding[:, None], result[0][:, 1:]], 1)
        return _with_part(result, 0, "last_hidden_state", states)


class HuggingFaceAdapter(ClipAdapter):
    """A `CLIPModel` of transformers, or another with its parts."""

    model: Any
    tower: HuggingFaceTower
    tower_class: type[Any] = HuggingFaceTower
    text_pooling: TextPooling | None = TextPooling("end", causal=True, padding="longest")
    text_layout: TextLayout | None = CLIP_TEXT  # None where it cannot be explained
    asks_to_interpolate = True  # positions only change with the size where it is told

    @override
    def _text_tower(self) -> TextTower | None:
        if self.text_layout is None:
            return None
        sizes = {"longest": self.context_length, "vocabulary": self.vocabulary_size}
        readout = self.text_pooling or CLS_POOLING
        return HuggingFaceTextTower.of(self.model, self.text_layout, readout, **sizes)

    @override
    def image_features(self, images: Tensor) -> Tensor:
        self.grid(images.shape[-2], images.shape[-1])
        return embedding_of(self.model.get_image_features(**self._vision_inputs(images)))

    def _vision_inputs(self, images: Tensor) -> dict[str, Any]:
        # not every class, in every version, casts pixels inside or knows of interpolation
        resized = self.asks_to_interpolate and tuple(images.shape[-2:]) != self.tower.native
        options = {"interpolate_pos_encoding": True} if resized else {}
        return {"pixel_values": images.to(self.dtype), **options}

    @override
    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return embedding_of(self.model.get_text_features(input_ids=ids, attention_mask=mask))

    def _tokenize(self, texts: list[str]) -> Any:
        tokenizer = self._require_tokenizer()
        if not is_transformers_tokenizer(tokenizer):
            return tokenizer(texts)
        fixed = self.text_pooling is not None and self.text_pooling.padding == "max_length"
        return call_tokenizer(tokenizer, texts, self.context_length if fixed else None)

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


class AltClipAdapter(HuggingFaceAdapter):
    """An `AltCLIPModel`, with a RoBERTa for texts."""

    text_pooling = CLS_POOLING
    text_layout = ALTCLIP_TEXT


class BertAdapter(HuggingFaceAdapter):
    """A model with a BERT for texts, such as `ChineseCLIPModel`."""

    text_pooling = CLS_POOLING
    text_layout = BERT_TEXT


def vision_of(module: Any) -> Any:
    """The vision transformer in a model, or in what wraps it."""
    while not hasattr(module, "encoder"):
        module = module.image_model if hasattr(module, "image_model") else module.vision_model
    return module


def _with_part(result: Any, index: int, name: str, part: Tensor) -> Any:
    if isinstance(result, tuple):
        return (*result[:index], part, *result[index + 1 :])
    return type(result)(**{**result, name: part})


def embedding_of(features: Any) -> Tensor:
    """The embeddings in what `get_image_features` or `get_text_features` returned."""
    # a tensor in transformers 4, an output object in 5
    embedding: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return embedding


def transformers_family(
    name: str,
    prefix: str,
    adapter: type[HuggingFaceAdapter],
    *,
    model: str = "Model",
    vision: str = "VisionModel",
) -> Family:
    """The family in a module of transformers, whose classes are called by a prefix and a kind."""
    return Family(
        library=f"transformers.models.{name}",
        tower_of=adapter.tower_class.found_in,
        adapter=adapter,
        models=[prefix + model],
        towers=[prefix + vision],
        variants=[f"{prefix}VisionModelWithProjection", f"{prefix}VisionTransformer"],
    )


_LAYOUTS: dict[str, tuple[str, type[HuggingFaceAdapter]]] = {
    "clip": ("CLIP", HuggingFaceAdapter),
    "metaclip_2": ("MetaClip2", HuggingFaceAdapter),
    "altclip": ("AltCLIP", AltClipAdapter),
    "chinese_clip": ("ChineseCLIP", BertAdapter),
    "clipseg": ("CLIPSeg", HuggingFaceAdapter),
    "owlvit": ("OwlViT", HuggingFaceAdapter),
    "owlv2": ("Owlv2", HuggingFaceAdapter),
}

FAMILIES = tuple(
    transformers_family(name, prefix, adapter) for name, (prefix, adapter) in _LAYOUTS.items()
)
"""Those with CLIP's vision tower."""
