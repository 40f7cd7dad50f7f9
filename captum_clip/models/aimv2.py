"""AIMv2 of transformers, whose pooling head has a learned query and neither norm nor MLP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from ..errors import InputError, UnsupportedModelError
from .huggingface import HuggingFaceAdapter, HuggingFaceTower, embedding_of
from .huggingface_layers import HuggingFaceLayer, check_linear
from .steps import Linear, Projections
from .towers import PoolingHead


class Aimv2Layer(HuggingFaceLayer):
    """An `Aimv2EncoderLayer`: RMSNorm, attention, RMSNorm, a gated MLP."""

    attention_part = "attention"
    mlp_parts = ("rms_norm2", "ffn")


class Aimv2PoolingHead(PoolingHead):
    """An `Aimv2AttentionPoolingHead`, whose query is used as it is learned."""

    def __init__(self, norm: nn.Module, head: Any) -> None:
        super().__init__(head, head.output_proj, head.num_heads)
        self.head, self.norm, self.modules = head, norm, (norm, head)

    @override
    def projections(self) -> Projections:
        maps = (self.head.k_proj, self.head.v_proj, self.head.output_proj)
        key, value, output = map(Linear.of, maps)
        query = Linear(torch.eye(*key.weight.shape).to(key.weight), None)
        return Projections(query, key, value, output)

    @override
    def embedded_query(self) -> Tensor:
        query: Tensor = self.head.cls_token[0, 0]
        return query

    @override
    def output(self, result: Any) -> Tensor:
        output: Tensor = result[:, None]
        return output

    @override
    def replaced(self, result: Any, output: Tensor) -> Any:
        return output[:, 0]


class Aimv2Tower(HuggingFaceTower):
    """An `Aimv2VisionModel`: patches only, read by the pooling head."""

    layer_class = Aimv2Layer
    final_norm = None
    patch_map = "embeddings.patch_embed"

    @classmethod
    @override
    def of(cls, module: Any, **parts: Any) -> Self:
        if not module.use_head:
            raise UnsupportedModelError(
                "the Aimv2VisionModel has no pooling head (use_head=False), so it embeds no image; "
                "take a checkpoint with one, such as apple/aimv2-large-patch14-224-lit."
            )
        check_linear("the pooling head", module.head, ("k_proj", "v_proj", "output_proj"))
        probe = Aimv2PoolingHead(module.rms_norm, module.head)
        return super().of(module, pooling="attention", prefix=0, pooling_head=probe, **parts)

    @override
    def grid(self, height: int, width: int) -> tuple[int, int]:
        if not self.module.config.is_native and (height, width) != self.native:
            raise InputError(
                f"the tower cannot take images of {height} x {width} pixels: its positions are "
                f"those of {self.native[0]} x {self.native[1]}; resize or crop them."
            )
        return super().grid(height, width)


class Aimv2Adapter(HuggingFaceAdapter):
    """An `Aimv2Model`."""

    tower_class = Aimv2Tower
    text_layout = None

    @override
    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        # Of a mask without padding, or none, the library makes no causal mask under SDPA, and a
        # text would be encoded otherwise alone than beside a longer one. Under a causal mask the
        # padding, which follows the end token, does not matter.
        length, dtype = ids.shape[1], self.model.text_projection.weight.dtype
        lowest = torch.finfo(dtype).min
        causal = torch.full((length, length), lowest, dtype=dtype, device=ids.device).triu(1)
        mask = causal.expand(len(ids), 1, -1, -1)
        return embedding_of(self.model.get_text_features(input_ids=ids, attention_mask=mask))
