"""A block of transformers' CLIP and SigLIP, of images and of texts, and what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor, nn
from typing_extensions import override

from ..errors import UnsupportedModelError
from .steps import Linear
from .towers import AttentionLayer, Exposed, Projections
from .unmodified import has_no_foreign_hooks, is_linear

LIBRARY: Final = "transformers.models."
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class HuggingFaceLayer(AttentionLayer):
    """A `CLIPEncoderLayer` and its `CLIPAttention`."""

    block: Any
    attention: Any

    def __init__(self, block: Any) -> None:
        super().__init__(block, block.self_attn, block.self_attn.num_heads)

    @override
    def projections(self) -> Projections:
        maps = (getattr(self.attention, name) for name in _PROJECTIONS)
        return Projections(*(Linear(m.weight, m.bias) for m in maps))

    @property
    @override
    def scale(self) -> float:
        return float(self.attention.scale)

    @override
    def tokens(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        tokens: Tensor = args[0] if args else kwargs["hidden_states"]
        return tokens

    residual = tokens

    @override
    def output(self, result: Any) -> Tensor:
        output: Tensor = result[0]  # (output, weights or None)
        return output

    @override
    def replaced(self, result: Any, output: Tensor) -> Any:
        return (output, *result[1:])

    @override
    def tail(self, residual: Tensor, attended: Tensor) -> Tensor:
        hidden = residual + attended
        out: Tensor = hidden + self.block.mlp(self.block.layer_norm2(hidden))
        return out

    @override
    def qkv_modules(self) -> Mapping[Exposed, tuple[nn.Module, bool]]:
        attention = self.attention
        return {
            "query": (attention.q_proj, True),
            "key": (attention.k_proj, True),
            "value": (attention.v_proj, True),
            "heads_output": (attention.out_proj, False),
        }


def is_librarys(module: nn.Module, method: str = "forward") -> bool:
    """Whether a module is of a class of transformers itself, without foreign hooks."""
    return type(module).__module__.startswith(LIBRARY) and has_no_foreign_hooks(module, method)


def check_attention(index: int, attention: Any, tower: str = "vision tower") -> None:
    """Refuse projections that are more than a linear map, whose weights would not tell it all.

    Raises:
        UnsupportedModelError: one that is wrapped (LoRA), quantised or hooked.
    """
    for name in _PROJECTIONS:
        check_linear(f"layer {index} of the {tower}", name, getattr(attention, name))


def check_linear(where: int | str, name: str, linear: nn.Module) -> None:
    """Refuse a map that is more than linear, in a layer by its index or in another part.

    Raises:
        UnsupportedModelError: one that is wrapped (LoRA), quantised or hooked.
    """
    if not is_linear(linear):
        part = f"layer {where} of the vision tower" if isinstance(where, int) else where
        raise UnsupportedModelError(
            f"{part} has a {type(linear).__name__} as {name}; expected torch.nn.Linear with "
            "floating-point weights. Merge adapters such as LoRA into the weights first, load the "
            "model without quantisation, and remove hooks from it, which may change what it "
            "computes."
        )
