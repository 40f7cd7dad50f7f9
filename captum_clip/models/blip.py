"""BLIP of transformers with its image-text retrieval head, whose cosine is a CLIP's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from .huggingface import HuggingFaceAdapter, HuggingFaceTower, first_token, with_first_token
from .huggingface_layers import HuggingFaceLayer, check_linear
from .steps import Linear
from .text import TextReadout
from .towers import Exposed, Projections

MODELS = ("BlipForImageTextRetrieval",)
TOWERS = (*MODELS, "BlipVisionModel")


class BlipLayer(HuggingFaceLayer):
    """A `BlipEncoderLayer`, whose attention has one map for queries, keys and values."""

    @override
    def projections(self) -> Projections:
        stacked, output = self.attention.qkv, self.attention.projection
        biases = (None,) * 3 if stacked.bias is None else stacked.bias.chunk(3)
        query, key, value = map(Linear, stacked.weight.chunk(3), biases)
        return Projections(query, key, value, Linear(output.weight, output.bias))

    @override
    def qkv_modules(self) -> Mapping[Exposed, tuple[nn.Module, bool]]:
        return {"heads_output": (self.attention.projection, False)}


@dataclass(frozen=True, eq=False)
class BlipTower(HuggingFaceTower):
    """A `BlipVisionModel` with the retrieval head's projection where there is one."""

    @override
    def embedding(self, result: Any) -> Tensor:
        # all tokens are normed once; the pooled output is normed twice, and the head leaves it
        return first_token(result)

    @override
    def with_embedding(self, result: Any, embedding: Tensor) -> Any:
        return with_first_token(result, embedding)


class BlipAdapter(HuggingFaceAdapter):
    """A `BlipForImageTextRetrieval`, with the cosine that ``use_itm_head=False`` gives."""

    tower: BlipTower

    @property
    @override
    def is_unmodified(self) -> bool:
        return self.tower.is_unmodified

    @property
    @override
    def text_readout(self) -> TextReadout:
        return TextReadout("first", causal=False, padding="longest")

    @override
    def image_features(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        self.grid(height, width)
        resized = (height, width) != self.tower.native
        pixels = images.to(self.dtype)
        result = self.model.vision_model(pixel_values=pixels, interpolate_pos_encoding=resized)
        features: Tensor = self.model.vision_proj(self.tower.embedding(result))
        return features

    @override
    def _text_features(self, tokens: Any) -> Tensor:
        known = {key: tokens[key] for key in ("input_ids", "attention_mask") if key in tokens}
        hidden = self.model.text_encoder(**known)[0]
        features: Tensor = self.model.text_proj(hidden[:, 0])
        return features


def tower_of(module: nn.Module) -> BlipTower | None:
    """The vision tower in a module of transformers; None where the module is none of `TOWERS`.

    Raises:
        UnsupportedModelError: its attention is not made of plain linear maps.
    """
    from transformers.models.blip import modeling_blip as blip

    model: Any = module
    inner = model.vision_model if isinstance(model, blip.BlipForImageTextRetrieval) else model
    if not isinstance(inner, blip.BlipVisionModel):
        return None
    for index, block in enumerate(inner.encoder.layers):
        for name in ("qkv", "projection"):
            check_linear(index, name, getattr(block.self_attn, name))
    return BlipTower(
        module=inner,
        layers=tuple(BlipLayer(block) for block in inner.encoder.layers),
        pooling="cls",
        projection=getattr(model, "vision_proj", None),
    )


def adapter_of(model: nn.Module, *, name: str, **processors: Any) -> BlipAdapter | None:
    """The adapter of a `BlipForImageTextRetrieval`; None where the model is something else."""
    from transformers import BlipForImageTextRetrieval

    tower = tower_of(model) if isinstance(model, BlipForImageTextRetrieval) else None
    return None if tower is None else BlipAdapter(model, tower, name=name, **processors)
