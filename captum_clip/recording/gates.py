"""A recording in whose graph every gate is a constant, and whether that is linear."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge
from typing_extensions import override

from ..errors import UnsupportedModelError
from ..models.steps import holds_gate, is_activation, with_gate_held
from ..models.towers import TransformerTower
from .forwards import AttentionHooks, plan_embedding, recording
from .hooks import Arguments, graph_from_start
from .records import NOTHING, LayerRecord, Recording


@contextmanager
def record_detached_gates(
    tower: TransformerTower, attend: Callable[[LayerRecord], Tensor]
) -> Iterator[Recording]:
    """Record a forward from the projected patches on, in whose graph every gate is a constant.

    Norms keep their standard deviation, activations f(x) / x, and the attention its weights; the
    values are those of the plain forward. `attend` makes of what entered an attention its output
    (B, rows, D) with the weights detached.
    """
    with recording(tower, gradient=True) as (hooks, record):
        hooks.after(tower.stem, record.begin, "The patch projection")
        stem, gates = set(tower.stem.modules()), _gates(tower)
        parts = {
            m: f"Layer {i}" for i, layer in enumerate(tower.layers) for m in layer.block.modules()
        }
        for module in tower.module.modules():
            if module not in stem and holds_gate(module):
                detached = partial(_detach_gate, record, module, module in gates)
                hooks.after(module, detached, parts.get(module, ""), first=True, nested=True)
        for index in range(len(tower.attentions)):
            _DetachedAttention(record, index, attend).plan(hooks)
        plan_embedding(hooks, record, tower, leaf=False)
        yield record


@dataclass(eq=False)
class _DetachedAttention(AttentionHooks):
    """An attention whose output is made once more, in a graph that has no weights in it."""

    attend: Callable[[LayerRecord], Tensor]

    @override
    def enter(self, args: Arguments, kwargs: dict[str, Any]) -> None:
        super().enter(args, kwargs)
        layer = self.record.layers.get(self.index)
        if layer is None:
            return
        has_begun = self.record.input is not NOTHING
        if has_begun and not layer.tokens.requires_grad:
            raise UnsupportedModelError(
                f"no gradient reaches the attention of layer {self.index} of the "
                f"{self.record.transformer.noun}: what runs before it turns the graph off. Remove "
                "that, or take a method without gradients, such as direct."
            )
        # the attention's own graph would have its weights in it
        torch.set_grad_enabled(graph_from_start.get())

    @override
    def leave(self, _: Arguments, result: Any) -> Any:
        torch.set_grad_enabled(True)
        layer = self.record.layers.pop(self.index, None)
        if layer is None:
            return None
        detached, whole = self.attend(layer), self.attention.output(result)
        # of a pooling head's queries only the first one is read
        returned, others = whole[:, : detached.shape[1]], whole[:, detached.shape[1] :].detach()
        part = f"the attention of layer {self.index}"
        detached = _with_value(self.record, detached.to(returned.dtype), returned, part)
        return self.attention.replaced(result, torch.cat([detached, others], 1))


def _gates(tower: TransformerTower) -> set[nn.Module]:
    """The activations that gate another branch (SwiGLU), which is then the linear one."""
    gated = (
        owner
        for owner in tower.module.modules()
        if "glu" in type(owner).__name__.lower() or "gate_proj" in owner._modules
    )
    return {child for owner in gated for child in owner.children() if is_activation(child)}


def _detach_gate(
    record: Recording, module: nn.Module, gates: bool, args: Arguments, result: Tensor
) -> Tensor:
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
    return _with_value(record, detached, result, f"a {type(module).__name__}")


def _with_value(record: Recording, detached: Tensor, value: Tensor, part: str) -> Tensor:
    """A tensor of the graph, with the library's own value, which may differ by rounding."""
    record.compare(part, detached, value)
    return detached + (value - detached).detach()


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
    returned = node(torch.ones(given.shape, dtype=given.dtype, device=given.device))
    gradients = returned if isinstance(returned, tuple) else (returned,)
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
    start: Any = get_gradient_edge(patches).node
    nodes, reached = [start], {start}
    while nodes:
        above = {*users[nodes.pop()]} - reached
        nodes += above
        reached |= above
    for node in reached - {start}:
        inputs = {index for index, (each, _) in enumerate(node.next_functions) if each in reached}
        operation = re.sub(r"Backward\d*$", "", type(node).__name__)
        if isinstance(node, BackwardCFunction) or not _is_linear(node, operation, inputs):
            raise UnsupportedModelError(
                f"the {noun} computes a {operation}, of which it is not known whether it is "
                "linear; relevance passes linear maps, LayerNorm, RMSNorm and activations only. "
                "Take another method."
            )


def _is_linear(node: Any, operation: str, inputs: set[int]) -> bool:
    """Whether an operation is linear in those of its inputs together."""
    if operation == "Div":
        return inputs <= {0}
    if operation.startswith("ScaledDotProduct"):
        return inputs <= {2}  # the values
    if operation == "CopySlices":  # of something done in place, which it does not name
        return _copies(node)
    if operation in _PRODUCTS:
        return len(inputs.intersection(_PRODUCTS[operation])) < 2
    return operation in _LINEAR
