"""The only place that hooks a model: record what a method needs, and put everything back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .errors import CaptureError
from .models.images import check_images
from .models.towers import Attention, AttentionLayer, ResNetTower, Tower, ViTTower
from .models.unmodified import mark_own_hook


class _Stop(Exception):  # noqa: N818 - control flow, never seen by a user
    """Ends a forward whose rest nobody needs."""


@dataclass
class LayerRecord:
    """What one attention showed; every tensor (B, s, D)."""

    tokens: Tensor | None = None
    context: Any = None  # what the queries and keys are turned with
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    heads_output: Tensor | None = None  # in the graph, where there is one
    output: Tensor | None = None  # in the graph, where there is one

    def point(self, attention: Attention) -> tuple[Tensor, bool]:
        """What of the attention lies in the graph, and whether that is the heads' output.

        A plain output map is passed backwards as W_O^T, a norm before it is not: there the
        heads' output itself is the leaf.
        """
        exposed = self.heads_output
        if exposed is not None and (exposed.requires_grad or not attention.linear):
            return exposed, True
        assert self.output is not None
        return self.output, False


Visit = Callable[[int, LayerRecord], None]
Leaf = Literal["final", "embedding"]


@dataclass
class Recording:
    """What a forward showed. Filled while it runs, empty of tensors once the reader lets go."""

    size: tuple[int, int] | None = None  # height and width of the images that entered the tower
    batch: int = 0
    stopped: bool = False  # the forward was left early, as planned
    layers: dict[int, LayerRecord] = field(default_factory=dict)
    residual: Tensor | None = None  # (B, s, D), what entered the last block
    final: Tensor | None = None  # (B, s, D), the last block's output
    embedding: Tensor | None = None  # (B, E), what the tower returned, a leaf
    projected: Tensor | None = None  # (B, E), or (B, s, E) with all tokens, in the graph
    features: Tensor | None = None  # (B, C, h, w), the last stage of a ResNet
    shift: Tensor | None = None  # (B, C), zero, added to the features at all positions

    def finish(self) -> None:
        """Say clearly that the tower was not run.

        Raises:
            CaptureError: the forward function returned without having run the tower.
        """
        if self.size is None:
            raise CaptureError(
                "The forward function did not run the vision tower that was given as `layer`; "
                "it must run it exactly once, and through the module's call."
            )


class _Hooks:
    """Forward hooks that act in the thread that set them and are all taken away again."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._handles: list[Any] = []

    def before(
        self, module: nn.Module, hook: Callable[[tuple[Any, ...], dict[str, Any]], Any]
    ) -> None:
        """Call `hook(args, kwargs)` before the module runs; what it returns replaces args[0]."""

        def guarded(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
        ) -> Any:
            # Another thread's forward may catch the hook while it comes or goes, without kwargs.
            if threading.get_ident() != self._thread:
                return None
            replaced = hook(args, kwargs or {})
            return None if replaced is None else ((replaced, *args[1:]), kwargs or {})

        handle = module.register_forward_pre_hook(mark_own_hook(guarded), with_kwargs=True)
        self._handles.append(handle)

    def after(self, module: nn.Module, hook: Callable[[Any], Any]) -> None:
        """Call `hook(result)` after the module ran; what it returns, if not None, replaces it."""

        def guarded(_: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
            return hook(result) if threading.get_ident() == self._thread else None

        self._handles.append(module.register_forward_hook(mark_own_hook(guarded)))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


@contextmanager
def _recording(
    tower: Tower, plan: Callable[[_Hooks, Recording], None], gradient: bool
) -> Iterator[Recording]:
    """Set the hooks of a plan, and undo everything however the forward ends."""
    record, hooks, mode = Recording(), _Hooks(), torch.is_grad_enabled()

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
        images = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        check_images(images, "the vision tower")
        record.size, record.batch = (images.shape[-2], images.shape[-1]), len(images)
        torch.set_grad_enabled(False)  # the graph begins only where a plan turns it on

    hooks.before(tower.module, enter)
    try:
        plan(hooks, record)
        yield record
        record.finish()
    except _Stop:
        record.stopped = True
    finally:
        hooks.remove()
        torch.set_grad_enabled(mode)


@contextmanager
def record_vit(
    tower: ViTTower,
    *,
    visit: tuple[range, Visit] | None = None,
    keep: range = range(0),
    leaf: int | Leaf | None = None,
    stop: int | None = None,
    final: bool = False,
) -> Iterator[Recording]:
    """Record a forward of a ViT tower, which runs without a graph up to `leaf`.

    An index is that of a layer; a probe's attention comes after the last one.

    Args:
        tower: the tower; its forward runs inside the ``with``.
        visit: layers, and what to call as ``visit(layer, record)`` when their attention starts.
        keep: layers whose tokens, queries, keys, values and outputs are kept.
        leaf: layer whose attention output becomes a leaf; from there on the graph is recorded. Or
            the last block's output ("final"), or the tower's ("embedding").
        stop: layer at whose attention the forward ends; its tokens and residual are kept.
        final: whether the last block's output is kept.
    """
    layer = leaf if isinstance(leaf, int) else None

    def plan(hooks: _Hooks, record: Recording) -> None:
        for index in sorted({*keep, *(visit[0] if visit else ()), *_given(layer), *_given(stop)}):
            attention = tower.attentions[index]
            _plan_entrance(hooks, record, index, attention, visit=visit, keep=keep, stop=stop)
            if index == stop:
                continue
            if index in keep and isinstance(attention, AttentionLayer):
                _plan_exposed(hooks, record, index, attention)
            if index in keep or index == layer:
                _plan_output(hooks, record, index, attention, leaf=index == layer)
        if final or leaf == "final":
            _plan_final(hooks, record, tower, leaf=leaf == "final")
        if leaf == "embedding":
            _plan_embedding(hooks, record, tower)

    with _recording(tower, plan, gradient=leaf is not None) as record:
        yield record


def _plan_final(hooks: _Hooks, record: Recording, tower: ViTTower, *, leaf: bool) -> None:
    block = tower.layers[-1]

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record.residual = block.residual(args, kwargs)

    def leave(result: Any) -> Any:
        output = block.leaving(result)
        record.final = output = _leaf(output) if leaf else output
        return block.left(result, output)

    if leaf:
        hooks.before(block.block, enter)
    hooks.after(block.block, leave)


def _plan_embedding(hooks: _Hooks, record: Recording, tower: Tower) -> None:
    def leave(result: Any) -> Any:
        record.embedding = _leaf(tower.embedding(result))
        return tower.with_embedding(result, record.embedding)

    def project(result: Tensor) -> None:
        record.projected = result

    hooks.after(tower.module, leave)
    if tower.projection_module is not None:
        hooks.after(tower.projection_module, project)


def _leaf(tensor: Tensor) -> Tensor:
    """The tensor as the beginning of the graph."""
    torch.set_grad_enabled(True)
    # the module's own tensor, since a part of it would not be upstream of what follows
    return tensor.detach().requires_grad_()


def _given(index: int | None) -> tuple[int, ...]:
    return () if index is None else (index,)


def _plan_entrance(
    hooks: _Hooks,
    record: Recording,
    index: int,
    attention: Attention,
    *,
    visit: tuple[range, Visit] | None,
    keep: range,
    stop: int | None,
) -> None:
    seen = record.layers.setdefault(index, LayerRecord())

    def enter_block(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(attention, AttentionLayer)
        record.residual = attention.residual(args, kwargs)

    def enter_attention(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens, context = attention.tokens(args, kwargs), None
        if isinstance(attention, AttentionLayer):
            context = attention.context(args, kwargs)
        if visit is not None and index in visit[0]:
            visit[1](index, LayerRecord(tokens=tokens, context=context))
        if index in keep or index == stop:
            seen.tokens, seen.context = tokens, context
        if index == stop:
            raise _Stop

    if index == stop and isinstance(attention, AttentionLayer):
        hooks.before(attention.block, enter_block)
    hooks.before(attention.inlet, enter_attention)


def _plan_exposed(hooks: _Hooks, record: Recording, index: int, layer: AttentionLayer) -> None:
    def show(name: str, tensor: Tensor) -> None:
        in_graph = name == "heads_output"
        setattr(record.layers[index], name, tensor if in_graph else tensor.detach())

    def show_input(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        show(name, args[0])

    for name, (module, from_output) in layer.qkv_modules().items():
        if name == "heads_output" and not layer.linear:
            continue  # it is the point that is differentiated, see `_plan_output`
        if from_output:
            hooks.after(module, partial(show, name))
        else:
            hooks.before(module, partial(show_input, name))


def _plan_output(
    hooks: _Hooks, record: Recording, index: int, attention: Attention, *, leaf: bool
) -> None:
    def started(tensor: Tensor) -> Tensor:
        return _leaf(tensor) if leaf else tensor

    def enter_merge(args: tuple[Any, ...], _: dict[str, Any]) -> Tensor:
        record.layers[index].heads_output = heads_output = started(args[0])
        return heads_output

    def leave(result: Any) -> Any:
        record.layers[index].output = output = started(attention.output(result))
        return attention.replaced(result, output)  # also unchanged, it may be a view: an ancestor

    if isinstance(attention, AttentionLayer) and not attention.linear:
        hooks.before(attention.qkv_modules()["heads_output"][0], enter_merge)
    else:
        hooks.after(attention.outlet, leave)


@contextmanager
def record_resnet(
    tower: ResNetTower, *, then: Literal["stop", "shift", "embedding"]
) -> Iterator[Recording]:
    """Record the last stage of a ResNet tower, which runs without a graph up to there.

    Args:
        tower: the tower; its forward runs inside the ``with``.
        then: "stop" ends the forward after the stage; "shift" adds a zero shift that needs a
            gradient to the features, and records the graph from there on; "embedding" does so
            from the tower's output on.
    """

    def plan(hooks: _Hooks, record: Recording) -> None:
        def leave(features: Tensor) -> Tensor:
            record.features = features.detach()
            if then == "stop":
                raise _Stop
            if then == "embedding":
                return features
            torch.set_grad_enabled(True)
            record.shift = features.new_zeros(features.shape[:2]).requires_grad_()
            return record.features + record.shift[:, :, None, None]

        hooks.after(tower.stage, leave)
        if then == "embedding":
            _plan_embedding(hooks, record, tower)

    with _recording(tower, plan, gradient=then != "stop") as record:
        yield record
