"""`torch.nn.MultiheadAttention`, which OpenCLIP's blocks and several pooling heads are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from ..errors import UnsupportedModelError
from .steps import Linear, Projections
from .towers import Attention, PoolingHead
from .unmodified import is_linear


def linear_maps(weights: Sequence[Tensor], bias: Tensor | None) -> list[Linear]:
    """Some weights of one module with their parts of its stacked bias, which may be None."""
    parts = (None,) * len(weights) if bias is None else bias.chunk(len(weights))
    return list(map(Linear, weights, parts))


def projections(attention: Any) -> Projections:
    """Its live maps: one stacked weight, or three where keys have another width than queries."""
    if attention.in_proj_weight is None:
        weights = [getattr(attention, f"{name}_proj_weight") for name in "qkv"]
    else:
        weights = attention.in_proj_weight.chunk(3)
    inputs = linear_maps(weights, attention.in_proj_bias)
    return Projections._make((*inputs, Linear.of(attention.out_proj)))


def unsupported_parts(attention: Any) -> Iterator[str]:
    """What of it is not supported, in words."""
    if not is_linear(attention.out_proj):
        yield "an output map that is no torch.nn.Linear"
    if attention.bias_k is not None:
        yield "bias_k"
    if attention.add_zero_attn:
        yield "add_zero_attn"


class Multihead(Attention):
    """A `torch.nn.MultiheadAttention`, whose tokens may have the batch second."""

    attention: Any
    token_argument = (0, "query")

    @override
    def projections(self) -> Projections:
        return projections(self.attention)

    @override
    def batch_first(self, tokens: Tensor) -> Tensor:
        return tokens if self.attention.batch_first else tokens.transpose(0, 1)


class MultiheadPoolingHead(Multihead, PoolingHead):
    """A pooling head around a `torch.nn.MultiheadAttention`; UnsupportedModelError for more."""

    token_argument = (1, "key")

    def __init__(
        self, head: Any, attention: Any, norm: nn.Module, modules: tuple[nn.Module, ...], where: str
    ) -> None:
        super().__init__(attention, attention, attention.num_heads)
        self.head, self.attention, self.norm, self.modules = head, attention, norm, modules
        for what in unsupported_parts(attention):
            raise UnsupportedModelError(
                f"{where} has an attention with {what}; expected the library's own. Merge adapters "
                "such as LoRA into the weights first, load the model without quantisation, and "
                "remove hooks from it."
            )
