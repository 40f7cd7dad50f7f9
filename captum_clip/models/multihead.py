"""Attentions that keep their maps as `torch.nn.MultiheadAttention` does."""

from torch import Tensor, nn
from typing_extensions import override

from .attentions import Attention, PoolingHead
from .steps import Linear, Step, linear_maps


class Multihead(Attention):
    """A `torch.nn.MultiheadAttention`, or OpenCLIP's own `Attention` with its maps so, too."""

    maps: tuple[str, ...] = ("out_proj",)
    batch_first_unless_told = True  # of an attention that does not say where its batch is

    @override
    def input_maps(self) -> list[Linear]:
        # one stacked weight, or three where keys have a width of their own
        attention = self.attention
        if attention.in_proj_weight is None:
            weights = [getattr(attention, f"{name}_proj_weight") for name in "qkv"]
        else:
            weights = attention.in_proj_weight.chunk(3)
        return linear_maps(weights, attention.in_proj_bias)

    @property
    @override
    def inner_norm(self) -> nn.Module | None:
        return getattr(self.attention, "ln_inner", None)

    @override
    def output_map(self) -> Step:
        # PyTorch never calls `out_proj`: it takes the weight, whatever is hooked on the module.
        # OpenCLIP's own attention calls it.
        is_called = self.inner_norm is not None
        return super().output_map() if is_called else Linear.of(self.attention.out_proj)

    @override
    def batch_first(self, tokens: Tensor) -> Tensor:
        first = getattr(self.attention, "batch_first", self.batch_first_unless_told)
        return tokens if first else tokens.transpose(0, 1)


class MultiheadPoolingHead(Multihead, PoolingHead):
    """A pooling head around a `torch.nn.MultiheadAttention`."""
