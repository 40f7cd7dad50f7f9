"""Passes beside the plain one: through a tower whose gates are constants, or through parts of it.

A gate is what a tower makes of tokens and multiplies tokens by: a norm's deviation, an activation's
f(x) / x, an attention's weights. With these as constants it is linear in its tokens.
"""

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

# Functions, by the names that torch, its tensors and aten have for them.

# Norms with the names of their arguments. A norm that takes no bias does not center either.
_NORMS: Final = {
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
}
# A norm that is written out divides by one of these.
_DEVIATIONS: Final = {"rsqrt", "sqrt", "std"}
_PRODUCTS: Final = {"mul", "__mul__", "__rmul__"}
# A gate stays a gate in sums with numbers, and in casts and views.
_SUMS: Final = {"add", "__add__", "__radd__"}
_VIEWS: Final = {"to", "float", "type_as", "view", "reshape", "dropout"}

Map = Callable[[Tensor], Tensor]


class _Linear(torch.autograd.Function):
    """A value as it ran, with the gradient of a linear map `push`, whose transpose is `back`.

    Both compute again what they hold, such as the weights of an attention, since those of all
    layers would need much memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ran: Tensor, push: Map, back: Map) -> Tensor:
        ctx.push, ctx.back = push, back
        # A view would be an error where the following code works in place.
        return ran.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:  # type: ignore[override, unused-ignore]
        with torch.no_grad(), autocast_disabled(gradient):
            below = ctx.back(to_float32(gradient))
        if torch.is_grad_enabled():
            # Of a second derivative the transpose is the map itself.
            below = _apply(gradient, below, ctx.back, ctx.push)
        return below, None, None, None


_apply: Any = _Linear.apply


def _linear(x: Tensor, ran: Tensor, push: Map, back: Map) -> Tensor:
    """The result `ran` of x, which in the graph is the linear map `push` with transpose `back`.

    With a graph that is kept, derivatives of what these maps hold pass as well.
    """
    if keeps_graph():
        with autocast_disabled(x):
            pushed = push(to_float32(x)).to(ran.dtype)
        # The value is the one that ran, from which `pushed` may differ by rounding.
        return pushed + (ran - pushed).detach()
    return _apply(x, ran.detach(), push, back)  # type: ignore[no-any-return]


class _GateWatch(Watch):
    """Holds the gates of all functions of torch while the tower runs."""

    sees_all = True

    def __init__(self, record: Recording) -> None:
        super().__init__(record.transformer.noun)
        self._record = record
        self.holds = False  # True while the tower runs
        # The gates are kept alive, since Python uses the id of a freed tensor again.
        self._gates: dict[int, Tensor] = {}

    def attend(self, _: int, read: AttentionRead) -> Tensor:
        """The heads' outputs as they ran, in a graph in which the weights are a constant."""
        for tensor in read.sources:
            self._record.graph.watched(tensor)
        # The graph is also off in the forward of an autograd.Function.
        if not (read.value.requires_grad and torch.is_grad_enabled()):
            refuse_cut_graph(self._record, read)
        alone = read.alone()

        def push(values: Tensor) -> Tensor:
            return held(alone.matrix()) @ values

        def back(gradient: Tensor) -> Tensor:
            return held(alone.matrix()).mT @ gradient

        return _linear(read.value, read.out, push, back)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a function; hold its gate where it has one."""
        x = args[0] if args else kwargs.get("input")
        if not (self.holds and isinstance(x, Tensor) and torch.is_grad_enabled()):
            return func(*args, **kwargs)
        # The name of an operator of aten has its overload behind a point, as "gelu.default".
        name = getattr(func, "__name__", "").partition(".")[0]
        is_activation = name.replace("_", "") in ACTIVATIONS
        if name in _PRODUCTS and len(args) == 2 and not kwargs:
            return self._product(func, *args)
        # Torch's only positional flag of an activation is `inplace`.
        is_in_place = name.endswith("_") or kwargs.get("inplace") or any(a is True for a in args)
        if is_activation and is_in_place:
            raise UnsupportedModelError(
                f"the {self._noun} computes a {name} in place, so its input is lost; build the "
                "activation with inplace=False."
            )
        out = func(*args, **kwargs)
        if name in _DEVIATIONS:
            return held(out)
        if is_activation and x.requires_grad:
            options = {key: value for key, value in kwargs.items() if key != "input"}
            activated = self._activated(lambda x: func(x, *args[1:], **options), x, out)
            return self._gate(activated)
        if name in _NORMS and x.requires_grad:
            call = {**dict(zip(_NORMS[name], args, strict=False)), **kwargs}
            return self._normed(name, call, out)
        others = (*args[1:], *kwargs.values())
        only_numbers = not any(isinstance(other, Tensor) for other in others)
        stays_gate = name in _VIEWS or (name in _SUMS and only_numbers)
        if id(x) in self._gates and stays_gate:
            return self._gate(out)
        return out

    def _activated(self, function: Map, x: Tensor, out: Tensor) -> Tensor:
        """An activation f(x) as x times its gate f(x) / x, which is a constant.

        The gate is computed only when a gradient passes. Where x is zero, it is the slope there.
        """
        entered = held(self._record.graph.watched(x))
        gate = cache(lambda: gate_of(function, entered, function(entered)))

        def scaled(tensor: Tensor) -> Tensor:
            return tensor * gate()

        return _linear(x, out, push=scaled, back=scaled)

    def _normed(self, name: str, call: dict[str, Any], out: Tensor) -> Tensor:
        """A norm of torch with its standard deviation as a constant."""
        x = call.pop("input")
        shape = call.pop("normalized_shape")
        centers = "bias" in _NORMS[name]
        norm, _ = norm_at(held(to_float32(x)), shape, **call, centers=centers)
        # `push` leaves the bias out, whose derivative a kept graph needs.
        push = norm.__call__ if keeps_graph() else norm.push
        return _linear(x, out, push, norm.back)

    def _gate(self, tensor: Tensor) -> Tensor:
        self._gates[id(tensor)] = tensor
        return tensor

    def _product(self, func: Any, *pair: Any) -> Tensor:
        """A product of two factors, of which a gate is the constant one.

        A gate times a number stays a gate.
        """
        are_gates = [id(factor) in self._gates for factor in pair]
        if sum(are_gates) != 1:
            return func(*pair)  # type: ignore[no-any-return]
        gate, branch = pair if are_gates[0] else pair[::-1]
        if not isinstance(branch, Tensor):
            return self._gate(func(*pair))
        # A parameter, such as the scale of a layer, is no branch.
        is_computed = branch.requires_grad and not branch.is_leaf
        if not is_computed:
            return func(*pair)  # type: ignore[no-any-return]
        constant = held(gate)
        factors = (constant, branch) if are_gates[0] else (branch, constant)
        return func(*factors)  # type: ignore[no-any-return]


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
        # The graph is retained, since the gradients of other targets pass it.
        options = {"retain_graph": True, "allow_unused": True}
        [change] = torch.autograd.grad(gradient, patches, weights, **options)
        is_linear = change is None or not bool(change.any())
    except RuntimeError:
        # An operation on the way has no second derivative, and is not linear.
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
    tower = record.transformer
    head = tower.pooling_head
    assert head is not None
    reads = list[AttentionRead]()
    watch = Watch(tower.noun)
    watch.enter(head, "the pooling head", reads.append)
    try:
        with _autocast(record, tokens):
            head.pool(tokens)
    finally:
        watch.remove()
    watch.leave()
    return reads[0]


def _autocast(record: Recording, tokens: Tensor) -> torch.autocast:
    """The autocast under which a recorded forward ran."""
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
        # When the blocks run once more, a later one gets what the one below it returns, so its own
        # tokens are left out.
        kept = tokens.clone() if index == 0 else tokens[:, :0]
        self.of_blocks[index] = layer.with_residual(args, kwargs, kept)


@torch.no_grad()
def run_blocks(
    record: Recording,
    arrived: BlockArguments,
    tokens: Tensor,
    attend: Callable[[int, AttentionRead], Tensor],
) -> Tensor:
    """Run a recorded tower's blocks on other tokens (B, n, D), with other outputs of attentions.

    `attend` gets the layer and what was read of its attention, and gives the heads' outputs
    (B, H, n, d) that take their place.
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
