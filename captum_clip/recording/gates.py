"""A forward of a vision transformer in whose graph every gate is a constant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge

from ..errors import UnsupportedModelError
from ..models.steps import holds_gate, is_activation, with_gate_held
from ..models.towers import Attention, ViTTower
from .hooks import Hooks
from .records import LayerRecord, Recording, as_leaf, plan_embedding, recording

_PRODUCTS = {"Baddbmm", "Bmm", "Div", "Dot", "Mm", "Mul", "Mv"}  # linear in one of two
_NONLINEAR = {
    *("Abs", "Amax", "Amin", "Clamp", "ClampMin", "Cos", "Elu", "Erf", "Exp", "Gelu", "Glu"),
    *("Hardsigmoid", "Hardswish", "Hardtanh", "LeakyRelu", "LinalgVectorNorm", "Log", "LogSoftmax"),
    *("Max", "MaxPool2DWithIndices", "Maximum", "Min", "Minimum", "Mish", "NativeGroupNorm"),
    *("NativeLayerNorm", "Norm", "Pow", "Prelu", "Reciprocal", "Relu", "Rsqrt", "Sigmoid", "Silu"),
    *("Sin", "Softmax", "Softplus", "Sqrt", "Std", "Tanh", "Var"),
}


@contextmanager
def record_gates_held(
    tower: ViTTower, attend: Callable[[int, LayerRecord], Tensor]
) -> Iterator[Recording]:
    """Record a forward from the patches on, in whose graph every gate is a constant.

    Norms keep their standard deviation, activations f(x) / x, and the attention its weights; the
    values are those of the plain forward. `attend` makes of the index and the tokens of an
    attention its output (B, rows, D) with the weights held.
    """

    def plan(hooks: Hooks, record: Recording) -> None:
        def start(result: Tensor) -> Tensor:
            record.patches = as_leaf(result)
            return record.patches

        hooks.after(tower.patches, start, "The patch projection")
        stem, gates = set(tower.patches.modules()), _gates(tower)
        parts = {m: f"Layer {i}" for i, own in enumerate(tower.layers) for m in own.block.modules()}
        for module in tower.module.modules():
            if module not in stem and holds_gate(module):
                held = partial(_gate_held, module, module in gates)
                hooks.replace(module, held, parts.get(module, ""))
        for index, attention in enumerate(tower.attentions):
            _plan_attend(hooks, record, index, attention, attend)
        plan_embedding(hooks, record, tower, leaf=False)

    with recording(tower, plan, gradient=True) as record:
        yield record


def _gates(tower: ViTTower) -> set[nn.Module]:
    """The activations that gate another branch (SwiGLU), which is then the linear one."""
    gated = (
        owner
        for owner in tower.module.modules()
        if "glu" in type(owner).__name__.lower() or "gate_proj" in owner._modules
    )
    return {child for owner in gated for child in owner.children() if is_activation(child)}


def refuse_nonlinear(output: Tensor, patches: Tensor) -> None:
    """Raise UnsupportedModelError where an output is no linear map of the patches, by its graph.

    So a function that no module shows is seen too, such as `F.gelu` in somebody's adapter.
    """
    inputs: dict[Any, list[Any]] = {}
    users: dict[Any, list[Any]] = {}
    nodes: list[Any] = [get_gradient_edge(output).node]
    while nodes:
        node = nodes.pop()
        if node not in inputs:
            inputs[node] = [before for before, _ in node.next_functions if before is not None]
            nodes += inputs[node]
            for before in inputs[node]:
                users.setdefault(before, []).append(node)
    nodes, reached = [get_gradient_edge(patches).node], set()
    while nodes:
        node = nodes.pop()
        if node not in reached:
            reached.add(node)
            nodes += users.get(node, [])
    for node in reached:
        operation = re.sub(r"Backward\d*$", "", type(node).__name__)
        several = sum(before in reached for before in inputs[node]) > 1
        if (
            operation in _NONLINEAR
            or (operation in _PRODUCTS and several)
            or isinstance(node, BackwardCFunction)  # somebody's own
        ):
            raise UnsupportedModelError(
                f"the vision tower computes a {operation}, of which it is not known whether it is "
                "linear; relevance passes linear maps, LayerNorm, RMSNorm and activations only. "
                "Take another method."
            )


def _gate_held(module: nn.Module, gates: bool, args: tuple[Any, ...], result: Tensor) -> Tensor:
    if not torch.is_grad_enabled():  # inside an attention, whose output is replaced
        return result
    if getattr(module, "inplace", False):
        raise UnsupportedModelError(
            f"a {type(module).__name__} of the vision tower works in place, so what entered it is "
            "lost; make it with inplace=False."
        )
    if gates:
        return result.detach()
    held = with_gate_held(module, args[0], result)
    return _with_value(held, result, f"a {type(module).__name__}")


def _with_value(held: Tensor, own: Tensor, part: str) -> Tensor:
    """A tensor of the graph, with the library's own value, which may differ by rounding."""
    difference = (own - held).detach()
    bound = 1e-2 if torch.finfo(own.dtype).eps < 1e-4 else 1e-1
    if difference.float().norm() > bound * own.detach().float().norm():
        raise UnsupportedModelError(
            f"{part} of the vision tower gives something else than its parameters say; a hook, a "
            "patched forward or a class of its own changes it. Remove that, or take a method with "
            "gradients, such as AllGradAttention."
        )
    return held + difference


def _plan_attend(
    hooks: Hooks,
    record: Recording,
    index: int,
    attention: Attention,
    attend: Callable[[int, LayerRecord], Tensor],
) -> None:
    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record.layers[index] = LayerRecord.of(attention, args, kwargs, record.pooled)
        torch.set_grad_enabled(False)  # the attention's own graph would have its weights in it

    def leave(result: Any) -> Any:
        torch.set_grad_enabled(True)
        whole = attention.output(result)
        held = attend(index, record.layers.pop(index, LayerRecord()))
        # of a probe's queries only the first one is read
        own, others = whole[:, : held.shape[1]], whole[:, held.shape[1] :]
        held = _with_value(held.to(own.dtype), own, f"the attention of layer {index}")
        return attention.replaced(result, torch.cat([held, others], 1))

    hooks.before(attention.input_module, enter)
    hooks.after(attention.output_module, leave, f"Layer {index}")
