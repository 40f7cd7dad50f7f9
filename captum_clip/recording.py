"""Recordings of a forward: what a method needs of a model, after which all is as it was.

The only place that hooks a model. A recording runs the tower without a graph up to a leaf, or ends
the forward where nobody needs its rest.
"""

import re
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge

from .errors import CaptureError, UnsupportedModelError
from .models.library import has_no_foreign_hooks, mark_own_hook
from .models.steps import PooledToken, holds_gate, is_activation, with_gate_held
from .models.towers import Attention, AttentionLayer, ResNetTower, Tower, ViTTower

Arguments = tuple[Any, ...]
Hook = Callable[..., Any]
NOTHING: Final = torch.empty(0)  # until the forward has shown it


class _Uncompiled:
    """Makes torch.compile run what it compiled as it was written, since its code passes hooks by.

    PyTorch has one stance for all threads, so it is set with the first and put back with the last.
    """

    def __init__(self) -> None:
        self._lock, self._running = threading.Lock(), 0
        self._stance: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._running += 1
            # without its compiler nothing was compiled, and before PyTorch 2.6 there was no stance
            known = "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")
            if known and self._stance is None:
                self._stance = torch.compiler.set_stance("force_eager")

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._running -= 1
            if self._stance is not None and not self._running:
                self._stance.__exit__(None, None, None)
                self._stance = None


_uncompiled = _Uncompiled()


class Stop(Exception):  # noqa: N818 - control flow, never seen by a user
    """Ends a forward whose rest nobody needs."""


class Hooks:
    """Forward hooks that act in the thread that set them and are all taken away again.

    A hook's `part` names its module where it must run, so that nothing is left out.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self.handles: list[Any] = []
        self.unseen: dict[object, str] = {}

    def before(self, module: nn.Module, hook: Hook, part: str = "", *, first: bool = False) -> None:
        """Call `hook(args, kwargs)` before the module runs; a tensor replaces its first one.

        It runs after the hooks that are there, or `first`.
        """

        def enter(args: Arguments, kwargs: dict[str, Any]) -> Any:
            replaced = hook(args, kwargs)
            if replaced is None:
                return None
            if args:
                return (replaced, *args[1:]), kwargs
            first = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
            return args, {**kwargs, first: replaced}

        guarded = self._guarded(enter, part)
        handle = module.register_forward_pre_hook(guarded, with_kwargs=True, prepend=first)
        self.handles.append(handle)

    def after(self, module: nn.Module, hook: Hook, part: str = "", *, first: bool = False) -> None:
        """Call `hook(args, result)` after the module ran, for what it is to return."""
        guarded = self._guarded(hook, part)
        self.handles.append(module.register_forward_hook(guarded, prepend=first))

    def _guarded(self, hook: Hook, part: str) -> Hook:
        if part:
            self.unseen[hook] = part

        def guarded(_: nn.Module, *call: Any) -> Any:
            # Another thread's forward may catch the hook while it comes or goes, without kwargs.
            if threading.get_ident() != self._thread:
                return None
            self.unseen.pop(hook, None)
            return hook(*call)

        return mark_own_hook(guarded)


@dataclass
class LayerRecord:
    """Inputs and outputs of one attention; every tensor (B, s, D)."""

    tokens: Tensor = NOTHING
    context: Any = None  # what the queries and keys are rotated with
    bias: Tensor | None = None  # of the products, from a mask that a hook of the user's sets
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    heads_output: Tensor | None = None  # in the graph, where there is one
    output: Tensor = NOTHING  # in the graph, where there is one
    pooled: PooledToken = field(default_factory=PooledToken)

    def point(self, attention: Attention) -> tuple[Tensor, bool]:
        """The attention's tensor that lies in the graph, and whether it is the heads' output.

        A plain output map is passed backwards as W_O^T, a norm before it is not: there the
        heads' output itself is the leaf.
        """
        exposed = self.heads_output
        if exposed is not None and (exposed.requires_grad or not attention.linear):
            return exposed, True
        return self.output, False


Visit = Callable[[int, LayerRecord], Any]


@dataclass
class Recording:
    """A recorded forward. Filled while it runs, empty of tensors once the reader lets go."""

    tower: Tower | None = None
    size: tuple[int, int] | None = None  # height and width of the images that entered the tower
    batch: int = 0
    pooled: PooledToken = field(default_factory=PooledToken)
    stopped: bool = False  # the forward was left early, as intended
    input: Tensor = NOTHING  # images (B, 3, H, W), or projected patches or tokens, as the leaf
    layers: dict[int, LayerRecord] = field(default_factory=dict)
    visited: dict[int, Any] = field(default_factory=dict)  # what a visit of each layer returned
    residual: Tensor = NOTHING  # (B, s, D), what entered the last block
    outputs: dict[int, Tensor] = field(default_factory=dict)  # of blocks, each (B, s, D)
    embedding: Tensor = NOTHING  # (B, E), what the tower returned, a leaf or in the graph
    other_outputs: list[Tensor] = field(default_factory=list)  # all else that it returned, leaves
    projected: Tensor | None = None  # (B, E), or (B, s, E) with all tokens, in the graph
    features: Tensor = NOTHING  # (B, C, h, w), the last stage of a ResNet
    shift: Tensor = NOTHING  # (B, C), zero, added to the features at all positions

    def entering(self, attention: Attention, args: Arguments, kwargs: Any) -> LayerRecord:
        """Record the inputs of an attention."""
        tokens, context = attention.tokens(args, kwargs), attention.context(args, kwargs)
        if self.is_hooked:  # a hook on what follows may work in place
            tokens = tokens.clone()
        # of texts the tower itself knows the mask
        masked = self.tower is not None and self.tower.kind != "text"
        bias = attention.bias(args, kwargs) if masked else None
        return LayerRecord(tokens, context, bias, pooled=self.pooled)

    def begin(self, args: Arguments, given: Any) -> Tensor:
        """Begin the graph, as a hook, at the first tensor that enters, or at the result."""
        if not isinstance(given, Tensor):  # keyword arguments
            given = next(v for v in (*args, *given.values()) if isinstance(v, Tensor))
        self.input = _as_leaf(given)
        return self.input

    @cached_property
    def is_hooked(self) -> bool:
        """Whether somebody's hook or patch in the tower may have taken a gradient away."""
        modules = () if self.tower is None else self.tower.module.modules()
        return not all(map(has_no_foreign_hooks, modules))

    def on_grid(self, tower: ViTTower, values: Tensor) -> Tensor:
        """Values (..., h, w) of the patches, from those of all tokens (..., s)."""
        assert self.size is not None
        prefix, (rows, columns) = tower.prefix, tower.grid(*self.size)
        if values.shape[-1] != prefix + rows * columns:
            raise UnsupportedModelError(
                f"the vision tower ran on {values.shape[-1]} tokens, but {prefix} before the "
                f"patches and a grid of {rows} x {columns} make {prefix + rows * columns}; remove "
                "what adds or drops tokens, such as prompts."
            )
        patches = values[..., prefix:]
        return patches.reshape(*patches.shape[:-1], rows, columns)


@contextmanager
def _recording(tower: Tower, *, gradient: bool) -> Iterator[tuple[Hooks, Recording]]:
    """Hooks to set and what they record; however the forward ends, everything is undone."""
    record, hooks, mode = Recording(tower), Hooks(), torch.is_grad_enabled()

    def enter(args: Arguments, kwargs: dict[str, Any]) -> None:
        if record.size is not None:
            raise CaptureError(
                f"The forward function ran the {tower.noun} twice; it must run it exactly once. "
                "Encode texts and reference images beforehand."
            )
        if gradient and not torch.is_grad_enabled():
            raise CaptureError(
                f"The forward function ran the {tower.noun} under torch.no_grad() or "
                "torch.inference_mode(), so no gradient reaches it; remove that."
            )
        record.size, record.batch, record.pooled = tower.enter(args, kwargs)
        torch.set_grad_enabled(False)  # the graph begins only where a recording turns it on

    hooks.before(tower.entrance, enter)
    try:
        with _uncompiled:
            yield hooks, record
        if record.size is None:
            raise CaptureError(
                f"The forward function did not run the {tower.noun} that is to be explained; it "
                "must run it exactly once, through the module's call and not that of a replica."
            )
    except Stop:
        record.stopped = True
    finally:
        for handle in hooks.handles:
            handle.remove()
        torch.set_grad_enabled(mode)
    for part in hooks.unseen.values():  # which would be left out of the map
        raise CaptureError(
            f"{part} of the {tower.noun} ran without its hooks; it was compiled, or exchanged "
            "during the forward. Explain the model without torch.compile."
        ) from None


def _as_leaf(tensor: Tensor) -> Tensor:
    """The tensor as the beginning of the graph."""
    torch.set_grad_enabled(True)
    # the module's own tensor, since a part of it would not be upstream of what follows
    return tensor.detach().requires_grad_()


@contextmanager
def record_vit(
    tower: ViTTower,
    *,
    visit: tuple[range, Visit] | None = None,
    keep: range = range(0),
    leaf: int | Literal["input", "block", "embedding"] | None = None,
    stop: int | None = None,
    outputs: range = range(0),
) -> Iterator[Recording]:
    """Record a forward of a ViT tower, which runs without a graph up to `leaf`.

    An index is that of a layer; a pooling head's attention comes after the last one.

    Args:
        tower: the tower; its forward runs inside the ``with``.
        visit: layers, and what to call as ``visit(layer, record)`` when their attention starts;
            its result is kept.
        keep: layers whose tokens, queries, keys, values and outputs are kept.
        leaf: layer whose attention output becomes a leaf; from there on the graph is recorded. Or
            the images that enter the tower, of a text its token embeddings ("input"); the output
            of the last block, which is kept ("block"); the tower's output ("embedding").
        stop: layer at whose attention the forward ends; its tokens and residual are kept.
        outputs: layers whose block's output is kept, in the graph where there is one.
    """
    last = len(tower.layers) - 1
    visited, call = visit or (range(0), None)
    kept = {*keep, *(index for index in (leaf, stop) if isinstance(index, int))}

    def enter(index: int, args: Arguments, kwargs: dict[str, Any]) -> None:
        shown = record.entering(tower.attentions[index], args, kwargs)
        if call is not None and index in visited:
            record.visited[index] = call(index, shown)
        if index in kept:
            record.layers[index] = shown
        if index == stop:
            raise Stop

    def enter_block(index: int, args: Arguments, kwargs: dict[str, Any]) -> None:
        record.residual = tower.layers[index].residual(args, kwargs)

    def leave_block(index: int, _: Arguments, result: Any) -> Any:
        layer, output = tower.layers[index], tower.layers[index].output(result)
        record.outputs[index] = output = _as_leaf(output) if leaf == "block" else output
        return layer.replaced(result, output.clone())  # what follows may work in place

    with _recording(tower, gradient=leaf is not None) as (hooks, record):
        if leaf == "input" and tower.kind == "text":  # token ids have no gradient
            hooks.after(tower.patches, record.begin)
        elif leaf == "input":
            hooks.before(tower.entrance, record.begin)
        for index in sorted({*kept, *visited}):
            attention = tower.attentions[index]
            if index == stop and isinstance(attention, AttentionLayer):
                hooks.before(attention.block, partial(enter_block, index))
            hooks.before(attention.input_module, partial(enter, index), f"Layer {index}")
            if index in kept and index != stop:
                record.layers[index] = LayerRecord()
                _plan_kept(hooks, record.layers, index, attention, leaf=index == leaf)
        if leaf == "block":
            outputs = range(last, last + 1)
            hooks.before(tower.layers[last].block, partial(enter_block, last))
        for index in outputs:
            hooks.after(tower.layers[index].block, partial(leave_block, index), f"Layer {index}")
        if leaf == "embedding" or (outputs and isinstance(leaf, int)):
            _plan_embedding(hooks, record, tower, leaf=leaf == "embedding")
        yield record


def _plan_kept(
    hooks: Hooks, layers: dict[int, LayerRecord], index: int, attention: Attention, *, leaf: bool
) -> None:
    """Show what an attention exposes, and what of it lies in the graph."""

    def show(name: str, from_output: bool, args: Arguments, result: Any) -> None:
        tensor = result if from_output else args[0]
        setattr(layers[index], name, tensor if name == "heads_output" else tensor.detach())

    def enter_merge(args: Arguments, _: dict[str, Any]) -> Tensor:
        layers[index].heads_output = heads = _as_leaf(args[0]) if leaf else args[0]
        return heads.clone()

    def leave(_: Arguments, result: Any) -> Any:
        output = attention.output(result)
        layers[index].output = output = _as_leaf(output) if leaf else output
        # a clone, since what follows may work in place, such as somebody's hook
        return attention.replaced(result, output.clone())

    for name, (module, from_output) in attention.qkv_modules().items():
        if name == "heads_output" and not attention.linear:  # the point that is differentiated
            hooks.before(module, enter_merge, first=True)  # so that hooks on it are in the graph
        else:
            register = hooks.after if from_output else hooks.before
            register(module, partial(show, name, from_output))
    if attention.linear:
        hooks.after(attention.output_module, leave, first=True)


def _plan_embedding(hooks: Hooks, record: Recording, tower: Tower, *, leaf: bool) -> None:
    """Record what the tower returns, and what a projection after it makes of that."""

    def leave(_: Arguments, result: Any) -> Any:
        embedding = tower.embedding(result)
        record.embedding = _as_leaf(embedding) if leaf else embedding
        if not isinstance(result, Tensor):
            result = _as_leaves(result, record.other_outputs)
        return tower.with_embedding(result, record.embedding)

    def project(_: Arguments, result: Tensor) -> None:
        record.projected = result

    if tower.kind == "text":  # scores are made of what the model returns, pooled and projected
        return
    hooks.after(tower.module, leave)
    if tower.projection_module is not None:
        hooks.after(tower.projection_module, project)


def _as_leaves(part: Any, leaves: list[Tensor]) -> Any:
    """A part of what a tower returned with its tensors as leaves, which are collected.

    A score that reads hidden states as well as the embedding has a gradient there.
    """
    if isinstance(part, Tensor) and part.is_floating_point():
        leaves.append(part.detach().requires_grad_())
        return leaves[-1]
    if isinstance(part, dict):  # an output of transformers
        return type(part)(**{name: _as_leaves(value, leaves) for name, value in part.items()})
    if isinstance(part, (tuple, list)):
        return type(part)(_as_leaves(value, leaves) for value in part)
    return part


@contextmanager
def record_resnet(
    tower: ResNetTower, *, then: Literal["stop", "shift", "embedding"]
) -> Iterator[Recording]:
    """Record the last stage of a ResNet tower, whose forward runs inside the ``with``.

    There is no graph up to there. "stop" ends the forward after the stage; "shift" adds a zero
    shift that needs a gradient to the features, and records the graph from there on; "embedding"
    does so from the tower's output on.
    """

    def leave(_: Arguments, features: Tensor) -> Tensor:
        record.features = features.detach()
        if then == "stop":
            raise Stop
        if then == "embedding":
            return features.clone()  # what follows may work in place
        torch.set_grad_enabled(True)
        record.shift = features.new_zeros(features.shape[:2]).requires_grad_()
        return record.features + record.shift[:, :, None, None]

    with _recording(tower, gradient=then != "stop") as (hooks, record):
        hooks.after(tower.stage, leave, "The last stage")
        if then == "embedding":
            _plan_embedding(hooks, record, tower, leaf=True)
        yield record


@contextmanager
def record_shapes(network: nn.Module) -> Iterator[list[tuple[nn.Module, torch.Size]]]:
    """List the modules that ran, in the order in which they ended, each with its output's shape."""
    hooks, found = Hooks(), list[tuple[nn.Module, torch.Size]]()

    def leave(module: nn.Module, _: Arguments, result: Any) -> None:
        if isinstance(result, Tensor):
            found.append((module, result.shape))

    try:
        for module in network.modules():
            hooks.after(module, partial(leave, module))
        yield found
    finally:
        for handle in hooks.handles:
            handle.remove()


@contextmanager
def record_features(
    tower: ViTTower | ResNetTower, *, through: Callable[[Tensor], Tensor] = _as_leaf
) -> Iterator[Recording]:
    """Record the features (B, C, h, w), and go on with what `through` makes of them.

    They are a ResNet's last stage; the patches that enter the last block of a tower that pools CLS,
    since nothing reads the patches that leave it; the patches that leave it in another tower.
    Without `through` they are the leaf of the graph.
    """

    def passed(_: Arguments, features: Tensor) -> Tensor:
        record.features = through(features)
        return record.features.clone()  # what follows may work in place

    def leave(_: Arguments, result: Any) -> Any:
        assert isinstance(tower, ViTTower)
        output = layer.output(result)
        patches = record.on_grid(tower, output.transpose(1, 2))
        tokens = passed((), patches).flatten(2).transpose(1, 2)
        return layer.replaced(result, torch.cat([output[:, : tower.prefix], tokens], 1))

    with _recording(tower, gradient=through is _as_leaf) as (hooks, record):
        if isinstance(tower, ResNetTower):
            hooks.after(tower.stage, passed)
        else:
            layer = tower.layers[-2 if tower.pooling == "cls" else -1]
            hooks.after(layer.block, leave)
        yield record


@contextmanager
def record_detached_gates(
    tower: ViTTower, attend: Callable[[int, LayerRecord], Tensor]
) -> Iterator[Recording]:
    """Record a forward from the projected patches on, in whose graph every gate is a constant.

    Norms keep their standard deviation, activations f(x) / x, and the attention its weights; the
    values are those of the plain forward. `attend` makes of the index and the tokens of an
    attention its output (B, rows, D) with the weights detached.
    """

    def enter(index: int, args: Arguments, kwargs: dict[str, Any]) -> None:
        record.layers[index] = record.entering(tower.attentions[index], args, kwargs)
        torch.set_grad_enabled(False)  # the attention's own graph would have its weights in it

    def leave(index: int, _: Arguments, result: Any) -> Any:
        torch.set_grad_enabled(True)
        attention = tower.attentions[index]
        whole = attention.output(result)
        detached = attend(index, record.layers.pop(index, LayerRecord()))
        # of a pooling head's queries only the first one is read
        own, others = whole[:, : detached.shape[1]], whole[:, detached.shape[1] :]
        detached = _with_value(detached.to(own.dtype), own, f"the attention of layer {index}")
        return attention.replaced(result, torch.cat([detached, others], 1))

    with _recording(tower, gradient=True) as (hooks, record):
        hooks.after(tower.patches, record.begin, "The patch projection")
        stem, gates = set(tower.patches.modules()), _gates(tower)
        parts = {m: f"Layer {i}" for i, own in enumerate(tower.layers) for m in own.block.modules()}
        for module in tower.module.modules():
            if module not in stem and holds_gate(module):
                detached = partial(_detach_gate, module, module in gates)
                hooks.after(module, detached, parts.get(module, ""), first=True)
        for index, attention in enumerate(tower.attentions):
            hooks.before(attention.input_module, partial(enter, index))
            name = f"Layer {index}"
            hooks.after(attention.output_module, partial(leave, index), name, first=True)
        _plan_embedding(hooks, record, tower, leaf=False)
        yield record


def _gates(tower: ViTTower) -> set[nn.Module]:
    """The activations that gate another branch (SwiGLU), which is then the linear one."""
    gated = (
        owner
        for owner in tower.module.modules()
        if "glu" in type(owner).__name__.lower() or "gate_proj" in owner._modules
    )
    return {child for owner in gated for child in owner.children() if is_activation(child)}


def _detach_gate(module: nn.Module, gates: bool, args: Arguments, result: Tensor) -> Tensor:
    if not torch.is_grad_enabled():  # inside an attention, whose output is replaced
        return result
    if getattr(module, "inplace", False):
        raise UnsupportedModelError(
            f"a {type(module).__name__} works in place, so what entered it is lost; make it with "
            "inplace=False."
        )
    if gates:
        return result.detach()
    detached = with_gate_held(module, args[0], result)
    return _with_value(detached, result, f"a {type(module).__name__}")


def _with_value(detached: Tensor, own: Tensor, part: str) -> Tensor:
    """A tensor of the graph, with the library's own value, which may differ by rounding."""
    difference = (own - detached).detach()
    bound = 1e-2 if torch.finfo(own.dtype).eps < 1e-4 else 1e-1
    sizes = (
        part.detach().float().reshape(len(part) if part.ndim > 1 else 1, -1).norm(dim=1)
        for part in (difference, own)
    )
    if bool(torch.gt(next(sizes), bound * next(sizes)).any()):  # of each image
        raise UnsupportedModelError(
            f"{part} gives something else than its parameters say; a hook, a patched forward or a "
            "class of its own changes it. Remove that, or take a method with gradients, such as "
            "all-grad."
        )
    return detached + difference


# the operations of autograd's graph that are linear in all that enters them
_LINEAR = {
    *("AccumulateGrad", "Add", "Alias", "AsStrided", "AvgPool2D", "Cat", "Clone", "ConstantPadNd"),
    *("Copy", "Cumsum", "Diagonal", "Expand", "Flip", "Gather", "Index", "IndexSelect"),
    *("MaskedFill", "Mean", "Narrow", "Neg", "Permute", "Repeat", "ReshapeAlias", "Roll", "Select"),
    *("Slice", "Split", "SplitWithSizes", "Squeeze", "Stack", "Sub", "Sum", "T", "ToCopy"),
    *("Transpose", "Unbind", "Unfold", "UnsafeView", "Unsqueeze", "View", "Where"),
}
# and those that are linear in one of these inputs at a time
_PRODUCTS = {
    **dict.fromkeys(("Addmm", "Addmv", "Baddbmm"), (1, 2)),
    **dict.fromkeys(("Bmm", "Convolution", "Dot", "Mm", "Mul", "Mv"), (0, 1)),
}


def _copies(node: Any) -> bool:
    """Whether each number that a node gives is one that it takes, or a constant."""
    [given] = node._input_metadata
    found = node(torch.ones(given.shape, dtype=given.dtype, device=given.device))
    gradients = found if isinstance(found, tuple) else (found,)
    return all(bool(((g == 0) | (g == 1)).all()) for g in gradients if g is not None)


def refuse_nonlinear(output: Tensor, patches: Tensor, noun: str) -> None:
    """Raise UnsupportedModelError where an output is no linear map of the patches, by its graph.

    So a function that no module shows is seen too, such as `F.gelu` in somebody's adapter.
    """
    users: dict[Any, list[Any]] = defaultdict(list)
    nodes: list[Any] = [get_gradient_edge(output).node]
    while nodes:
        node = nodes.pop()
        for before in (each for each, _ in node.next_functions if each is not None):
            if before not in users:
                nodes.append(before)
            users[before].append(node)
    start = get_gradient_edge(patches).node
    nodes, reached = [start], set()
    while nodes:
        node = nodes.pop()
        if node not in reached:
            reached.add(node)
            nodes += users[node]
    for node in reached:
        operation = re.sub(r"Backward\d*$", "", type(node).__name__)
        inputs = {index for index, (each, _) in enumerate(node.next_functions) if each in reached}
        if operation == "Div":
            known = inputs <= {0}
        elif operation == "CopySlices":  # of something done in place, which it does not name
            known = _copies(node)
        elif operation.startswith("ScaledDotProduct"):
            known = inputs <= {2}  # the values
        else:
            factors = inputs.intersection(_PRODUCTS.get(operation, ()))
            known = operation in _LINEAR or (operation in _PRODUCTS and len(factors) < 2)
        if node is not start and (not known or isinstance(node, BackwardCFunction)):
            raise UnsupportedModelError(
                f"the {noun} computes a {operation}, of which it is not known whether it is "
                "linear; relevance passes linear maps, LayerNorm, RMSNorm and activations only. "
                "Take another method."
            )
