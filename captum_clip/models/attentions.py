"""Attentions as the methods see them, whichever library they come from.

These classes say which modules run and which steps follow the heads. A model family implements them
in its own file. It does not say how queries, keys and masks make weights, which a recording reads
where it happens.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..maps import to_float32
from .steps import Gated, Linear, Residual, Step, is_plain_linear, linear_maps, run_steps


def tensor_in(result: Any, index: int = 0) -> Tensor:
    """The tensor at an index of a module's result; a result that is a tensor is returned itself."""
    if isinstance(result, Tensor):
        return result
    try:
        # An output of transformers is a dataclass that can be indexed; other dataclasses cannot.
        if is_dataclass(result) and not isinstance(result, Mapping):
            result = list(vars(result).values())
        return result[index]  # type: ignore[no-any-return]
    except (TypeError, LookupError) as error:
        raise _without_output(result) from error


def with_tensor(result: Any, tensor: Tensor, index: int = 0) -> Any:
    """A module's result with `tensor` in place of the one at an index."""
    if isinstance(result, Tensor):
        return tensor
    is_named_tuple = hasattr(result, "_replace")
    if is_named_tuple:
        name = result._fields[index]
        return result._replace(**{name: tensor})
    if isinstance(result, (tuple, list)):
        items = list(result)
        items[index] = tensor
        return type(result)(items)
    # Outputs of transformers are mappings.
    if isinstance(result, Mapping):
        name = list(result)[index]
        return type(result)(**{**result, name: tensor})
    if is_dataclass(result) and not isinstance(result, type):
        name = list(vars(result))[index]
        return replace(result, **{name: tensor})
    raise _without_output(result)


def _without_output(result: Any) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"a module of the model returns a {type(result).__name__}, in which captum_clip cannot "
        "find the output; return a tensor, a tuple or an output of transformers."
    )


@dataclass(frozen=True, eq=False)
class PooledToken:
    """The pooled token of every sequence, and the tokens that it sees."""

    rows: Tensor | None = None  # (B,), its index; None if it is the first token everywhere
    visible: Tensor | None = None  # (B, s), whether it sees a token; None if it sees all

    def read(self, tokens: Tensor) -> Tensor:
        """Pick the pooled token, (..., B, s, D) -> (..., B, D)."""
        if self.rows is None:
            return tokens[..., 0, :]
        sequences = torch.arange(len(self.rows), device=self.rows.device)
        return tokens[..., sequences, self.rows, :]

    def row_of(self, like: Tensor) -> Tensor:
        """1 at the pooled token and 0 elsewhere, in the shape (B, s) of `like`."""
        row = torch.zeros_like(to_float32(like))
        index = self.rows
        if index is None:
            index = torch.zeros(len(row), device=row.device, dtype=torch.long)
        return row.scatter_(1, index[:, None], 1)

    def hidden(self) -> Tensor | None:
        """The tokens that the pooled one does not see, (B, s); None if it sees all."""
        return None if self.visible is None else ~self.visible

    def mean(self, tokens: Tensor, span: slice) -> Tensor:
        """Mean (B, 1, D) of those tokens of a span that the pooled one sees."""
        tokens = tokens[:, span]
        if self.visible is None:
            return tokens.mean(1, keepdim=True)
        visible = self.visible[:, span, None].to(tokens.dtype)
        total = (tokens * visible).sum(1, keepdim=True)
        return total / visible.sum(1, keepdim=True)


class Attention:
    """One multi-head attention of H heads, seen from outside.

    It runs between the start of `input_module` and the end of `output_module`, which returns the
    result. Both are `attention`, the library's own module, unless a family says otherwise.
    """

    is_pool: ClassVar[bool] = False
    """Whether its queries are learned, and the first of them pools the tokens."""
    maps: tuple[str, ...]
    """Paths of its linear maps in `attention`; the last one makes the output."""
    inner_norm_name: str | None = None
    """Name in `attention` of a norm that runs on the concatenated head outputs."""

    def __init__(self, attention: Any, heads: int) -> None:
        self.attention = attention
        self.heads = heads
        self.input_module = attention
        self.output_module = attention

    def input_maps(self) -> list[Linear]:
        """The maps of queries, keys and values as they are now; one module may hold all three."""
        maps = []
        for path in self.maps[:-1]:
            module = attrgetter(path)(self.attention)
            maps.append(Linear.of(module))
        if len(maps) > 1:
            return maps
        [stacked] = maps
        return linear_maps(stacked.weight.chunk(3), stacked.bias)

    def output_map(self) -> Step:
        """The map of the concatenated head outputs as it is now."""
        module = attrgetter(self.maps[-1])(self.attention)
        return Linear.of(module) if is_plain_linear(module) else module

    @property
    def inner_norm(self) -> nn.Module | None:
        """The norm on the concatenated head outputs, if there is one."""
        if self.inner_norm_name is None:
            return None
        return getattr(self.attention, self.inner_norm_name, None)

    def merge_steps(self) -> tuple[Step, ...]:
        """The steps after the heads: the inner norm if there is one, and the output map."""
        if self.inner_norm is None:
            return (self.output_map(),)
        return self.inner_norm, self.output_map()

    def branch(self) -> tuple[Step, ...]:
        """The steps from the attention's output to its sum with the residual stream."""
        return ()

    @property
    def positions(self) -> Tensor | None:
        """The positions (1 + N, C) that a pool of N features adds to their mean and to them."""
        return None

    def batch_first(self, tokens: Tensor) -> Tensor:
        """Swap batch and sequence if the library has the batch second: (B, s, D) <-> (s, B, D)."""
        return tokens

    def output(self, result: Any) -> Tensor:
        """The output (B, rows, D) in the result of the output_module, or of the block."""
        return self.batch_first(tensor_in(result))

    def replaced(self, result: Any, output: Tensor) -> Any:
        """The result with another output (B, rows, D)."""
        return with_tensor(result, self.batch_first(output))


class AttentionLayer(Attention):
    """One residual block, seen from its self-attention.

    It computes ``z = r + branch(attention(norm(r)))`` and ``z + mlp_branch(z)``, where ``r`` is the
    block's input.
    """

    branch_paths: tuple[str, ...] = ()
    """Paths in the block of the modules or LayerScales that follow the attention."""
    # There is no default, since a family that forgets them would have blocks without an MLP.
    mlp_paths: tuple[str, ...]
    """Paths in the block of its second branch: norm, MLP."""

    def __init__(self, block: Any, attention: Any, heads: int) -> None:
        super().__init__(attention, heads)
        self.block = block

    def residual(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The block's input (B, s, D), the first of its arguments, whatever it is called."""
        first, *_ = (*args, *kwargs.values())
        # MaPLe's blocks take a list of the tokens and their prompts.
        return self.batch_first(tensor_in(first))

    def with_residual(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], tokens: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The block's arguments with other tokens (B, n, D) as its input."""
        tokens = self.batch_first(tokens)
        if args:
            return (with_tensor(args[0], tokens), *args[1:]), dict(kwargs)
        name = next(iter(kwargs))
        return (), {**kwargs, name: with_tensor(kwargs[name], tokens)}

    def branch(self) -> tuple[Step, ...]:
        return self._steps_at(self.branch_paths)

    def mlp_branch(self) -> tuple[Step, ...]:
        """The steps of the second branch: norm, MLP."""
        return self._steps_at(self.mlp_paths)

    def added(self) -> tuple[nn.Module, tuple[Step, ...]]:
        """The last module of the second branch, and the LayerScale that may follow it."""
        steps = list(self.mlp_branch())
        # timm's EVA keeps its LayerScale as a parameter, on which no hook can be set.
        after_module: list[Step] = []
        while not isinstance(steps[-1], nn.Module):
            after_module.insert(0, steps.pop())
        return steps[-1], tuple(after_module)

    def after_attention(self) -> tuple[Step, ...]:
        """The steps from the stream z to the block's output."""
        return (Residual(self.mlp_branch()),)

    def summed(self, stream: Tensor, added: Tensor) -> Tensor:
        """The block's output from the stream z and the output of the module in :meth:`added`."""
        _, after_module = self.added()
        return stream + run_steps(after_module, added)

    def _steps_at(self, paths: tuple[str, ...]) -> tuple[Step, ...]:
        """The modules and LayerScales at some paths in the block; blocks may lack some."""
        steps: list[Step] = []
        for path in paths:
            part = attrgetter(path)(self.block)
            if isinstance(part, Tensor):
                steps.append(Gated(part))
            elif part is not None:
                steps.append(part)
        return tuple(steps)


class PostNormLayer(AttentionLayer):
    """A block whose norms follow its sums, so that they lie on the stream itself.

    It computes ``z = first(r + attention(r))`` and ``second(z + mlp_branch(z))``.
    """

    @property
    @abstractmethod
    def stream_norms(self) -> tuple[nn.Module, nn.Module]:
        """The first norm and the second."""

    def after_attention(self) -> tuple[Step, ...]:
        first, second = self.stream_norms
        return first, Residual(self.mlp_branch()), second

    def summed(self, stream: Tensor, added: Tensor) -> Tensor:
        first, second = self.stream_norms
        normed = run_steps((first,), stream)
        return run_steps((second,), normed + added)


class PoolingHead(Attention):
    """A pooling head, whose learned queries attend to the last block's tokens.

    SigLIP, PE-Core, CoCa and AIMv2 have one. The first row that its attention returns is the pooled
    token, which `Tower.head` takes.
    """

    is_pool = True

    def __init__(
        self, head: Any, attention: Any, heads: int, *, norm: nn.Module | None = None
    ) -> None:
        super().__init__(attention, heads)
        self.head = head  # the library's own module around the attention
        self.norm = norm  # between the last block and the head

    def pool(self, tokens: Tensor) -> Any:
        """Run the head on tokens (B, s, D) as a block returns them."""
        if self.norm is not None:
            tokens = self.norm(tokens)
        return self.head(tokens)

    def output(self, result: Any) -> Tensor:
        pooled = super().output(result)
        # Some heads return the pooled token (B, D) alone.
        return pooled[:, None] if pooled.ndim == 2 else pooled


class LatentPoolingHead(PoolingHead):
    """A pooling head that is its own attention, and calls its output map last."""

    def __init__(self, head: Any, norm: nn.Module, output_map: str) -> None:
        super().__init__(head, head, head.num_heads, norm=norm)
        self.maps = (output_map,)
        self.output_module = getattr(head, output_map)


class Multihead(Attention):
    """A `torch.nn.MultiheadAttention`, or a module with its parameters or its function."""

    maps: tuple[str, ...] = ("out_proj",)
    inner_norm_name = "ln_inner"  # OpenCLIP's own `Attention` may have one.
    default_batch_first = True  # for an attention that does not say where its batch is

    def input_maps(self) -> list[Linear]:
        if len(self.maps) > 1:
            return super().input_maps()
        # There is one stacked weight, or three where keys have a width of their own.
        attention = self.attention
        if attention.in_proj_weight is None:
            weights = [getattr(attention, f"{name}_proj_weight") for name in "qkv"]
        else:
            weights = attention.in_proj_weight.chunk(3)
        return linear_maps(weights, attention.in_proj_bias)

    def output_map(self) -> Step:
        if self.inner_norm is not None:
            return super().output_map()
        # PyTorch never calls `out_proj`: it reads the weight, so hooks on the module do nothing.
        return Linear.of(getattr(self.attention, self.maps[-1]))

    def batch_first(self, tokens: Tensor) -> Tensor:
        is_first = getattr(self.attention, "batch_first", self.default_batch_first)
        return tokens if is_first else tokens.transpose(0, 1)


class MultiheadPoolingHead(Multihead, PoolingHead):
    """A pooling head around a `torch.nn.MultiheadAttention`."""
