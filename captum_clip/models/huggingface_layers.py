"""A block of transformers' CLIP and its relatives, of images and of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeVar

from torch import nn
from typing_extensions import override

from ..errors import UnsupportedModelError
from .multihead import linear_maps
from .steps import Linear
from .towers import AttentionLayer, Exposed, Projections
from .unmodified import nonlinear_parts


class HuggingFaceLayer(AttentionLayer):
    """A `CLIPEncoderLayer` and its `CLIPAttention`; others say what their parts are called."""

    block: Any
    attention: Any

    attention_part = "self_attn"
    heads_part = "num_heads"
    maps: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")
    """Query, key, value and output; or one for the first three, and the output."""
    mlp_parts: tuple[str, ...] = ("layer_norm2", "mlp")

    def __init__(self, block: Any) -> None:
        attention = attrgetter(self.attention_part)(block)
        super().__init__(block, attention, attrgetter(self.heads_part)(attention))

    @override
    def projections(self) -> Projections:
        *inputs, output = map(Linear.of, _parts(self.attention, self.maps))
        if len(inputs) == 1:
            inputs = linear_maps(inputs[0].weight.chunk(3), inputs[0].bias)
        return Projections._make((*inputs, output))

    @property
    @override
    def scale(self) -> float:
        own = self.attention
        scale = getattr(own, "scale", getattr(own, "scaling", None))
        return super().scale if scale is None else float(scale)

    @override
    def qkv_modules(self) -> Mapping[Exposed, tuple[nn.Module, bool]]:
        *inputs, output = _parts(self.attention, self.maps)
        names: tuple[Exposed, ...] = ("query", "key", "value") if len(inputs) == 3 else ()
        exposed = {name: (module, True) for name, module in zip(names, inputs, strict=False)}
        return {**exposed, "heads_output": (output, False)}


def _parts(owner: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(attrgetter(name)(owner) for name in names)


Layer = TypeVar("Layer", bound=HuggingFaceLayer)


def layers_of(kind: type[Layer], encoder: Any, tower: str = "vision tower") -> tuple[Layer, ...]:
    """The blocks of an encoder, each as a layer; their maps must be linear."""
    layers = tuple(map(kind, encoder.layers if hasattr(encoder, "layers") else encoder.layer))
    for index, layer in enumerate(layers):
        check_linear(f"layer {index} of the {tower}", layer.attention, kind.maps)
    return layers


def check_linear(where: str, owner: nn.Module, names: Sequence[str]) -> None:
    """Refuse maps that are more than linear: wrapped (LoRA), quantised or hooked."""
    for what in nonlinear_parts(owner, names):
        raise UnsupportedModelError(
            f"{where} has {what}; expected torch.nn.Linear with floating-point weights. Merge "
            "adapters such as LoRA into the weights first, load the model without quantisation, "
            "and remove hooks from it, which may change what it computes."
        )
