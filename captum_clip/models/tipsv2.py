"""TIPSv2 of transformers: CLS, then a register that is a second CLS, then the patches."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from .huggingface import HuggingFaceAdapter, HuggingFaceTower
from .huggingface_layers import HuggingFaceLayer, vision_of
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

    layer_class = Tipsv2Layer
    blocks = "encoder.layer"
    final_norm = "layernorm"
    patch_map = "embeddings.patch_embeddings.projection"


def tower_of(module: nn.Module) -> Tipsv2Tower | None:
    """The vision tower in a module of transformers; None where the module is none of `TOWERS`."""
    inner = vision_of(module, "tipsv2", TOWERS)
    if inner is None:
        return None
    return Tipsv2Tower.of(inner, prefix=1 + int(inner.config.num_register_tokens))


class Tipsv2Adapter(HuggingFaceAdapter):
    """A `Tipsv2Model`, whose image embedding is the first CLS token's."""

    text_readout = TextReadout("mean", causal=False, padding="max_length")
    text_layout = None

    @override
    def _vision_inputs(self, images: Tensor) -> dict[str, Any]:
        return {"pixel_values": images}  # cast and interpolated inside


ADAPTER = Tipsv2Adapter
