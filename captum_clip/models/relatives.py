"""Relatives of CLIP in transformers, which keep the same parts under other names."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import Self, override

from ..errors import UnsupportedModelError
from . import huggingface
from .huggingface import FirstTokenTower, HuggingFaceAdapter, HuggingFaceTower
from .huggingface_layers import BERTS, POOLED_BERT_TEXT, HuggingFaceLayer, TextLayout
from .text import CLS_POOLING, TextPooling, TextTower
from .unmodified import is_library_class


class BlipLayer(HuggingFaceLayer):
    """A `BlipEncoderLayer`, whose attention has one map for queries, keys and values."""

    maps = ("qkv", "projection")


class BlipTower(FirstTokenTower):
    """A `BlipVisionModel` with the retrieval head's projection where there is one.

    All tokens are normed once; the pooled output is normed twice, and the head leaves it.
    """

    projection_part = "vision_proj"
    layer_class = BlipLayer


class BlipAdapter(HuggingFaceAdapter):
    """A `BlipForImageTextRetrieval`, with the cosine that ``use_itm_head=False`` gives."""

    tower_class = BlipTower
    text_pooling = CLS_POOLING
    text_layout = None

    @override
    def image_features(self, images: Tensor) -> Tensor:
        self.grid(images.shape[-2], images.shape[-1])
        result = self.model.vision_model(**self._vision_inputs(images))
        features: Tensor = self.model.vision_proj(self.tower.embedding(result))
        return features

    @override
    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = self.model.text_encoder(input_ids=ids, attention_mask=mask)[0]
        features: Tensor = self.model.text_proj(hidden[:, 0])
        return features


class FlavaLayer(HuggingFaceLayer):
    """A `FlavaLayer`, whose heads and output map are modules of their own."""

    attention_part = "attention"
    heads_part = "attention.num_attention_heads"
    maps = ("attention.query", "attention.key", "attention.value", "output.dense")
    mlp_parts = ("layernorm_after", "intermediate", "output.dense", "output.dropout")


class FlavaTower(FirstTokenTower):
    """A `FlavaImageModel`; the library projects all tokens, and its score reads the first."""

    projection_part = "image_projection"
    layer_class = FlavaLayer
    final_norm = "layernorm"
    patch_map = "embeddings.patch_embeddings.projection"


class FlavaAdapter(HuggingFaceAdapter):
    """A `FlavaModel`: the cosine of its image and text towers' first tokens."""

    tower_class = FlavaTower
    text_pooling = CLS_POOLING
    text_layout = TextLayout(layer=FlavaLayer, own_head=("layernorm",))

    @override
    def image_features(self, images: Tensor) -> Tensor:
        return super().image_features(images)[:, 0]

    @override
    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().text_features(ids, mask)[:, 0]


class Tipsv2Layer(HuggingFaceLayer):
    """A `Tipsv2VisionLayer`, with LayerScale."""

    attention_part = "attention"
    heads_part = "num_attention_heads"
    maps = ("q_proj", "k_proj", "v_proj", "o_proj")
    branch_parts = ("layer_scale1",)
    mlp_parts = ("norm2", "mlp", "layer_scale2")


class Tipsv2Tower(HuggingFaceTower):
    """The vision transformer of a `Tipsv2Model`, without projection.

    Its tokens are CLS, a register that is a second CLS, and the patches.
    """

    layer_class = Tipsv2Layer
    final_norm = "layernorm"
    patch_map = "embeddings.patch_embeddings.projection"

    @classmethod
    @override
    def of(cls, module: Any, **parts: Any) -> Self:
        return super().of(module, prefix=1 + int(module.config.num_register_tokens), **parts)


class Tipsv2Adapter(HuggingFaceAdapter):
    """A `Tipsv2Model`, whose image embedding is the first CLS token's."""

    tower_class = Tipsv2Tower
    text_pooling = TextPooling("mean", causal=False, padding="max_length")
    text_layout = None
    asks_to_interpolate = False


class DualEncoderTower(HuggingFaceTower):
    """CLIP's vision tower in a `VisionTextDualEncoderModel`."""

    @classmethod
    @override
    def found_in(cls, module: Any) -> Self:
        vision = module.vision_model
        if not any(family.holds(vision) for family in huggingface.FAMILIES):
            raise UnsupportedModelError(
                f"the VisionTextDualEncoderModel has a {type(vision).__name__} as its vision "
                "model; supported is CLIPVisionModel."
            )
        return super().found_in(module)


class DualEncoderAdapter(HuggingFaceAdapter):
    """A `VisionTextDualEncoderModel`: CLIP's vision tower beside any text model."""

    tower_class = DualEncoderTower
    text_pooling = None  # any text model with a pooled output
    text_layout = POOLED_BERT_TEXT

    @override
    def _text_tower(self) -> TextTower | None:
        text = self.model.text_model
        known = (
            type(text).__name__ in BERTS and is_library_class(text) and not text.config.is_decoder
        )
        return super()._text_tower() if known else None
