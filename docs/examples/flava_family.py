"""FLAVA of transformers as a family of your own: all tokens are projected, and the first is scored.

Import it before `load_clip`. Source: Singh et al. 2022 (arXiv:2112.04482).
"""

from __future__ import annotations

from captum_clip.models import register_family
from captum_clip.models.huggingface import (
    FirstTokenTower,
    HuggingFaceLayer,
    TextLayout,
    transformers_family,
)


class FlavaLayer(HuggingFaceLayer):
    """A `FlavaLayer`, whose heads and output map are modules of their own."""

    attention_path = "attention"
    heads_path = "attention.num_attention_heads"
    maps = ("attention.query", "attention.key", "attention.value", "output.dense")
    mlp_paths = ("layernorm_after", "intermediate", "output.dense", "output.dropout")


class FlavaTower(FirstTokenTower):
    """A `FlavaImageModel`."""

    projection_path = "image_projection"
    layer_class = FlavaLayer
    final_norm = "layernorm"
    patch_map = "embeddings.patch_embeddings.projection"


text = TextLayout(layer=FlavaLayer, own_head=("layernorm",))
register_family(transformers_family("flava", "Flava", tower=FlavaTower, text=text))
