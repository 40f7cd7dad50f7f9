"""Attentions as the methods see them: where tokens, masks, maps and outputs are, in any library.

A model family implements these classes in its own file.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..maps import to_float32
from .steps import (
    Linear,
    Projections,
    Residual,
    Scale,
    Step,
    call_steps,
    linear_maps,
    linear_or_called,
    run_steps,
)


def part_of(result: Any, index: int = 0) -> Tensor:
    """A part of the output of a module, which may be several tensors or one."""
    return result if isinstance(result, Tensor) else result[index]


def with_part(result: Any, part: Tensor, index: int = 0) -> Any:
    """The output of a module with `part` in the place of one of its own."""
    if isinstance(result, Tensor):
        return part
    if isinstance(result, (tuple, list)):
        return type(result)((*result[:index], part, *result[index + 1 :]))
    return type(result)(**{**result, list(result)[index]: part})  # an output of transformers


def argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], index: int, name: str) -> Tensor:
    """An argument of a call, however it was handed over."""
    given: Tensor = args[index] if len(args) > index else kwargs[name]
    return given


@cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(forward)


_MASKS = ("attention_mask", "attn_mask", "key_padding_mask")
Which = Literal["query", "key"]
Exposed = Literal["query", "key", "value"]


@dataclass(frozen=True, eq=False)
class PooledToken:
    """The pooled token of every sequence, and which tokens attend to which."""

    rows: Tensor | None = None  # (B,), its index; None for the first token everywhere
    visible: Tensor | None = None  # (B, s, s), whether a row attends to a column; None for all

    def read(self, tokens: Tensor) -> Tensor:
        """Pick the pooled token, (..., B, s, D) -> (..., B, D)."""
        if self.rows is None:
            return tokens[..., 0, :]
        return tokens[..., torch.arange(len(self.rows), device=self.rows.device), self.rows, :]

    def row_of(self, like: Tensor) -> Tensor:
        """1 at the pooled token and 0 elsewhere, (B, s), for values (B, s)."""
        row = torch.zeros_like(to_float32(like))
        first = torch.zeros(len(row), device=row.device, dtype=torch.long)
        return row.scatter_(1, (first if self.rows is None else self.rows)[:, None], 1)

    def hidden(self) -> Tensor | None:
        """The tokens that the pooled one does not see, (B, s); None if it sees all."""
        return None if self.visible is None else ~self.read(self.visible)

    def masked(self, products: Tensor) -> Tensor:
        """Mask queries times keys, (B, H, s) of the pooled token or (B, H, s, s)."""
        if self.visible is None:
            return products
        visible = self.read(self.visible) if products.ndim == 3 else self.visible
        # minus infinity would make NaN of a row that sees nothing, such as one of padding
        return products.masked_fill(~visible[:, None], torch.finfo(products.dtype).min)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """The mask as an addend of the products, (B, 1, s, s)."""
        if self.visible is None:
            return None
        return self.masked(torch.zeros_like(self.visible, dtype=dtype)[:, None])

    def mean(self, tokens: Tensor, span: slice) -> Tensor:
        """Mean (B, 1, D) of the tokens of a span that the pooled one sees."""
        if self.visible is None:
            return tokens[:, span].mean(1, keepdim=True)
        visible = self.read(self.visible)[:, span, None].to(tokens.dtype)
        return (tokens[:, span] * visible).sum(1, keepdim=True) / visible.sum(1, keepdim=True)


class Attention:
    """One multi-head attention of H heads, seen from outside.

    Tokens enter `input_module`; `output_module`, mostly the same module, returns the result.
    """

    token_argument: tuple[int, str] = (0, "hidden_states")
    """Position and name of the tokens among the arguments of the input_module."""

    maps: tuple[str, ...]
    """Paths of its linear maps in `owner`, mostly the input_module; the last is the output's."""
    unknown_parts: tuple[str, ...] = ()
    """Optional parts of the input_module that compute more than is known."""

    def __init__(self, input_module: nn.Module, output_module: nn.Module, heads: int) -> None:
        self.input_module, self.output_module, self.heads = input_module, output_module, heads
        self.owner = input_module

    def map_modules(self) -> tuple[Any, ...]:
        """The modules at the paths of `maps`."""
        return tuple(attrgetter(path)(self.owner) for path in self.maps)

    def unsupported(self) -> Iterator[str]:
        """Parts that compute more than is known, in words."""
        for name in self.unknown_parts:
            if getattr(self.input_module, name, None) not in (None, False):
                yield name

    def projections(self) -> Projections:
        """The query, key, value and output maps as they are now; one module may hold several.

        Queries, keys and values are read where the library shows them, see `exposed`, so only an
        output map that is no plain linear layer is called.
        """
        *inputs, output = self.map_modules()
        linear = [*map(Linear.of, inputs)]
        if len(linear) == 1:
            linear = linear_maps(linear[0].weight.chunk(3), linear[0].bias)
        return Projections._make((*linear, linear_or_called(output)))

    def scale(self, size: int) -> float:
        """The factor of query times key: the input_module's own, or head size ** -0.5."""
        factor = getattr(self.input_module, "scale", getattr(self.input_module, "scaling", None))
        return size**-0.5 if factor is None else float(factor)

    def tokens(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The tokens (B, s, D) of keys and values among the arguments of the input_module."""
        return self.batch_first(argument(args, kwargs, *self.token_argument))

    def batch_first(self, tokens: Tensor) -> Tensor:
        """Tokens with the batch first, or back where the library has it second."""
        return tokens

    true_hides: ClassVar[bool] = False
    """Whether True in a mask hides a key, as in torch.nn.MultiheadAttention, or shows it."""

    def bias(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """The addend of the products in the masks among the arguments, (B, H, rows, s) or fewer.

        A vision tower gets one from a hook, which hides patches from each other.
        """
        if not any(isinstance(kwargs.get(name), Tensor) for name in _MASKS) and len(args) < 2:
            return None
        try:
            signature = _signature(type(self.input_module).forward)
            given = signature.bind(self, *args, **kwargs).arguments
        except (TypeError, ValueError):  # somebody's own forward, whose output is compared
            return None
        total: Tensor | None = None
        for name, mask in ((name, given.get(name)) for name in _MASKS):
            if not isinstance(mask, Tensor):
                continue
            if mask.dtype == torch.bool:
                hidden = mask if self.true_hides else ~mask
                mask = torch.zeros(mask.shape, device=mask.device).masked_fill(hidden, -torch.inf)
            if name == "key_padding_mask":
                mask = mask[:, None, None]
            elif mask.ndim == 3 and self.true_hides:  # images and heads on one axis
                mask = mask.reshape(-1, self.heads, *mask.shape[1:])
            mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
            total = mask if total is None else total + mask
        return total

    def context(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Another argument that `rotated` needs, such as a table of RoPE."""
        return None

    def output(self, result: Any) -> Tensor:
        """The output (B, rows, D) in the result of the output_module, or of the block."""
        return self.batch_first(part_of(result))

    def replaced(self, result: Any, output: Tensor) -> Any:
        """The result with `output` (B, rows, D) in the place of its own."""
        return with_part(result, self.batch_first(output))

    inner_norm_part: str | None = None
    """Name of the norm inside `input_module` that runs on the concatenated head outputs."""

    @property
    def inner_norm(self) -> nn.Module | None:
        """The module of that name, if any."""
        return getattr(self.input_module, self.inner_norm_part) if self.inner_norm_part else None

    @property
    def linear(self) -> bool:
        """Whether the output map alone follows the heads, so that a gradient passes it as W_O^T."""
        if not isinstance(self.inner_norm, (nn.Identity, type(None))):
            return False
        last = self.map_modules()[-1]
        return self.merge_module() is None or linear_or_called(last) is not last

    splits: tuple[tuple[Exposed, ...], ...] | None = None
    """What the outputs of the input maps hold side by side; by default q, k, v, or all of them."""

    def exposed(self) -> Mapping[nn.Module, tuple[Exposed, ...]]:
        """Modules whose output is one of these, or several side by side, as projected, (B, s, D).

        Others are computed again from the tokens.
        """
        *inputs, _ = self.map_modules()
        single: tuple[tuple[Exposed, ...], ...] = (("query",), ("key",), ("value",))
        splits = self.splits or (single if len(inputs) == 3 else (("query", "key", "value"),))
        return dict(zip(inputs, splits, strict=False))

    def merge_module(self) -> nn.Module | None:
        """The module that the heads' outputs enter side by side; None where no module shows it."""
        module: nn.Module = self.inner_norm or self.map_modules()[-1]
        return module

    def merge_steps(self, output: "Step | None" = None) -> tuple[Step, ...]:
        """The steps after the heads: the inner norm if there is one, and the output map."""
        norm = () if self.inner_norm is None else (self.inner_norm,)
        return (*norm, self.projections().output if output is None else output)

    def branch(self) -> tuple[Step, ...]:
        """The steps from its output to the residual."""
        return ()

    @property
    def plain(self) -> bool:
        """Whether queries and keys enter the product as they are projected.

        Then q . k_j = (W_K^T q) . x_j + a constant of the row, and no key need be computed.
        """
        return True

    def rotated(self, which: Which, heads: Tensor, context: Any) -> Tensor:
        """Queries or keys (B, H, rows, d) as they enter the product, the first rows of all."""
        return heads


class AttentionLayer(Attention):
    """One residual block, seen from its self-attention.

    It computes ``z = r + branch(attention(norm(r)))`` and ``z + mlp_branch(z)``, where ``r`` is the
    block's input; ``norm(r)`` are the tokens that enter ``attention``.
    """

    residual_argument: tuple[int, str] | None = None
    """Position and name of the block's input among its arguments; None: those of the tokens."""
    branch_parts: tuple[str, ...] = ()
    """Paths in the block, of modules or LayerScales, that follow the attention."""
    mlp_parts: tuple[str, ...]
    """Paths of its second branch: norm, MLP; without a default, so that no family forgets them."""

    def __init__(self, block: Any, attention: Any, heads: int) -> None:
        super().__init__(attention, attention, heads)
        self.block, self.attention = block, attention

    def residual(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The block's input (B, s, D) among the arguments of the block."""
        where = self.residual_argument or self.token_argument
        return self.batch_first(part_of(argument(args, kwargs, *where)))

    @override
    def branch(self) -> tuple[Step, ...]:
        return self._steps(self.branch_parts)

    def mlp_branch(self) -> tuple[Step, ...]:
        """The steps of the second branch: norm, MLP."""
        return self._steps(self.mlp_parts)

    def added(self) -> tuple[nn.Module, tuple[Step, ...]]:
        """The last module of the second branch, and the LayerScale that may follow it."""
        steps = self.mlp_branch()
        last = max(i for i, step in enumerate(steps) if isinstance(step, nn.Module))
        module: Any = steps[last]
        return module, steps[last + 1 :]

    def after_attention(self) -> tuple[Step, ...]:
        """The steps from the stream z to the block's output."""
        return (Residual(self.mlp_branch()),)

    def summed(self, stream: Tensor, added: Tensor) -> Tensor:
        """The block's output from the stream z and the output of `added`."""
        return stream + run_steps(self.added()[1], added)

    def tail(self, residual: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """The stream z and the block's output, of its input and the attention's output (..., D)."""
        stream = residual + call_steps(self.branch(), attended)
        return stream, call_steps(self.after_attention(), stream)

    def _steps(self, names: tuple[str, ...]) -> tuple[Step, ...]:
        parts = (attrgetter(name)(self.block) for name in names)
        return tuple(Scale(p) if isinstance(p, Tensor) else p for p in parts if p is not None)


class PoolingHead(Attention):
    """A pooling head: learned queries attend to the last block's tokens; the first is the output.

    SigLIP, PE-Core, CoCa and AIMv2 have one. With u_h = s W_K,h^T q_h the attention is
    a_hj = softmax_j(u_h . x_j), and the embedding is `TransformerTower.embed` of its output.
    """

    head: Any  # the library's own module
    query_part: str  # of the head, its learned queries (1, count, D)
    norm: nn.Module  # between the last block and the head
    modules: tuple[nn.Module, ...]  # all between the last block and the image embedding

    def embedded_query(self) -> Tensor:
        """The vector (D,) that is mapped to the first query."""
        query: Tensor = getattr(self.head, self.query_part)[0, 0]
        return query

    def query(self) -> Tensor:
        """The first query (H, d), which no image changes, not yet scaled."""
        query = self.projections().query(self.embedded_query())
        return query.view(self.heads, -1)

    def keyed(self, hidden: Tensor) -> Tensor:
        """The input of its keys and values, (B, s, D), from a block's output (B, s, D)."""
        normed: Tensor = self.norm(hidden)
        return normed
