"""Forwards of a tower that run without a graph up to a leaf, or end where nobody needs more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from ..models.towers import Attention, AttentionLayer, ResNetTower, ViTTower
from .hooks import Hooks
from .records import LayerRecord, Leaf, Recording, Stop, Visit, as_leaf, plan_embedding, recording


@contextmanager
def record_vit(
    tower: ViTTower,
    *,
    visit: tuple[range, Visit] | None = None,
    keep: range = range(0),
    leaf: Leaf | None = None,
    stop: int | None = None,
    outputs: range = range(0),
) -> Iterator[Recording]:
    """Record a forward of a ViT tower, which runs without a graph up to `leaf`.

    An index is that of a layer; a probe's attention comes after the last one.

    Args:
        tower: the tower; its forward runs inside the ``with``.
        visit: layers, and what to call as ``visit(layer, record)`` when their attention starts.
        keep: layers whose tokens, queries, keys, values and outputs are kept.
        leaf: layer whose attention output becomes a leaf; from there on the graph is recorded. Or
            the output of the last block ("block"), which is kept, or the tower's ("embedding").
        stop: layer at whose attention the forward ends; its tokens and residual are kept.
        outputs: layers whose block's output is kept, in the graph where there is one.
    """
    last = len(tower.layers) - 1
    visited = range(0) if visit is None else visit[0]
    ends = {index for index in (leaf, stop) if isinstance(index, int)}

    def plan(hooks: Hooks, record: Recording) -> None:
        def enter(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            shown = LayerRecord.of(tower.attentions[index], args, kwargs, record.pooled)
            if visit is not None and index in visited:
                visit[1](index, shown)
            if index in keep or index == stop:
                record.layers[index] = shown
            if index == stop:
                raise Stop

        for index in sorted({*keep, *visited, *ends}):
            attention = tower.attentions[index]
            record.layers[index] = LayerRecord()
            if index == stop and isinstance(attention, AttentionLayer):
                hooks.before(attention.block, partial(_enter_block, record, attention))
            hooks.before(attention.input_module, partial(enter, index), f"Layer {index}")
            if index != stop and index in keep:
                _plan_exposed(hooks, record, index, attention)
            if index != stop and (index in keep or index == leaf):
                _plan_output(hooks, record, index, attention, leaf=index == leaf)
        for index in {*outputs, last} if leaf == "block" else outputs:
            _plan_block(hooks, record, index, tower.layers[index], leaf=leaf == "block")
        if leaf == "embedding" or (outputs and leaf is not None):
            plan_embedding(hooks, record, tower, leaf=leaf == "embedding")

    with recording(tower, plan, gradient=leaf is not None) as record:
        yield record


def _enter_block(
    record: Recording, layer: AttentionLayer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    record.residual = layer.residual(args, kwargs)


def _plan_block(
    hooks: Hooks, record: Recording, index: int, layer: AttentionLayer, *, leaf: bool
) -> None:
    def leave(result: Any) -> Any:
        output = layer.leaving(result)
        record.outputs[index] = output = as_leaf(output) if leaf else output
        return layer.left(result, output)

    if leaf:
        hooks.before(layer.block, partial(_enter_block, record, layer))
    hooks.after(layer.block, leave, f"Layer {index}")


def _plan_exposed(hooks: Hooks, record: Recording, index: int, attention: Attention) -> None:
    def show(name: str, tensor: Tensor) -> None:
        in_graph = name == "heads_output"
        setattr(record.layers[index], name, tensor if in_graph else tensor.detach())

    def show_input(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        show(name, args[0])

    for name, (module, from_output) in attention.qkv_modules().items():
        if name == "heads_output" and not attention.linear:
            continue  # it is the point that is differentiated, see `_plan_output`
        if from_output:
            hooks.after(module, partial(show, name))
        else:
            hooks.before(module, partial(show_input, name))


def _plan_output(
    hooks: Hooks, record: Recording, index: int, attention: Attention, *, leaf: bool
) -> None:
    def started(tensor: Tensor) -> Tensor:
        return as_leaf(tensor) if leaf else tensor

    def enter_merge(args: tuple[Any, ...], _: dict[str, Any]) -> Tensor:
        record.layers[index].heads_output = heads_output = started(args[0])
        return heads_output

    def leave(result: Any) -> Any:
        record.layers[index].output = output = started(attention.output(result))
        return attention.replaced(result, output)  # also unchanged, it may be a view: an ancestor

    if not attention.linear:
        hooks.before(attention.qkv_modules()["heads_output"][0], enter_merge)
    else:
        hooks.after(attention.output_module, leave)


@contextmanager
def record_resnet(
    tower: ResNetTower, *, then: Literal["stop", "shift", "embedding"]
) -> Iterator[Recording]:
    """Record the last stage of a ResNet tower, whose forward runs inside the ``with``.

    There is no graph up to there. "stop" ends the forward after the stage; "shift" adds a zero
    shift that needs a gradient to the features, and records the graph from there on; "embedding"
    does so from the tower's output on.
    """

    def plan(hooks: Hooks, record: Recording) -> None:
        def leave(features: Tensor) -> Tensor:
            record.features = features.detach()
            if then == "stop":
                raise Stop
            if then == "embedding":
                return features
            torch.set_grad_enabled(True)
            record.shift = features.new_zeros(features.shape[:2]).requires_grad_()
            return record.features + record.shift[:, :, None, None]

        hooks.after(tower.stage, leave, "The last stage")
        if then == "embedding":
            plan_embedding(hooks, record, tower)

    with recording(tower, plan, gradient=then != "stop") as record:
        yield record


@contextmanager
def record_features(
    tower: ViTTower | ResNetTower, *, through: Callable[[Tensor], Tensor] = as_leaf
) -> Iterator[Recording]:
    """Record the features (B, C, h, w), and go on with what `through` makes of them.

    They are a ResNet's last stage; the patches that enter the last block of a tower that reads CLS,
    since those that leave it are read by nobody; the patches that leave it in another one. Without
    `through` they are the leaf of the graph.
    """

    def plan(hooks: Hooks, record: Recording) -> None:
        def passed(features: Tensor) -> Tensor:
            record.features = through(features)
            return record.features

        if isinstance(tower, ResNetTower):
            hooks.after(tower.stage, passed)
            return
        layer = tower.layers[-2 if tower.pooling == "cls" else -1]

        def leave(result: Any) -> Any:
            output = layer.leaving(result)
            assert record.size is not None
            prefix, grid = tower.prefix, tower.grid(*record.size)
            expected = prefix + grid[0] * grid[1]
            if output.shape[1] != expected:
                raise UnsupportedModelError(
                    f"the vision tower ran on {output.shape[1]} tokens where {expected} were "
                    "expected; remove what adds or drops tokens, such as prompts."
                )
            patches = output[:, prefix:].transpose(1, 2).reshape(len(output), -1, *grid)
            tokens = passed(patches).flatten(2).transpose(1, 2)
            return layer.left(result, torch.cat([output[:, :prefix], tokens], 1))

        hooks.after(layer.block, leave)

    with recording(tower, plan, gradient=through is as_leaf) as record:
        yield record
