"""BLIP of transformers with its image-text retrieval head, whose cosine is a CLIP's."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import override

from .huggingface import FirstTokenTower, HuggingFaceAdapter, text_arguments
from .huggingface_layers import HuggingFaceLayer
from .text import CLS_READOUT

MODELS = ("BlipForImageTextRetrieval",)
TOWERS = (*MODELS, "BlipVisionModel")


class BlipLayer(HuggingFaceLayer):
    """A `BlipEncoderLayer`, whose attention has one map for queries, keys and values."""

    maps = ("qkv", "projection")


class BlipTower(FirstTokenTower):
    """A `BlipVisionModel` with the retrieval head's projection where there is one.

    All tokens are normed once; the pooled output is normed twice, and the head leaves it.
    """

    library = "blip"
    classes = TOWERS
    projection_part = "vision_proj"
    layer_class = BlipLayer


tower_of = BlipTower.found_in


class BlipAdapter(HuggingFaceAdapter):
    """A `BlipForImageTextRetrieval`, with the cosine that ``use_itm_head=False`` gives."""

    text_readout = CLS_READOUT
    text_layout = None

    @override
    def image_features(self, images: Tensor) -> Tensor:
        self.grid(images.shape[-2], images.shape[-1])
        result = self.model.vision_model(**self._vision_inputs(images))
        features: Tensor = self.model.vision_proj(self.tower.embedding(result))
        return features

    @override
    def _text_features(self, tokens: Any) -> Tensor:
        hidden = self.model.text_encoder(**text_arguments(tokens))[0]
        features: Tensor = self.model.text_proj(hidden[:, 0])
        return features


ADAPTER = BlipAdapter
