"""AIMv2 of transformers, whose pooling head has a learned query and neither norm nor MLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..errors import InputError, UnsupportedModelError
from .huggingface import HuggingFaceAdapter, HuggingFaceTower, embedding_of
from .huggingface_layers import HuggingFaceLayer, check_attention, check_linear, is_librarys
from .steps import Linear, Step
from .text import TextReadout
from .towers import AttentionLayer, Probe, Projections
from .unmodified import has_no_foreign_hooks

MODELS = ("Aimv2Model",)
TOWERS = (*MODELS, "Aimv2VisionModel")


class Aimv2Layer(HuggingFaceLayer):
    """An `Aimv2EncoderLayer`: RMSNorm, attention, RMSNorm, a gated MLP."""

    def __init__(self, block: Any) -> None:
        AttentionLayer.__init__(self, block, block.attention, block.attention.num_heads)

    @override
    def tail(self, residual: Tensor, attended: Tensor) -> Tensor:
        hidden = residual + attended
        output: Tensor = hidden + self.block.ffn(self.block.rms_norm2(hidden))
        return output


class Aimv2Probe(Probe):
    """An `Aimv2AttentionPoolingHead`, whose query is used as it is learned."""

    def __init__(self, norm: nn.Module, head: Any) -> None:
        super().__init__(head, head.output_proj, head.num_heads)
        self._head = head
        self._modules = (norm, head)

    @override
    def projections(self) -> Projections:
        head = self._head
        key, value, output = (
            Linear(linear.weight, linear.bias)
            for linear in (head.k_proj, head.v_proj, head.output_proj)
        )
        return Projections(
            Linear(torch.eye(*key.weight.shape).to(key.weight), None), key, value, output
        )

    @property
    @override
    def scale(self) -> float:
        return float((self._head.hidden_size // self.heads) ** -0.5)

    @override
    def query(self) -> Tensor:
        query: Tensor = self._head.cls_token[0, 0]
        return query.view(self.heads, -1)

    @override
    def keyed(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self._modules[0](hidden)
        return normed

    @override
    def modules(self) -> Sequence[nn.Module]:
        return self._modules

    @override
    def tokens(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        tokens: Tensor = args[0] if args else kwargs["hidden_states"]
        return tokens

    @override
    def output(self, result: Any) -> Tensor:
        output: Tensor = result[:, None]
        return output

    @override
    def replaced(self, result: Any, output: Tensor) -> Any:
        return output[:, 0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Aimv2Tower(HuggingFaceTower):
    """An `Aimv2VisionModel`: patches only, read by the pooling head."""

    @override
    def grid(self, height: int, width: int) -> tuple[int, int]:
        if not self.module.config.is_native and (height, width) != self.native:
            raise InputError(
                f"the tower cannot take images of {height} x {width} pixels: its positions are "
                f"those of {self.native[0]} x {self.native[1]}; resize or crop them."
            )
        return super().grid(height, width)

    @override
    def embed(self, readout: Tensor) -> Tensor:
        return readout if self.projection is None else self.projection(readout)

    @property
    @override
    def patches(self) -> nn.Module:
        module: nn.Module = self.module.embeddings.patch_embed
        return module

    @property
    @override
    def head(self) -> tuple[Step, ...]:
        return () if self.projection is None else (self.projection,)

    @property
    @override
    def is_unmodified(self) -> bool:
        parts = (self.module, self.module.encoder, self.module.head)
        return all(map(is_librarys, parts)) and all(
            map(has_no_foreign_hooks, self.module.head.modules())
        )


class Aimv2Adapter(HuggingFaceAdapter):
    """An `Aimv2Model`."""

    tower: Aimv2Tower

    @property
    @override
    def text_readout(self) -> TextReadout:
        return TextReadout("end", causal=True, padding="longest")

    @override
    def _text_features(self, tokens: Any) -> Tensor:
        ids = tokens if isinstance(tokens, Tensor) else tokens["input_ids"]
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
    from transformers.models.aimv2 import modeling_aimv2 as aimv2

    model: Any = module
    inner = model.vision_model if isinstance(model, aimv2.Aimv2Model) else model
    if not isinstance(inner, aimv2.Aimv2VisionModel):
        return None
    if not inner.use_head:
        raise UnsupportedModelError(
            "the Aimv2VisionModel has no pooling head (use_head=False), so it embeds no image; "
            "take a checkpoint with one, such as apple/aimv2-large-patch14-224-lit."
        )
    for index, block in enumerate(inner.encoder.layers):
        check_attention(index, block.attention)
    for name in ("k_proj", "v_proj", "output_proj"):
        check_linear("the pooling head", name, getattr(inner.head, name))
    return Aimv2Tower(
        module=inner,
        layers=tuple(Aimv2Layer(block) for block in inner.encoder.layers),
        pooling="probe",
        prefix=0,
        probe=Aimv2Probe(inner.rms_norm, inner.head),
        projection=getattr(model, "visual_projection", None),
    )


def adapter_of(model: nn.Module, *, name: str, **processors: Any) -> Aimv2Adapter | None:
    """The adapter of an `Aimv2Model`; None where the model is something else."""
    from transformers import Aimv2Model

    tower = tower_of(model) if isinstance(model, Aimv2Model) else None
    return None if tower is None else Aimv2Adapter(model, tower, name=name, **processors)
