"""TIPSv2 of transformers: CLS, then a register that is a second CLS, then the patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from .huggingface import HuggingFaceAdapter, HuggingFaceTower, embedding_of
from .huggingface_layers import HuggingFaceLayer, check_linear
from .steps import Linear, Step
from .text import TextReadout
from .towers import AttentionLayer, Exposed, Projections

MODELS = ("Tipsv2Model",)
TOWERS = ("Tipsv2Model", "Tipsv2VisionModel")

_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj")


class Tipsv2Layer(HuggingFaceLayer):
    """A `Tipsv2VisionLayer`, with LayerScale."""

    def __init__(self, block: Any) -> None:
        AttentionLayer.__init__(self, block, block.attention, block.attention.num_attention_heads)

    @override
    def projections(self) -> Projections:
        maps = (getattr(self.attention, name) for name in _MAPS)
        return Projections(*(Linear(m.weight, m.bias) for m in maps))

    @override
    def qkv_modules(self) -> Mapping[Exposed, tuple[nn.Module, bool]]:
        attention = self.attention
        return {
            "query": (attention.q_proj, True),
            "key": (attention.k_proj, True),
            "value": (attention.v_proj, True),
            "heads_output": (attention.o_proj, False),
        }

    @property
    @override
    def scale(self) -> float:
        return float(self.attention.scaling)

    @override
    def tail(self, residual: Tensor, attended: Tensor) -> Tensor:
        block = self.block
        hidden = residual + block.layer_scale1(attended)
        out: Tensor = hidden + block.layer_scale2(block.mlp(block.norm2(hidden)))
        return out

    @override
    def branch(self) -> tuple[Step, ...]:
        return (self.block.layer_scale1,)


@dataclass(frozen=True, eq=False, kw_only=True)
class Tipsv2Tower(HuggingFaceTower):
    """The vision transformer of a `Tipsv2Model`, which has no projection."""

    projection: nn.Module | None = None

    @override
    def embed(self, readout: Tensor) -> Tensor:
        normed: Tensor = self.module.layernorm(readout)
        return normed

    @property
    @override
    def patches(self) -> nn.Module:
        module: nn.Module = self.module.embeddings.patch_embeddings.projection
        return module

    @property
    @override
    def head(self) -> tuple[Step, ...]:
        return (self.module.layernorm,)


def tower_of(module: nn.Module) -> Tipsv2Tower | None:
    """The vision tower in a module of transformers; None where the module is none of `TOWERS`.

    Raises:
        UnsupportedModelError: its attention is not made of plain linear maps.
    """
    from transformers import Tipsv2Model, Tipsv2VisionModel

    if not isinstance(module, (Tipsv2Model, Tipsv2VisionModel)):
        return None
    inner: Any = module.vision_model if isinstance(module, Tipsv2Model) else module
    for index, block in enumerate(inner.encoder.layer):
        for name in _MAPS:
            check_linear(index, name, getattr(block.attention, name))
    return Tipsv2Tower(
        module=inner,
        layers=tuple(map(Tipsv2Layer, inner.encoder.layer)),
        pooling="cls",
        prefix=1 + int(inner.config.num_register_tokens),
    )


class Tipsv2Adapter(HuggingFaceAdapter):
    """A `Tipsv2Model`, whose image embedding is the first CLS token's."""

    @property
    @override
    def text_readout(self) -> TextReadout:
        return TextReadout("mean", causal=False, padding="max_length")

    @override
    def image_features(self, images: Tensor) -> Tensor:
        self.grid(*images.shape[-2:])
        return embedding_of(self.model.get_image_features(images))  # cast and interpolated inside


def adapter_of(model: nn.Module, *, name: str, **processors: Any) -> Tipsv2Adapter | None:
    """The adapter of a `Tipsv2Model`; None where the model is something else."""
    from transformers import Tipsv2Model

    tower = tower_of(model) if isinstance(model, Tipsv2Model) else None
    return None if tower is None else Tipsv2Adapter(model, tower, name=name, **processors)
