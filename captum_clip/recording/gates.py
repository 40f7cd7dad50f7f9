"""A forward of a vision transformer in whose graph every gate is a constant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..models.steps import holds_gate, with_gate_held
from ..models.towers import Attention, AttentionLayer, ViTTower
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
            record.patches = as_leaf(result)
            return record.patches

        hooks.after(tower.patches, start)
        stem = set(tower.patches.modules())
        for module in tower.module.modules():
            if module not in stem and holds_gate(module):
                hooks.replace(module, partial(_gate_held, module, _is_gate(tower, module)))
        for index, attention in enumerate(tower.attentions):
            _plan_attend(hooks, record, index, attention, attend)
        plan_embedding(hooks, record, tower, leaf=False)

    with recording(tower, plan, gradient=True) as record:
        yield record


def _is_gate(tower: ViTTower, module: nn.Module) -> bool:
    """Whether an activation gates another branch (SwiGLU), which is then the linear one."""
    for owner in tower.module.modules():
        gated = "glu" in type(owner).__name__.lower() or hasattr(owner, "gate_proj")
        if gated and module in owner.children():
            return not isinstance(module, nn.LayerNorm)
    return False


def _gate_held(module: nn.Module, gates: bool, args: tuple[Any, ...], result: Tensor) -> Tensor:
    if not torch.is_grad_enabled():  # inside an attention, whose output is replaced
        return result
    return result.detach() if gates else with_gate_held(module, args[0], result)


def _plan_attend(
    hooks: Hooks,
    record: Recording,
    index: int,
    attention: Attention,
    attend: Callable[[int, LayerRecord], Tensor],
) -> None:
    seen = LayerRecord()

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.tokens, seen.reading = attention.tokens(args, kwargs), record.reading
        if isinstance(attention, AttentionLayer):
            seen.context = attention.context(args, kwargs)
        torch.set_grad_enabled(False)  # the attention's own graph would have its weights in it

    def leave(result: Any) -> Any:
        torch.set_grad_enabled(True)
        output = attend(index, seen)
        whole = attention.output(result).to(output.dtype)
        # of a probe's queries only the first one is read
        output = torch.cat([output, whole[:, output.shape[1] :]], 1)
        return attention.replaced(result, output.to(attention.output(result).dtype))

    hooks.before(attention.inlet, enter)
    hooks.after(attention.outlet, leave)
