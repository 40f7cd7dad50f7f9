"""Passes beside the plain one: with every gate as a constant, or of parts on other tokens."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..maps import autocast_disabled, to_float32
from ..models.steps import ACTIVATIONS, gate_of, norm_at
from .graph import held, keeps_graph
from .hooks import Arguments, Hooks, Watch, uncompiled
from .laws import refuse_other_weights
from .observe import Observer, begin, plan_attention, refuse_cut_graph
from .reads import AttentionRead
from .records import Recording, channel_ramp

# functions by the names that torch, its tensors and aten have for them
_NORMS: Final = {  # their arguments; one without a bias does not center
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
}
_DEVIATIONS: Final = {"rsqrt", "sqrt", "std"}
_PRODUCTS: Final = {"mul", "__mul__", "__rmul__"}
# what leaves a gate one: numbers added or multiplied, casts and views
_SUMS: Final = {"add", "__add__", "__radd__"}
_VIEWS: Final = {"to", "float", "type_as", "view", "reshape", "dropout"}

Map = Callable[[Tensor], Tensor]


class _Linear(torch.autograd.Function):
    """A value as it ran, whose gradient is that of a linear map and its transpose `back`.

    Both make what they hold anew, since the attentions of all layers would need much memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ran: Tensor, push: Map, back: Map) -> Tensor:
        ctx.maps = back, push
        return ran.detach()  # no view, which nothing may change in place

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:  # type: ignore[override, unused-ignore]
        with torch.no_grad(), autocast_disabled(gradient):
            below = ctx.maps[0](to_float32(gradient))
        below = _apply(gradient, below, *ctx.maps) if torch.is_grad_enabled() else below
        return below, None, None, None


_apply: Any = _Linear.apply


def _linear(x: Tensor, ran: Tensor, push: Map, back: Map) -> Tensor:
    """What ran of x, in the graph as the map `push`, whose transpose is `back`.

    With a graph that is kept, derivatives of what these hold pass, too.
    """
    if keeps_graph():
        with autocast_disabled(x):
            pushed = push(to_float32(x)).to(ran.dtype)
        return pushed + (ran - pushed).detach()  # which may differ by rounding
    return _apply(x, ran.detach(), push, back)  # type: ignore[no-any-return]


class _GateWatch(Watch):
    """Holds the gates of all functions of torch while the tower runs."""

    sees_all = True

    def __init__(self, record: Recording) -> None:
        super().__init__(record.transformer.noun)
        self._record = record
        self.holds = False  # while the tower runs
        self._gates: dict[int, Tensor] = {}  # held, since the id of one that is gone is used again

    def attend(self, _: int, read: AttentionRead) -> Tensor:
        """Put the outputs of an attention that ran in a graph without its weights."""
        for tensor in read.sources:
            self._record.graph.watched(tensor)
        # in the forward of an autograd.Function, too, the graph is off
        is_off = not (read.value.requires_grad and torch.is_grad_enabled())
        if is_off:
            refuse_cut_graph(self._record, read)
        alone = read if keeps_graph() else read.alone()

        def weights() -> Tensor:
            return held(alone.matrix())

        return _linear(read.value, read.out, lambda x: weights() @ x, lambda x: weights().mT @ x)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        first = args[0] if args else kwargs.get("input")
        if not (self.holds and isinstance(first, Tensor) and torch.is_grad_enabled()):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "").partition(".")[0]  # of aten, "gelu.default"
        activates = name.replace("_", "") in ACTIVATIONS
        if name in _PRODUCTS and len(args) == 2 and not kwargs:
            return self._product(func, *args)
        in_place = name.endswith("_") or kwargs.get("inplace") or any(a is True for a in args)
        if activates and in_place:
            raise UnsupportedModelError(
                f"the {self._noun} computes a {name} in place, so its input is lost; build the "
                "activation with inplace=False."
            )
        out = func(*args, **kwargs)
        if name in _DEVIATIONS:
            return held(out)
        if activates and first.requires_grad:
            more = {key: value for key, value in kwargs.items() if key != "input"}
            return self._gate(self._activated(lambda x: func(x, *args[1:], **more), first, out))
        if name in _NORMS and first.requires_grad:
            return self._normed(
                name, {**dict(zip(_NORMS[name], args, strict=False)), **kwargs}, out
            )
        number = not any(isinstance(each, Tensor) for each in (*args[1:], *kwargs.values()))
        if id(first) in self._gates and (name in _VIEWS or (name in _SUMS and number)):
            return self._gate(out)
        return out

    def _activated(self, function: Map, x: Tensor, out: Tensor) -> Tensor:
        """A function of each number as x times its gate; of one that becomes a gate none is made.

        Of slots of a place in which it is zero the gate is the slope there.
        """
        entered = held(self._record.graph.watched(x))
        gate = cache(lambda: gate_of(function, entered, function(entered)))
        return _linear(x, out, *[lambda x: x * gate()] * 2)

    def _normed(self, name: str, call: dict[str, Any], out: Tensor) -> Tensor:
        """A norm of torch's own with its standard deviation as a constant."""
        x, shape, centers = call.pop("input"), call.pop("normalized_shape"), "bias" in _NORMS[name]
        norm, _ = norm_at(held(to_float32(x)), shape, **call, centers=centers)
        push = norm.__call__ if keeps_graph() else norm.push  # of a bias, a derivative, too
        return _linear(x, out, push, norm.back)

    def _gate(self, tensor: Tensor) -> Tensor:
        self._gates[id(tensor)] = tensor
        return tensor

    def _product(self, func: Any, *pair: Any) -> Tensor:
        """A gate times a branch, which is then the linear one; times a number it stays a gate."""
        gates = [id(each) in self._gates for each in pair]
        if sum(gates) == 1:
            other = pair[gates.index(False)]
            if not isinstance(other, Tensor):
                return self._gate(func(*pair))
            if other.requires_grad and not other.is_leaf:  # computed, and no parameter
                pair = tuple(each if each is other else held(each) for each in pair)
        return func(*pair)  # type: ignore[no-any-return]


@dataclass(eq=False)
class HeldGates(Observer):
    """The graph begins at the projected patches, and every gate in it is a constant.

    Norms keep their standard deviation, activations f(x) / x, a gate its whole, attentions their
    weights; the values are those of the plain forward. Gates are held up to what the tower returns,
    or in a text what the `readout` does.
    """

    # Behind the embedding, since that is read before gates are let go.
    order: ClassVar[int] = 85
    leaf = True
    readout: nn.Module | None = None

    def plan(self, hooks: Hooks, record: Recording) -> None:
        """See `Observer`."""
        tower = record.transformer
        watch = _GateWatch(record)

        def start(args: Any, result: Any) -> Tensor:
            watch.holds = True
            return begin(record, args, result)

        def end(*_: Any) -> None:
            watch.holds = False

        hooks.after(tower.stem, start, "The patch projection")
        for index in range(len(tower.attentions)):
            plan_attention(hooks, record, watch, index, watch.attend, trims=False)
        last = self.readout if tower.kind == "text" else tower.module
        if last is not None:
            hooks.after(last, end)
        watch.start()
        hooks.handles.append(watch)


def refuse_nonlinear(gradient: Tensor, patches: Tensor, noun: str) -> None:
    """Raise UnsupportedModelError where a gradient at the patches depends on these."""
    if not gradient.requires_grad:
        return
    weights = channel_ramp(gradient.numel(), gradient.dtype, gradient.device).view(gradient.shape)
    try:
        # the graph is kept, which the gradients of other targets pass
        [change] = torch.autograd.grad(gradient, patches, weights, True, allow_unused=True)
        is_linear = change is None or not bool(change.any())
    except RuntimeError:  # an operation without a second derivative, on a way that is not linear
        is_linear = False
    if not is_linear:
        raise UnsupportedModelError(
            f"the {noun} is not linear in its tokens even with its gates held; relevance passes "
            "only linear maps, LayerNorm, RMSNorm and activations. Use another method."
        )


# Parts that run once more


@torch.no_grad()
def read_pool(record: Recording, tokens: Tensor) -> AttentionRead:
    """Run a tower's pooling head on tokens (B, s, D) as a block returns them, and read it."""
    tower, reads = record.transformer, list[AttentionRead]()
    head, watch = tower.pooling_head, Watch(tower.noun)
    assert head is not None
    watch.enter(head, "the pooling head", reads.append)
    try:
        with _autocast(record, tokens):
            head.pool(tokens)
    finally:
        watch.remove()
    watch.leave()
    return reads[0]


def _autocast(record: Recording, tokens: Tensor) -> torch.autocast:
    """What a recorded forward ran under."""
    return torch.autocast(tokens.device.type, record.autocast, enabled=record.autocast is not None)


BlockArguments = dict[int, tuple[Arguments, dict[str, Any]]]
"""The arguments that each block got, by layers."""


@dataclass(eq=False)
class Arrivals(Observer):
    """Keeps what the blocks get as arguments, with which they can run once more."""

    order: ClassVar[int] = 15
    of_blocks: BlockArguments = field(default_factory=dict)

    def plan(self, hooks: Hooks, record: Recording) -> None:
        """See `Observer`."""
        for index, layer in enumerate(record.transformer.layers):
            hooks.before(layer.block, partial(self._keep, index, layer))

    def _keep(self, index: int, layer: Any, args: Arguments, kwargs: dict[str, Any]) -> None:
        tokens = layer.residual(args, kwargs).detach()
        # The later blocks get other tokens when they run once more.
        kept = tokens.clone() if index == 0 else tokens[:, :0]
        self.of_blocks[index] = layer.with_residual(args, kwargs, kept)


@torch.no_grad()
def run_blocks(
    record: Recording,
    arrived: BlockArguments,
    tokens: Tensor,
    attend: Callable[[int, AttentionRead], Tensor],
) -> Tensor:
    """Run a recorded tower's blocks on other tokens (B, n, D), attended to as a function says.

    It gives the heads' outputs (B, H, n, d) of a layer for what was read of its attention.
    """
    refuse_other_weights(record)
    tower = record.transformer
    again = Recording(tower, record.size, len(tokens), tokens.shape[1])
    hooks, watch = Hooks(), Watch(tower.noun)
    try:
        hooks.handles.append(watch)
        for index in range(len(tower.layers)):
            plan_attention(hooks, again, watch, index, attend)
        with uncompiled, _autocast(record, tokens):
            for index, layer in enumerate(tower.layers):
                args, kwargs = layer.with_residual(*arrived[index], tokens)
                tokens = layer.output(layer.block(*args, **kwargs))
    finally:
        hooks.remove()
    return tokens
