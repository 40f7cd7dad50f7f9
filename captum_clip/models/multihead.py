"""Attentions that keep their maps as `torch.nn.MultiheadAttention` does."""

from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from .attentions import Attention, PoolingHead
from .steps import Linear, Projections, linear_maps, linear_or_called


class Multihead(Attention):
    """A `torch.nn.MultiheadAttention` or one that keeps its maps in the same way."""

    attention: Any
    token_argument = (0, "query")
    maps: tuple[str, ...] = ("out_proj",)
    unknown_parts: tuple[str, ...] = ("bias_k", "add_zero_attn")
    true_hides = True
    batch_first_unless_told = True  # of an attention that does not say where its batch is

    @override
    def scale(self, size: int) -> float:
        return float(size**-0.5)  # it has no attribute for it, whatever somebody notes there

    @override
    def merge_module(self) -> nn.Module | None:
        return None  # it uses the output map by its weight

    @override
    def projections(self) -> Projections:
        # one stacked weight, or three where keys have a width of their own
        attention, output = self.attention, self.attention.out_proj
        if attention.in_proj_weight is None:
            weights = [getattr(attention, f"{name}_proj_weight") for name in "qkv"]
        else:
            weights = attention.in_proj_weight.chunk(3)
        last = Linear.of(output) if self.merge_module() is None else linear_or_called(output)
        return Projections._make((*linear_maps(weights, attention.in_proj_bias), last))

    @override
    def batch_first(self, tokens: Tensor) -> Tensor:
        first = getattr(self.attention, "batch_first", self.batch_first_unless_told)
        return tokens if first else tokens.transpose(0, 1)


class MultiheadPoolingHead(Multihead, PoolingHead):
    """A pooling head around a `torch.nn.MultiheadAttention`."""

    token_argument = (1, "key")

    def __init__(self, head: Any, attention: Any, norm: nn.Module, *modules: nn.Module) -> None:
        super().__init__(attention, attention, attention.num_heads)
        self.head, self.attention, self.norm, self.modules = head, attention, norm, modules
