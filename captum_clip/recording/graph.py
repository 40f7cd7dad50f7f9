"""The graph of a recorded forward: where it begins, and whether maps are to lie in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

# These are context variables, since other threads may make maps of the same model meanwhile.
graph_from_start: ContextVar[bool] = ContextVar("graph", default=False)


@dataclass(eq=False)
class _Kept:
    """A graph that is kept, from the forward to the maps that are made of it."""

    exact: bool  # whether a part that is computed again must be what ran
    complete: bool = False  # whether the maps are made


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
without_whole_graph = partial(_scope, graph_from_start, False)
"""Record forwards with a graph from a leaf on alone."""


@contextmanager
def kept_graph(*, exact: bool) -> Iterator[None]:
    """Make maps in the graph of the model.

    Parts that are computed again are compared with those that ran if the model is `exact`.
    """
    kept = _Kept(exact)
    with _scope(_KEPT, kept), with_whole_graph():
        yield
    kept.complete = True


def keeps_graph() -> bool:
    """Whether maps are to lie in the graph."""
    return _KEPT.get() is not None


def is_exact() -> bool:
    """Whether a part that is computed again must be what ran, which with dropout it need not be."""
    kept = _KEPT.get()
    return kept is None or kept.exact


@contextmanager
def no_graph() -> Iterator[None]:
    """`torch.no_grad`, or `torch.enable_grad` if maps are to lie in the graph; also a decorator."""
    with torch.set_grad_enabled(keeps_graph()):
        yield


def detached(tensor: Tensor) -> Tensor:
    """A tensor out of its graph, unless maps are to lie in it."""
    return tensor if keeps_graph() else tensor.detach()


class _HeldBack(torch.autograd.Function):
    """Passes a tensor on, as a constant until the map is made and as a variable from then on."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, kept: _Kept) -> Tensor:
        # A gradient that is held back would otherwise be zeros, which go all the way down.
        ctx.set_materialize_grads(False)
        ctx.kept = kept
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:  # type: ignore[override, unused-ignore]
        passed = gradient if ctx.kept.complete else None
        return passed, None


def held(tensor: Tensor) -> Tensor:
    """A tensor as a constant of the gradients that a map is made of.

    If the graph is kept, the derivatives of the map itself pass it.
    """
    kept = _KEPT.get()
    if kept is None or not tensor.requires_grad:
        return tensor.detach()
    passed_on: Any = _HeldBack.apply
    return passed_on(tensor, kept)  # type: ignore[no-any-return]


class _Probe(torch.autograd.Function):
    """Passes a tensor on, and gives a number the size of the gradient that arrives there."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, probe: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        # A view would be an error where the following code works in place.
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:  # type: ignore[override, unused-ignore]
        if gradient is None:
            return None, None
        return gradient, gradient.abs().sum().float()


class Graph:
    """The graph of one forward: where it begins, and what nothing may change until it is read.

    Attributes:
        started: whether there is a graph.
        probe: a number that has a gradient where one arrives at a probed tensor.
        is_changed: whether a tensor that was to be read later was changed in place before that.
    """

    def __init__(self) -> None:
        self.started = keeps_graph()
        self.probe: Tensor | None = None
        self._is_changed = False
        self._versions: list[tuple[Tensor, int]] = []

    def start(self, tensor: Tensor) -> Tensor:
        """The tensor as the beginning of the graph, with which the forward must go on.

        It is a module's own tensor, since what follows would not be made of a part of it.
        """
        self.started = True
        torch.set_grad_enabled(True)
        return held(tensor).requires_grad_()

    def go_on(self) -> None:
        """Keep the graph on where it has started.

        A part of the model that ran under `torch.no_grad` has put back the mode from before it.
        """
        if self.started:
            torch.set_grad_enabled(True)

    def probed(self, tensor: Tensor) -> Tensor:
        """A tensor below the graph, such as hidden states, that tells whether a score reads it.

        A score that does has a gradient at `probe`.
        """
        if self.probe is None:
            self.probe = torch.zeros((), device=tensor.device).requires_grad_()
        probed: Any = _Probe.apply
        with torch.enable_grad():
            return probed(tensor, self.probe)  # type: ignore[no-any-return]

    def watched(self, tensor: Tensor) -> Tensor:
        """A tensor that is read later, and that nothing may change in place until then."""
        if not tensor.is_inference():
            self._versions.append((tensor, tensor._version))
        return tensor

    def note_change(self) -> None:
        """Note that a tensor that was to be read was changed in place before that."""
        self._is_changed = True

    @property
    def is_changed(self) -> bool:
        """Whether a tensor was changed in place after it was recorded."""
        # PyTorch counts changes in place, also those of a view.
        changed = any(tensor._version != version for tensor, version in self._versions)
        return changed or self._is_changed

    def let_go(self) -> None:
        """Let all tensors go."""
        self._versions.clear()
        self.probe = None
