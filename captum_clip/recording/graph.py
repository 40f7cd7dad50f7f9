"""The graph of the model as maps may lie in it, with ``create_graph=True``."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

graph_from_start: ContextVar[bool] = ContextVar("graph", default=False)


@dataclass(eq=False)
class _Kept:
    """A graph that is kept: whether what is computed again is compared, and the map is made."""

    exact: bool
    complete: bool = False


_KEPT: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def _scope(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    before = variable.set(value)
    try:
        yield
    finally:
        variable.reset(before)


with_whole_graph = partial(_scope, graph_from_start, True)
"""Record forwards with a graph from their beginning, at its price."""


@contextmanager
def kept_graph(*, exact: bool) -> Iterator[None]:
    """Make maps in the graph of the model, of which nothing is compared unless it is `exact`."""
    kept = _Kept(exact)
    with _scope(_KEPT, kept), with_whole_graph():
        yield
    kept.complete = True


def keeps_graph() -> bool:
    """Whether maps are to lie in the graph."""
    return _KEPT.get() is not None


def is_exact() -> bool:
    """Whether what is computed again must be what ran, as it need not with dropout."""
    kept = _KEPT.get()
    return kept is None or kept.exact


@contextmanager
def no_graph() -> Iterator[None]:
    """`torch.no_grad`, unless maps are to lie in the graph; also a decorator."""
    with torch.set_grad_enabled(keeps_graph()):
        yield


def detached(tensor: Tensor) -> Tensor:
    """A tensor out of its graph, unless maps are to lie in it."""
    return tensor if keeps_graph() else tensor.detach()


class _Held(torch.autograd.Function):
    """Passes a tensor on as a constant until the map is made, and as itself from then on."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, kept: _Kept) -> Tensor:
        # no zeros in place of a gradient that was held back, which would go all the way down
        ctx.set_materialize_grads(False)
        ctx.kept = kept
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:  # type: ignore[override, unused-ignore]
        return (gradient if ctx.kept.complete else None), None


def held(tensor: Tensor) -> Tensor:
    """A tensor as a constant of the gradients that a map is made of.

    With a graph that is kept, derivatives of the map itself do pass.
    """
    kept = _KEPT.get()
    if kept is None or not tensor.requires_grad:
        return tensor.detach()
    passed_on: Any = _Held.apply
    return passed_on(tensor, kept)  # type: ignore[no-any-return]
