"""A forward of a vision transformer in whose graph every gate is a constant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..models.steps import holds_gate, is_activation, with_gate_held
from ..models.towers import Attention, AttentionLayer, ViTTower
from ..models.unmodified import runs_library_code
from .hooks import Hooks
from .records import LayerRecord, Recording, as_leaf, plan_embedding, recording


@contextmanager
def record_gates_held(
    tower: ViTTower, attend: Callable[[int, LayerRecord], Tensor]
) -> Iterator[Recording]:
    """Record a forward from the patches on, in whose graph every gate is a constant.

    Norms keep their standard deviation, activations f(x) / x, and the attention its weights; the
    values are those of the plain forward.

    Args:
        tower: the tower; its forward runs inside the ``with``.
        attend: index and tokens of an attention -> its output (B, rows, D) with the weights held.
    """

    def plan(hooks: Hooks, record: Recording) -> None:
        def start(result: Tensor) -> Tensor:
            record.unseen.pop(tower.patches, None)
            record.patches = as_leaf(result)
            return record.patches

        record.unseen[tower.patches] = "The patch projection"
        hooks.after(tower.patches, start)
        stem, gates = set(tower.patches.modules()), _gates(tower)
        for module in tower.module.modules():
            if module in stem:
                continue
            if holds_gate(module):
                hooks.replace(module, partial(_gate_held, record, module, module in gates))
            elif _is_unknown(module):
                hooks.after(module, partial(_refuse_unknown, module))
        for index, layer in enumerate(tower.layers):
            held = filter(holds_gate, layer.block.modules())
            record.unseen.update(dict.fromkeys(held, f"Layer {index}"))
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


def _is_unknown(module: nn.Module) -> bool:
    """Whether a module without parts may be more than linear without being known as a gate."""
    if next(module.children(), None) is not None or isinstance(module, nn.Linear):
        return False
    return not runs_library_code(module) or type(module).__module__ == "torch.nn.modules.activation"


def _refuse_unknown(module: nn.Module, _: Any) -> None:
    if torch.is_grad_enabled():  # otherwise inside an attention, whose output is replaced
        raise UnsupportedModelError(
            f"the vision tower has a {type(module).__name__}, of which it is not known whether it "
            "is linear; relevance passes linear maps, LayerNorm, RMSNorm and activations only. "
            "Take another method."
        )


def _gate_held(
    record: Recording, module: nn.Module, gates: bool, args: tuple[Any, ...], result: Tensor
) -> Tensor:
    record.unseen.pop(module, None)
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
    seen = LayerRecord()
    record.unseen[index] = f"Layer {index}"

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.tokens, seen.reading = attention.tokens(args, kwargs), record.reading
        if isinstance(attention, AttentionLayer):
            seen.context = attention.context(args, kwargs)
        torch.set_grad_enabled(False)  # the attention's own graph would have its weights in it

    def leave(result: Any) -> Any:
        record.unseen.pop(index, None)
        torch.set_grad_enabled(True)
        whole, held = attention.output(result), attend(index, seen)
        # of a probe's queries only the first one is read
        own, others = whole[:, : held.shape[1]], whole[:, held.shape[1] :]
        held = _with_value(held.to(own.dtype), own, f"the attention of layer {index}")
        return attention.replaced(result, torch.cat([held, others], 1))

    hooks.before(attention.inlet, enter)
    hooks.after(attention.outlet, leave)
