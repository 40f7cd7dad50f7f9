"""FLAVA of transformers: the cosine of its image and text towers' first tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import override

from .huggingface import FirstTokenTower, HuggingFaceAdapter
from .huggingface_layers import HuggingFaceLayer
from .huggingface_text import TextLayout
from .text import CLS_READOUT

MODELS = ("FlavaModel",)
TOWERS = (*MODELS, "FlavaImageModel")


class FlavaLayer(HuggingFaceLayer):
    """A `FlavaLayer`, whose heads and output map are modules of their own."""

    attention_part = "attention"
    heads_part = "attention.num_attention_heads"
    maps = ("attention.query", "attention.key", "attention.value", "output.dense")
    mlp_parts = ("layernorm_after", "intermediate", "output.dense", "output.dropout")


class FlavaTower(FirstTokenTower):
    """A `FlavaImageModel`; the library projects all tokens, and its score reads the first."""

    library = "flava"
    classes = TOWERS
    projection_part = "image_projection"
    layer_class = FlavaLayer
    final_norm = "layernorm"
    patch_map = "embeddings.patch_embeddings.projection"


tower_of = FlavaTower.found_in


class FlavaAdapter(HuggingFaceAdapter):
    """A `FlavaModel`."""

    text_readout = CLS_READOUT
    text_layout = TextLayout(layer=FlavaLayer, own_head=("layernorm",))

    @override
    def image_features(self, images: Tensor) -> Tensor:
        return super().image_features(images)[:, 0]

    @override
    def _text_features(self, tokens: Any) -> Tensor:
        return super()._text_features(tokens)[:, 0]


ADAPTER = FlavaAdapter
