"""FLAVA of transformers: the cosine of its image and text towers' first tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from .huggingface import HuggingFaceAdapter, HuggingFaceTower, first_token, with_first_token
from .huggingface_layers import HuggingFaceLayer, check_linear
from .steps import Linear, Step
from .text import TextReadout
from .towers import AttentionLayer, Exposed, Projections

MODELS = ("FlavaModel",)
TOWERS = (*MODELS, "FlavaImageModel")


class FlavaLayer(HuggingFaceLayer):
    """A `FlavaLayer`, whose heads and output map are modules of their own."""

    def __init__(self, block: Any) -> None:
        AttentionLayer.__init__(
            self, block, block.attention, block.attention.attention.num_attention_heads
        )

    @override
    def projections(self) -> Projections:
        return Projections(*(Linear(m.weight, m.bias) for m in _maps(self.attention).values()))

    @property
    @override
    def scale(self) -> float:
        return float(self.attention.attention.attention_head_size**-0.5)

    @override
    def tail(self, residual: Tensor, attended: Tensor) -> Tensor:
        hidden = residual + attended
        inner = self.block.intermediate(self.block.layernorm_after(hidden))
        output: Tensor = self.block.output(inner, hidden)
        return output

    @override
    def qkv_modules(self) -> Mapping[Exposed, tuple[nn.Module, bool]]:
        query, key, value, output = _maps(self.attention).values()
        return {
            "query": (query, True),
            "key": (key, True),
            "value": (value, True),
            "heads_output": (output, False),
        }


def _maps(attention: Any) -> dict[str, Any]:
    own: dict[str, Any] = {
        name: getattr(attention.attention, name) for name in ("query", "key", "value")
    }
    return {**own, "dense": attention.output.dense}


@dataclass(frozen=True, eq=False)
class FlavaTower(HuggingFaceTower):
    """A `FlavaImageModel` with the model's projection where there is one."""

    @override
    def embed(self, token: Tensor) -> Tensor:
        normed: Tensor = self.module.layernorm(token)
        return normed if self.projection is None else self.projection(normed)

    @property
    @override
    def patches(self) -> nn.Module:
        module: nn.Module = self.module.embeddings.patch_embeddings.projection
        return module

    @property
    @override
    def head(self) -> tuple[Step, ...]:
        norm: nn.Module = self.module.layernorm
        return (norm,) if self.projection is None else (norm, self.projection)

    @override
    def embedding(self, result: Any) -> Tensor:
        # the library projects all tokens, and its score reads the first
        return first_token(result)

    @override
    def with_embedding(self, result: Any, embedding: Tensor) -> Any:
        return with_first_token(result, embedding)


class FlavaAdapter(HuggingFaceAdapter):
    """A `FlavaModel`."""

    tower: FlavaTower

    @property
    @override
    def text_readout(self) -> TextReadout:
        return TextReadout("first", causal=False, padding="longest")

    @override
    def image_features(self, images: Tensor) -> Tensor:
        return super().image_features(images)[:, 0]

    @override
    def _text_features(self, tokens: Any) -> Tensor:
        return super()._text_features(tokens)[:, 0]


def tower_of(module: nn.Module) -> FlavaTower | None:
    """The vision tower in a module of transformers; None where the module is none of `TOWERS`.

    Raises:
        UnsupportedModelError: its attention is not made of plain linear maps.
    """
    from transformers.models.flava import modeling_flava as flava

    model: Any = module
    inner = model.image_model if isinstance(model, flava.FlavaModel) else model
    if not isinstance(inner, flava.FlavaImageModel):
        return None
    for index, block in enumerate(inner.encoder.layer):
        for name, linear in _maps(block.attention).items():
            check_linear(index, name, linear)
    return FlavaTower(
        module=inner,
        layers=tuple(FlavaLayer(block) for block in inner.encoder.layer),
        pooling="cls",
        projection=getattr(model, "image_projection", None),
    )


def adapter_of(model: nn.Module, *, name: str, **processors: Any) -> FlavaAdapter | None:
    """The adapter of a `FlavaModel`; None where the model is something else."""
    from transformers import FlavaModel

    tower = tower_of(model) if isinstance(model, FlavaModel) else None
    return None if tower is None else FlavaAdapter(model, tower, name=name, **processors)
