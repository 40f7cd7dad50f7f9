"""Attentions that keep their maps as `torch.nn.MultiheadAttention` does."""

from torch import Tensor
from typing_extensions import override

from .attentions import Attention, PoolingHead
from .steps import Linear, Step, linear_maps


class Multihead(Attention):
    """A `torch.nn.MultiheadAttention`, and what keeps its maps or calls its function likewise."""

    maps: tuple[str, ...] = ("out_proj",)
    inner_norm_name = "ln_inner"  # of OpenCLIP's own `Attention`
    batch_first_unless_told = True  # of an attention that does not say where its batch is

    @override
    def input_maps(self) -> list[Linear]:
        if len(self.maps) > 1:
            return super().input_maps()
        # one stacked weight, or three where keys have a width of their own
        attention = self.attention
        if attention.in_proj_weight is None:
            weights = [getattr(attention, f"{name}_proj_weight") for name in "qkv"]
        else:
            weights = attention.in_proj_weight.chunk(3)
        return linear_maps(weights, attention.in_proj_bias)

    @override
    def output_map(self) -> Step:
        if self.inner_norm is not None:
            return super().output_map()
        # PyTorch never calls `out_proj`: it takes the weight, whatever is hooked on the module
        return Linear.of(getattr(self.attention, self.maps[-1]))

    @override
    def batch_first(self, tokens: Tensor) -> Tensor:
        first = getattr(self.attention, "batch_first", self.batch_first_unless_told)
        return tokens if first else tokens.transpose(0, 1)


class MultiheadPoolingHead(Multihead, PoolingHead):
    """A pooling head around a `torch.nn.MultiheadAttention`."""
