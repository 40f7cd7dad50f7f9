"""TIPSv2 of transformers: CLS, then a register that is a second CLS, then the patches."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import Self, override

from .huggingface import HuggingFaceAdapter, HuggingFaceTower
from .huggingface_layers import HuggingFaceLayer
from .text import TextReadout

MODELS = ("Tipsv2Model",)
TOWERS = (*MODELS, "Tipsv2VisionModel")


class Tipsv2Layer(HuggingFaceLayer):
    """A `Tipsv2VisionLayer`, with LayerScale."""

    attention_part = "attention"
    heads_part = "num_attention_heads"
    maps = ("q_proj", "k_proj", "v_proj", "o_proj")
    branch_parts = ("layer_scale1",)
    mlp_parts = ("norm2", "mlp", "layer_scale2")


class Tipsv2Tower(HuggingFaceTower):
    """The vision transformer of a `Tipsv2Model`, which has no projection."""

    library = "tipsv2"
    classes = TOWERS
    layer_class = Tipsv2Layer
    final_norm = "layernorm"
    patch_map = "embeddings.patch_embeddings.projection"

    @classmethod
    @override
    def of(cls, module: Any, **parts: Any) -> Self:
        return super().of(module, prefix=1 + int(module.config.num_register_tokens), **parts)


tower_of = Tipsv2Tower.found_in


class Tipsv2Adapter(HuggingFaceAdapter):
    """A `Tipsv2Model`, whose image embedding is the first CLS token's."""

    text_readout = TextReadout("mean", causal=False, padding="max_length")
    text_layout = None

    @override
    def _vision_inputs(self, images: Tensor) -> dict[str, Any]:
        return {"pixel_values": images}  # cast and interpolated inside


ADAPTER = Tipsv2Adapter
