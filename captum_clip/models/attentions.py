"""Attentions as the methods see them: what runs, what follows the heads, in any library.

A model family implements these classes in its own file. How queries, keys and masks make weights is
no family's matter: that is read where it runs.
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
    """The tensor at an index of what a module returned, or that tensor itself."""
    if isinstance(result, Tensor):
        return result
    try:
        # An output of transformers is a dataclass that is read by index; other ones are not.
        if is_dataclass(result) and not isinstance(result, Mapping):
            result = [*vars(result).values()]
        return result[index]  # type: ignore[no-any-return]
    except (TypeError, LookupError) as error:
        raise _without_output(result) from error


def with_tensor(result: Any, tensor: Tensor, index: int = 0) -> Any:
    """What a module returned, with `tensor` in place of the one at an index."""
    if isinstance(result, Tensor):
        return tensor
    if hasattr(result, "_replace"):  # a named tuple
        return result._replace(**{result._fields[index]: tensor})
    if isinstance(result, (tuple, list)):
        return type(result)((*result[:index], tensor, *result[index + 1 :]))
    if isinstance(result, Mapping):  # an output of transformers
        return type(result)(**{**result, list(result)[index]: tensor})
    if is_dataclass(result) and not isinstance(result, type):
        return replace(result, **{list(vars(result))[index]: tensor})
    raise _without_output(result)


def _without_output(result: Any) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"a module of the model returns a {type(result).__name__}, in which captum_clip cannot "
        "find the output; return a tensor, a tuple or an output of transformers."
    )


@dataclass(frozen=True, eq=False)
class PooledToken:
    """The pooled token of every sequence, and the tokens that it sees."""

    rows: Tensor | None = None  # (B,), its index; None for the first token everywhere
    visible: Tensor | None = None  # (B, s), whether it sees a token; None for all

    def read(self, tokens: Tensor) -> Tensor:
        """Pick the pooled token, (..., B, s, D) -> (..., B, D)."""
        if self.rows is None:
            return tokens[..., 0, :]
        return tokens[..., torch.arange(len(self.rows), device=self.rows.device), self.rows, :]

    def row_of(self, like: Tensor) -> Tensor:
        """1 at the pooled token and 0 elsewhere, (B, s), for values (B, s)."""
        row = torch.zeros_like(to_float32(like))
        index = self.rows
        if index is None:
            index = torch.zeros(len(row), device=row.device, dtype=torch.long)
        return row.scatter_(1, index[:, None], 1)

    def hidden(self) -> Tensor | None:
        """The tokens that the pooled one does not see, (B, s); None if it sees all."""
        return None if self.visible is None else ~self.visible

    def mean(self, tokens: Tensor, span: slice) -> Tensor:
        """Mean (B, 1, D) of the tokens of a span that the pooled one sees."""
        if self.visible is None:
            return tokens[:, span].mean(1, keepdim=True)
        visible = self.visible[:, span, None].to(tokens.dtype)
        return (tokens[:, span] * visible).sum(1, keepdim=True) / visible.sum(1, keepdim=True)


class Attention:
    """One multi-head attention of H heads, seen from outside.

    It runs between the start of `input_module` and the end of `output_module`, which returns the
    result. Both are `attention`, the library's own module, unless a family says otherwise.
    """

    is_pool: ClassVar[bool] = False
    """Whether its queries are learned, and the first of them pools the tokens."""
    maps: tuple[str, ...]
    """Paths of its linear maps in `attention`; the last is the output's."""
    inner_norm_name: str | None = None
    """Name in `attention` of a norm that runs on the concatenated head outputs."""

    def __init__(self, attention: Any, heads: int) -> None:
        self.attention, self.heads = attention, heads
        self.input_module = self.output_module = attention

    def input_maps(self) -> list[Linear]:
        """The maps of queries, keys and values as they are now, which one module may hold."""
        maps = [Linear.of(attrgetter(path)(self.attention)) for path in self.maps[:-1]]
        if len(maps) > 1:
            return maps
        [stacked] = maps
        return linear_maps(stacked.weight.chunk(3), stacked.bias)

    def output_map(self) -> Step:
        """The map of the heads' outputs side by side as it is now."""
        module = attrgetter(self.maps[-1])(self.attention)
        return Linear.of(module) if is_plain_linear(module) else module

    @property
    def inner_norm(self) -> nn.Module | None:
        """The norm of that name, if there is one."""
        name = self.inner_norm_name
        return None if name is None else getattr(self.attention, name, None)

    def merge_steps(self) -> tuple[Step, ...]:
        """The steps after the heads: the inner norm if there is one, and the output map."""
        return (*filter(None, [self.inner_norm]), self.output_map())

    def branch(self) -> tuple[Step, ...]:
        """The steps from its output to the residual."""
        return ()

    @property
    def positions(self) -> Tensor | None:
        """Of a pool of features: what is added to their mean and to them, (1 + N, C)."""
        return None

    def batch_first(self, tokens: Tensor) -> Tensor:
        """Tokens with the batch first, or back where the library has it second."""
        return tokens

    def output(self, result: Any) -> Tensor:
        """The output (B, rows, D) in the result of the output_module, or of the block."""
        return self.batch_first(tensor_in(result))

    def replaced(self, result: Any, output: Tensor) -> Any:
        """The result with `output` (B, rows, D) in the place of its own."""
        return with_tensor(result, self.batch_first(output))


class AttentionLayer(Attention):
    """One residual block, seen from its self-attention.

    It computes ``z = r + branch(attention(norm(r)))`` and ``z + mlp_branch(z)``, where ``r`` is the
    block's input.
    """

    branch_paths: tuple[str, ...] = ()
    """Paths in the block, of modules or LayerScales, that follow the attention."""
    mlp_paths: tuple[str, ...]
    """Paths of its second branch: norm, MLP."""
    # There is no default, since a family that forgets them would have blocks without an MLP.

    def __init__(self, block: Any, attention: Any, heads: int) -> None:
        super().__init__(attention, heads)
        self.block = block

    def residual(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The block's input (B, s, D), the first of its arguments, whatever it is called."""
        # MaPLe's blocks take a list of the tokens and their prompts.
        return self.batch_first(tensor_in(next(iter((*args, *kwargs.values())))))

    def with_residual(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], tokens: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The block's arguments with other tokens (B, n, D) in the place of its own."""
        tokens = self.batch_first(tokens)
        if args:
            return (with_tensor(args[0], tokens), *args[1:]), dict(kwargs)
        name = next(iter(kwargs))
        return (), {**kwargs, name: with_tensor(kwargs[name], tokens)}

    def branch(self) -> tuple[Step, ...]:
        """See `Attention`."""
        return self._steps(self.branch_paths)

    def mlp_branch(self) -> tuple[Step, ...]:
        """The steps of the second branch: norm, MLP."""
        return self._steps(self.mlp_paths)

    def added(self) -> tuple[nn.Module, tuple[Step, ...]]:
        """The last module of the second branch, and the LayerScale that may follow it."""
        # timm's EVA keeps its LayerScale as a parameter, on which no hook can be set.
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

    def _steps(self, names: tuple[str, ...]) -> tuple[Step, ...]:
        steps = (attrgetter(name)(self.block) for name in names)
        return tuple(Gated(s) if isinstance(s, Tensor) else s for s in steps if s is not None)


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
        return run_steps((second,), run_steps((first,), stream) + added)


class PoolingHead(Attention):
    """A pooling head: learned queries attend to the last block's tokens; the first is the output.

    SigLIP, PE-Core, CoCa and AIMv2 have one. What its attention returns is the pooled token, from
    which `Tower.head` goes on.
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
        return self.head(tokens if self.norm is None else self.norm(tokens))

    def output(self, result: Any) -> Tensor:
        """See `Attention`; some return the pooled token (B, D) alone."""
        pooled = super().output(result)
        return pooled[:, None] if pooled.ndim == 2 else pooled


class LatentPoolingHead(PoolingHead):
    """A pooling head that is its own attention, and calls its output map last."""

    def __init__(self, head: Any, norm: nn.Module, output_map: str) -> None:
        super().__init__(head, head, head.num_heads, norm=norm)
        self.maps, self.output_module = (output_map,), getattr(head, output_map)


class Multihead(Attention):
    """A `torch.nn.MultiheadAttention`, and what keeps its maps or calls its function likewise."""

    maps: tuple[str, ...] = ("out_proj",)
    inner_norm_name = "ln_inner"  # of OpenCLIP's own `Attention`
    batch_first_unless_told = True  # of an attention that does not say where its batch is

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
        # PyTorch never calls `out_proj`: it takes the weight, whatever is hooked on the module.
        return Linear.of(getattr(self.attention, self.maps[-1]))

    def batch_first(self, tokens: Tensor) -> Tensor:
        is_first = getattr(self.attention, "batch_first", self.batch_first_unless_told)
        return tokens if is_first else tokens.transpose(0, 1)


class MultiheadPoolingHead(Multihead, PoolingHead):
    """A pooling head around a `torch.nn.MultiheadAttention`."""
