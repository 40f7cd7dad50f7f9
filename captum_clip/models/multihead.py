"""`torch.nn.MultiheadAttention`, which OpenCLIP's blocks and several pooling heads are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from .steps import Linear
from .towers import Probe, Projections
from .unmodified import is_linear


def projections(attention: Any) -> Projections:
    """Its live maps: one stacked weight, or three where keys have another width than queries."""
    if attention.in_proj_weight is None:
        weights = [getattr(attention, f"{name}_proj_weight") for name in "qkv"]
    else:
        weights = attention.in_proj_weight.chunk(3)
    stacked = attention.in_proj_bias
    biases = (None, None, None) if stacked is None else stacked.chunk(3)
    query, key, value = map(Linear, weights, biases)
    return Projections(
        query, key, value, Linear(attention.out_proj.weight, attention.out_proj.bias)
    )


def unsupported_parts(attention: Any) -> Iterator[str]:
    """What of it is not supported, in words."""
    if not is_linear(attention.out_proj):
        yield "an output map that is no torch.nn.Linear"
    if attention.bias_k is not None:
        yield "bias_k"
    if attention.add_zero_attn:
        yield "add_zero_attn"


class MultiheadProbe(Probe):
    """A pooling head around a `torch.nn.MultiheadAttention`.

    Args:
        attention: takes queries, keys and values.
        embedded_query: what it takes as its first query, (D,), now; a `partial`, whose module is
            copied with a deep copy of the model, which a lambda's is not.
        norm: what the last block's output goes through to become keys and values.
        modules: all that lies between the last block and the image embedding.
    """

    def __init__(
        self,
        attention: nn.MultiheadAttention,
        embedded_query: Callable[[], Tensor],
        norm: nn.Module,
        modules: Sequence[nn.Module],
    ) -> None:
        super().__init__(attention, attention, attention.num_heads)
        self.attention: Any = attention
        self._embedded_query = embedded_query
        self._norm = norm
        self._modules = tuple(modules)

    @override
    def projections(self) -> Projections:
        return projections(self.attention)

    @property
    @override
    def scale(self) -> float:
        return float(self.attention.head_dim**-0.5)

    @override
    def query(self) -> Tensor:
        query = F.linear(self._embedded_query(), *self.projections().query)
        return query.view(self.heads, -1)

    @override
    def keyed(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self._norm(hidden)
        return normed

    @override
    def modules(self) -> Sequence[nn.Module]:
        return self._modules

    @override
    def tokens(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        tokens: Tensor = args[1] if len(args) > 1 else kwargs["key"]
        return self._batch_first(tokens)

    @override
    def output(self, result: Any) -> Tensor:
        return self._batch_first(result[0])  # (output, weights or None)

    @override
    def replaced(self, result: Any, output: Tensor) -> Any:
        return (self._batch_first(output), *result[1:])

    def _batch_first(self, tokens: Tensor) -> Tensor:
        return tokens if self.attention.batch_first else tokens.transpose(0, 1)
