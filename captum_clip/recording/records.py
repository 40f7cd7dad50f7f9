"""What a forward shows, and the frame around every recording."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import Tensor

from ..errors import CaptureError
from ..models.pooled import PooledToken
from ..models.towers import Attention, Tower
from .hooks import Hooks

_NOTHING: Final = torch.empty(0)  # until the forward has shown it


class Stop(Exception):  # noqa: N818 - control flow, never seen by a user
    """Ends a forward whose rest nobody needs."""


@dataclass
class LayerRecord:
    """What one attention showed; every tensor (B, s, D)."""

    tokens: Tensor = _NOTHING
    context: Any = None  # what the queries and keys are turned with
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    heads_output: Tensor | None = None  # in the graph, where there is one
    output: Tensor = _NOTHING  # in the graph, where there is one
    pooled: PooledToken = field(default_factory=PooledToken)

    @classmethod
    def of(
        cls,
        attention: Attention,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        pooled: PooledToken,
    ) -> LayerRecord:
        """What enters an attention."""
        tokens, context = attention.tokens(args, kwargs), attention.context(args, kwargs)
        return cls(tokens, context, pooled=pooled)

    def point(self, attention: Attention) -> tuple[Tensor, bool]:
        """What of the attention lies in the graph, and whether that is the heads' output.

        A plain output map is passed backwards as W_O^T, a norm before it is not: there the
        heads' output itself is the leaf.
        """
        exposed = self.heads_output
        if exposed is not None and (exposed.requires_grad or not attention.linear):
            return exposed, True
        return self.output, False


Visit = Callable[[int, LayerRecord], None]
Leaf = int | Literal["block", "embedding"]


@dataclass
class Recording:
    """What a forward showed. Filled while it runs, empty of tensors once the reader lets go."""

    size: tuple[int, int] | None = None  # height and width of the images that entered the tower
    batch: int = 0
    pooled: PooledToken = field(default_factory=PooledToken)
    stopped: bool = False  # the forward was left early, as planned
    layers: dict[int, LayerRecord] = field(default_factory=dict)
    residual: Tensor = _NOTHING  # (B, s, D), what entered the last block
    outputs: dict[int, Tensor] = field(default_factory=dict)  # of blocks, each (B, s, D)
    patches: Tensor = _NOTHING  # the projected patches before positions are added, a leaf
    embedding: Tensor = _NOTHING  # (B, E), what the tower returned, a leaf or in the graph
    beside: list[Tensor] = field(default_factory=list)  # all else that it returned, as leaves
    projected: Tensor | None = None  # (B, E), or (B, s, E) with all tokens, in the graph
    features: Tensor = _NOTHING  # (B, C, h, w), the last stage of a ResNet
    shift: Tensor = _NOTHING  # (B, C), zero, added to the features at all positions


@contextmanager
def recording(
    tower: Tower, plan: Callable[[Hooks, Recording], None], gradient: bool
) -> Iterator[Recording]:
    """Set the hooks of a plan, and undo everything however the forward ends."""
    record, hooks, mode = Recording(), Hooks(), torch.is_grad_enabled()

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if record.size is not None:
            raise CaptureError(
                "The forward function ran the vision tower twice; it must run it exactly once. "
                "Encode texts and reference images beforehand."
            )
        if gradient and not torch.is_grad_enabled():
            raise CaptureError(
                "The forward function ran the vision tower under torch.no_grad() or "
                "torch.inference_mode(), so no gradient reaches it; remove that."
            )
        record.size, record.batch, record.pooled = tower.enter(args, kwargs)
        torch.set_grad_enabled(False)  # the graph begins only where a plan turns it on

    hooks.before(tower.entrance, enter)
    try:
        plan(hooks, record)
        yield record
        if record.size is None:
            raise CaptureError(
                "The forward function did not run the vision tower that was given as `layer`; "
                "it must run it exactly once, and through the module's call."
            )
    except Stop:
        record.stopped = True
    finally:
        hooks.remove()
        torch.set_grad_enabled(mode)
    hooks.check_all_seen()


def plan_embedding(hooks: Hooks, record: Recording, tower: Tower, *, leaf: bool = True) -> None:
    """Record what the tower returns, and what a projection after it makes of that."""

    def leave(result: Any) -> Any:
        embedding = tower.embedding(result)
        record.embedding = as_leaf(embedding) if leaf else embedding
        if not isinstance(result, Tensor):
            result = _as_leaves(result, record.beside)
        return tower.with_embedding(result, record.embedding)

    def project(result: Tensor) -> None:
        record.projected = result

    hooks.after(tower.module, leave)
    if tower.projection_module is not None:
        hooks.after(tower.projection_module, project)


def _as_leaves(part: Any, leaves: list[Tensor]) -> Any:
    """A part of what a tower returned with its tensors as leaves, which are collected.

    A score that reads hidden states beside the embedding has a gradient there.
    """
    if isinstance(part, Tensor) and part.is_floating_point():
        leaves.append(part.detach().requires_grad_())
        return leaves[-1]
    if isinstance(part, dict):  # an output of transformers
        return type(part)(**{name: _as_leaves(value, leaves) for name, value in part.items()})
    if isinstance(part, (tuple, list)):
        return type(part)(_as_leaves(value, leaves) for value in part)
    return part


def as_leaf(tensor: Tensor) -> Tensor:
    """The tensor as the beginning of the graph."""
    torch.set_grad_enabled(True)
    # the module's own tensor, since a part of it would not be upstream of what follows
    return tensor.detach().requires_grad_()
