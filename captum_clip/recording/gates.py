"""A recording in whose graph every gate is a constant, and whether that is linear."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from ..errors import UnsupportedModelError
from ..maps import autocast_disabled, to_float32
from ..models.steps import gate_of
from ..models.towers import TransformerTower
from .forwards import Blocks, plan_attentions, plan_embedding, recording
from .graph import held, keeps_graph
from .places import Places
from .reads import AttentionRead
from .records import Recording
from .watch import Watch

# functions of each number, which are x times a gate
_ACTIVATIONS: Final = {
    *(F.gelu, F.silu, F.relu, F.relu6, F.elu, F.selu, F.celu, F.leaky_relu, F.prelu, F.mish),
    *(F.hardtanh, F.hardswish, F.hardsigmoid, F.softplus, F.tanh, F.sigmoid, torch.relu, torch.erf),
    *(torch.tanh, torch.sigmoid, Tensor.relu, Tensor.tanh, Tensor.sigmoid, Tensor.erf),
}
_IN_PLACE: Final = {torch.relu_, Tensor.relu_, Tensor.tanh_, Tensor.sigmoid_, F.relu_, F.elu_}
_NORMS: Final = {F.layer_norm: True, torch.layer_norm: True, F.rms_norm: False}  # if they center
_DEVIATIONS: Final = {torch.rsqrt, torch.sqrt, Tensor.rsqrt, Tensor.sqrt, torch.std, Tensor.std}
_PRODUCTS: Final = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}
# what leaves a gate one: numbers added or multiplied, casts and views
_SUMS: Final = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
_VIEWS: Final = {Tensor.to, Tensor.float, Tensor.type_as, Tensor.view, Tensor.reshape, F.dropout}


class _Weighted(torch.autograd.Function):
    """Values weighted by an attention as constants, or the transpose of that.

    The weights are made anew for each, since those of all layers would need much memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, read: AttentionRead, out: Tensor | None) -> Tensor:
        ctx.read, ctx.transposed = read, out is None
        if out is not None:  # as it ran
            return out.clone()
        with autocast_disabled(x):
            return (read.matrix(compare=False).mT @ to_float32(x)).to(read.value.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if not ctx.transposed:
            return _weighted(gradient, ctx.read, None), None, None
        weights = ctx.read.matrix(compare=False)
        return (weights @ to_float32(gradient)).to(gradient.dtype), None, None


def _weighted(x: Tensor, read: AttentionRead, out: Tensor | None) -> Tensor:
    weighted: Any = _Weighted.apply
    return weighted(x, read, out)  # type: ignore[no-any-return]


class _Held(Watch):
    """Holds the gates of all functions of torch while the tower runs."""

    sees_all = True

    def __init__(self, record: Recording, holds_attention: bool) -> None:
        super().__init__(record.transformer.noun)
        self._record, self._holds_attention = record, holds_attention
        self.holds = False  # while the tower runs
        self._gates: dict[int, Tensor] = {}  # held, since the id of one that is gone is used again

    def attend(self, _: int, read: AttentionRead) -> Tensor | None:
        """Put the outputs of an attention that ran in a graph without its weights."""
        assert read.row is not None  # compared with what ran
        read.watch()
        if not read.value.requires_grad and self._record.begun:
            raise UnsupportedModelError(
                f"no gradient reaches {read.name} of the {self._noun}: something before it turns "
                "the graph off. Remove that, or use a method without gradients, such as direct."
            )
        if not self._holds_attention:
            return None
        if keeps_graph():
            weights = held(read.matrix(compare=False))
            with autocast_disabled(weights):
                return _with_value(weights @ to_float32(read.value), read.out)
        return _weighted(read.value, read.alone(), read.out.detach())

    @override
    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        first = args[0] if args else kwargs.get("input")
        if not (self.holds and isinstance(first, Tensor) and torch.is_grad_enabled()):
            return func(*args, **kwargs)
        if func in _PRODUCTS and len(args) == 2 and not kwargs:
            return self._product(func, *args)
        if func in _IN_PLACE or (func in _ACTIVATIONS and _works_in_place(args, kwargs)):
            raise UnsupportedModelError(
                f"the {self._noun} computes a {getattr(func, '__name__', func)} in place, so its "
                "input is lost; build the activation with inplace=False."
            )
        out = func(*args, **kwargs)
        if func in _DEVIATIONS:
            return held(out)
        if func in _ACTIVATIONS and first.requires_grad:
            # of slots of a place in which it is zero the gate is the slope there
            gate = gate_of(lambda x: func(x, *args[1:], **kwargs) if args else out, first, out)
            return self._gate(_with_value(first * held(gate), out))
        if func in _NORMS and first.requires_grad:
            normed = _held_norm(_NORMS[func], *args, **kwargs)
            self._compare(normed.detach(), out.detach(), getattr(func, "__name__", "norm"))
            return _with_value(normed, out)
        number = not any(isinstance(each, Tensor) for each in (*args[1:], *kwargs.values()))
        if id(first) in self._gates and (func in _VIEWS or (func in _SUMS and number)):
            return self._gate(out)
        return out

    def _compare(self, made: Tensor, out: Tensor, name: str) -> None:
        """What is held must be what ran, of each image as a whole."""
        off, size = (
            to_float32(each).flatten(1).norm(dim=1, keepdim=True) for each in (made - out, out)
        )
        zero = torch.zeros_like(off, dtype=out.dtype)
        self._record.compare(f"a {name}", off, zero, size)

    def _gate(self, tensor: Tensor) -> Tensor:
        self._gates[id(tensor)] = tensor
        return tensor

    def _product(self, func: Any, first: Tensor, second: Any) -> Tensor:
        """A gate times a branch, which is then the linear one."""
        if not isinstance(second, Tensor):  # a number
            out: Tensor = func(first, second)
            return self._gate(out) if id(first) in self._gates else out
        gates = [id(each) in self._gates for each in (first, second)]
        if gates == [True, False] and _is_branch(second):
            return func(held(first), second)  # type: ignore[no-any-return]
        if gates == [False, True] and _is_branch(first):
            return func(first, held(second))  # type: ignore[no-any-return]
        return func(first, second)  # type: ignore[no-any-return]


def _is_branch(tensor: Tensor) -> bool:
    """Whether a tensor is computed, and no parameter."""
    return tensor.requires_grad and not tensor.is_leaf


def _works_in_place(args: Any, kwargs: Any) -> bool:
    return bool(kwargs.get("inplace", False)) or any(arg is True for arg in args[1:])


def _with_value(made: Tensor, value: Tensor) -> Tensor:
    """A tensor of the graph with the value that the model gave, which may differ by rounding."""
    made = made.to(value.dtype)
    return made + (value - made).detach()


def _held_norm(
    centers: bool, x: Tensor, shape: Any, weight: Any = None, *rest: Any, **more: Any
) -> Tensor:
    """A norm with its standard deviation as a constant."""
    bias = more.get("bias", rest[0] if rest and centers else None)
    epsilon = more.get("eps", rest[1 if centers else 0] if len(rest) > centers else None)
    epsilon = epsilon if epsilon is not None else (1e-5 if centers else torch.finfo(x.dtype).eps)
    dims = tuple(range(-len(shape), 0))
    wide = to_float32(x)
    wide = wide - wide.mean(dims, keepdim=True) if centers else wide
    scale = (held(wide).square().mean(dims, keepdim=True) + epsilon).rsqrt()
    normed = wide * scale
    normed = normed if weight is None else normed * held(weight)
    return normed if bias is None else normed + held(bias)


@contextmanager
def record_held(
    tower: TransformerTower,
    *,
    attention: bool = True,
    places: bool = False,
    readout: nn.Module | None = None,
) -> Iterator[Recording]:
    """Record a forward from the projected patches on, in whose graph every gate is a constant.

    Norms keep their standard deviation, activations f(x) / x, a gate its whole, and with
    `attention` the attentions their weights; the values are those of the plain forward.
    """

    def begin(args: Any, result: Any) -> Tensor:
        watch.holds = True
        return record.begin(args, result)

    def end(*_: Any) -> None:
        watch.holds = False

    with recording(tower, gradient=True) as (hooks, record):
        watch = _Held(record, attention)
        moves = Places(record, hooks) if places else None
        hooks.after(tower.stem, begin, "The patch projection")
        if moves is not None:
            hooks.after(tower.stem, moves.begin)
        Blocks(record, range(0), range(0), moves).plan(hooks)
        layers = range(len(tower.attentions))
        plan_attentions(hooks, record, watch, layers, watch.attend, moves)
        plan_embedding(hooks, record, tower, readout)
        last = readout if tower.kind == "text" else tower.module
        if last is not None:
            hooks.after(last, end)
        with watch:
            yield record


def refuse_nonlinear(gradient: Tensor, patches: Tensor, noun: str) -> None:
    """Raise UnsupportedModelError where a gradient at the patches depends on these."""
    if not gradient.requires_grad:
        return
    weights = torch.linspace(-1, 2, gradient.numel(), device=gradient.device).to(gradient)
    weights = weights.view(gradient.shape)
    try:
        [change] = torch.autograd.grad(gradient, patches, weights, keeps_graph(), allow_unused=True)
        is_linear = change is None or not bool(change.any())
    except RuntimeError:  # an operation without a second derivative, on a way that is not linear
        is_linear = False
    if not is_linear:
        raise UnsupportedModelError(
            f"the {noun} is not linear in its tokens even with its gates held; relevance passes "
            "only linear maps, LayerNorm, RMSNorm and activations. Use another method."
        )
