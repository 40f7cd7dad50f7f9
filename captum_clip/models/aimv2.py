"""AIMv2 of transformers, whose pooling head has a learned query and neither norm nor MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..errors import InputError, UnsupportedModelError
from .huggingface import HuggingFaceAdapter, HuggingFaceTower, embedding_of, text_arguments
from .huggingface_layers import HuggingFaceLayer, check_linear, is_librarys, vision_of
from .steps import Linear
from .text import TextReadout
from .towers import Probe, Projections
from .unmodified import has_no_foreign_hooks

MODELS = ("Aimv2Model",)
TOWERS = (*MODELS, "Aimv2VisionModel")


class Aimv2Layer(HuggingFaceLayer):
    """An `Aimv2EncoderLayer`: RMSNorm, attention, RMSNorm, a gated MLP."""

    attention_part = "attention"
    mlp_parts = ("rms_norm2", "ffn")


class Aimv2Probe(Probe):
    """An `Aimv2AttentionPoolingHead`, whose query is used as it is learned."""

    def __init__(self, norm: nn.Module, head: Any) -> None:
        super().__init__(head, head.output_proj, head.num_heads)
        self._modules = (norm, head)
        self._maps = tuple(getattr(head, name) for name in ("k_proj", "v_proj", "output_proj"))

    @override
    def projections(self) -> Projections:
        maps = [Linear(linear.weight, linear.bias) for linear in self._maps]
        weight = maps[0].weight
        return Projections(Linear(torch.eye(*weight.shape).to(weight), None), *maps)

    @override
    def query(self) -> Tensor:
        query: Tensor = self._modules[1].cls_token[0, 0]
        return query.view(self.heads, -1)

    @override
    def keyed(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self._modules[0](hidden)
        return normed

    @override
    def modules(self) -> Sequence[nn.Module]:
        return self._modules

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

    @override
    def grid(self, height: int, width: int) -> tuple[int, int]:
        if not self.module.config.is_native and (height, width) != self.native:
            raise InputError(
                f"the tower cannot take images of {height} x {width} pixels: its positions are "
                f"those of {self.native[0]} x {self.native[1]}; resize or crop them."
            )
        return super().grid(height, width)

    @property
    @override
    def is_unmodified(self) -> bool:
        head = self.module.head
        own = all(map(is_librarys, (self.module, self.module.encoder, head)))
        return own and all(map(has_no_foreign_hooks, head.modules()))


class Aimv2Adapter(HuggingFaceAdapter):
    """An `Aimv2Model`."""

    text_readout = TextReadout("end", causal=True, padding="longest")
    text_layout = None

    @override
    def _text_features(self, tokens: Any) -> Tensor:
        ids = text_arguments(tokens)["input_ids"]
        # Of a mask without padding, or none, the library makes no causal mask under SDPA, and a
        # text would be encoded otherwise alone than beside a longer one. Under a causal mask the
        # padding, which follows the end token, does not matter.
        length, dtype = ids.shape[1], self.model.text_projection.weight.dtype
        lowest = torch.finfo(dtype).min
        mask = torch.full((length, length), lowest, dtype=dtype, device=ids.device).triu(1)
        mask = mask.expand(len(ids), 1, -1, -1)
        return embedding_of(self.model.get_text_features(input_ids=ids, attention_mask=mask))


def tower_of(module: nn.Module) -> Aimv2Tower | None:
    """The vision tower in a module of transformers; None where the module is none of `TOWERS`.

    Raises:
        UnsupportedModelError: it has no pooling head, or maps that are more than linear.
    """
    inner = vision_of(module, "aimv2", TOWERS)
    if inner is None:
        return None
    if not inner.use_head:
        raise UnsupportedModelError(
            "the Aimv2VisionModel has no pooling head (use_head=False), so it embeds no image; "
            "take a checkpoint with one, such as apple/aimv2-large-patch14-224-lit."
        )
    for name in ("k_proj", "v_proj", "output_proj"):
        check_linear("the pooling head", name, getattr(inner.head, name))
    probe = Aimv2Probe(inner.rms_norm, inner.head)
    projection = getattr(module, "visual_projection", None)
    return Aimv2Tower.of(inner, pooling="probe", prefix=0, probe=probe, projection=projection)


ADAPTER = Aimv2Adapter
