"""Recordings of a forward up to a leaf, or to where nobody needs its rest."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import CaptureError
from ..models.towers import Attention, ResNetTower, Tower, ViTTower
from .hooks import Arguments, Hooks, Stop, graph_from_start, uncompiled
from .records import LayerRecord, Recording, Visit, as_leaf


@contextmanager
def recording(tower: Tower, *, gradient: bool) -> Iterator[tuple[Hooks, Recording]]:
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
        record.size, record.batch, record.pooled = tower.read_inputs(args, kwargs)
        # the graph begins only where a recording turns it on, but for a model that needs one
        torch.set_grad_enabled(graph_from_start.get())

    hooks.before(tower.input_module, enter)
    try:
        with uncompiled:
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


@contextmanager
def record_vit(
    tower: ViTTower,
    *,
    visit: tuple[Collection[int], Visit] | None = None,
    keep: range = range(0),
    leaf: int | Literal["input", "block", "embedding"] | None = None,
    stop: int | None = None,
    outputs: range = range(0),
    stream: range = range(0),
) -> Iterator[Recording]:
    """Record a forward of a ViT tower, which runs without a graph up to `leaf`.

    An index is that of a layer; a pooling head's attention comes after the last one.

    Args:
        tower: the tower; its forward runs inside the ``with``.
        visit: layers, and what to call as ``visit(layer, record)`` when their attention ran;
            its result is kept.
        keep: layers whose tokens, queries, keys, values and outputs are kept.
        leaf: layer whose attention output becomes a leaf; from there on the graph is recorded. Or
            the images that enter the tower, of a text its token embeddings ("input"); the output
            of the last block, which is kept ("block"); the tower's output ("embedding").
        stop: layer at whose attention the forward ends, before it where the layer below is a
            witness of what it would compute; its tokens and residual are kept.
        outputs: layers whose block's output is kept, in the graph where there is one.
        stream: layers whose block is to add to the pooled token what its branches return, which
            is compared.
    """
    last = len(tower.layers) - 1
    visited, call = visit or (range(0), None)
    kept = {*keep, *(index for index in (leaf, stop) if isinstance(index, int))}
    early = stop is not None and (stop <= last - 1 or tower.witness is not None)

    def enter(index: int, args: Arguments, kwargs: dict[str, Any]) -> None:
        if record.size is None:  # a part ran without the whole tower, which is told at the end
            return
        record.layers[index] = shown = record.entering(index, args, kwargs)
        if index == stop and early:
            if call is not None and index in visited:
                record.visited[index] = call(index, shown)
            raise Stop

    def leave(index: int, _: Arguments, result: Any) -> Any:
        if index not in record.layers:  # it ran without its first hook, which is told at the end
            return None
        shown, attention = record.layers[index], tower.attentions[index]
        output = attention.output(result)
        if index == leaf and attention.linear:
            output = as_leaf(output)
        shown.output = output
        if index in stream:
            attended[index] = record.pooled.read(output).clone()
        if call is not None and index in visited:
            record.visited[index] = call(index, shown)
        if index == stop:
            raise Stop
        if index not in kept:
            del record.layers[index]
            return None
        # a clone, since what follows may work in place, such as somebody's hook
        return attention.replaced(result, output.clone())

    def enter_block(index: int, args: Arguments, kwargs: dict[str, Any]) -> None:
        record.residual = record.watched(tower.layers[index].residual(args, kwargs))
        row = record.pooled.read(record.residual)
        if index and index - 1 in stream:
            record.compare(f"what enters layer {index}", left[0], row)
        elif index in stream:
            left[:] = [row.clone()]

    def leave_block(index: int, _: Arguments, result: Any) -> Any:
        layer, output = tower.layers[index], tower.layers[index].output(result)
        if index in stream:
            _compare_block(record, index, left[0], attended[index], added.get(index), output)
            left[:] = [record.pooled.read(output).clone()]
        if index not in outputs:
            return None
        record.outputs[index] = output = as_leaf(output) if leaf == "block" else output
        return layer.replaced(result, output.clone())  # what follows may work in place

    def add(index: int, _: Arguments, result: Any) -> None:
        added[index] = record.pooled.read(tower.layers[index].output(result)).clone()

    # of the pooled token: what left the last block, and what the branches of each returned
    left, attended, added = list[Tensor](), dict[int, Tensor](), dict[int, Tensor]()
    with recording(tower, gradient=leaf is not None) as (hooks, record):
        if leaf == "input" and tower.kind == "text":  # token ids have no gradient
            hooks.after(tower.patches, record.begin)
        elif leaf == "input":
            hooks.before(tower.input_module, record.begin)
        if leaf == "block":
            outputs = range(last, last + 1)
        begins = {*stream[:1], *([last] if leaf == "block" else []), stop}
        for index in begins & {*range(last + 1)}:
            hooks.before(tower.layers[index].block, partial(enter_block, index))
        for index in sorted({*kept, *visited, *stream}):
            attention, name = tower.attentions[index], f"Layer {index}"
            hooks.before(attention.input_module, partial(enter, index), name)
            if index == stop and early:
                continue
            _plan_attention(hooks, record.layers, index, attention, leaf=index == leaf)
            hooks.after(attention.output_module, partial(leave, index), first=True)
        for index in sorted({*outputs, *(set(stream) - {stop})}):
            if index in stream:
                hooks.after(tower.layers[index].added()[0], partial(add, index))
            # a hook of the user's on the block may keep what is then the beginning of the graph
            own = partial(leave_block, index), f"Layer {index}"
            hooks.after(tower.layers[index].block, *own, first=leaf == "block")
        if leaf == "embedding" or (outputs and isinstance(leaf, int)):
            plan_embedding(hooks, record, tower, leaf=leaf == "embedding")
        yield record


def _compare_block(
    record: Recording,
    index: int,
    entered: Tensor,
    attended: Tensor,
    added: Tensor | None,
    output: Tensor,
) -> None:
    """Compare what a block made of the pooled token, all (B, D), with what its branches add."""
    assert isinstance(record.tower, ViTTower)
    row = record.pooled.read(output)
    added = torch.full_like(row, torch.nan) if added is None else added
    made = record.tower.layers[index].summed(entered, attended, added)
    # a sum is rounded as its largest part
    slack = 8 * torch.finfo(row.dtype).eps / record.rounding(row)
    record.compare(f"layer {index}", made, row, attended, added, slack * row)


def plan_exposed(
    hooks: Hooks, layers: dict[int, LayerRecord], index: int, attention: Attention
) -> None:
    """Record the queries, keys and values that the modules of an attention return."""

    def show(names: tuple[str, ...], _: Arguments, result: Tensor) -> None:
        if index in layers:
            for name, part in zip(names, result.chunk(len(names), -1), strict=True):
                setattr(layers[index], name, part)

    for module, names in attention.exposed().items():
        if names:
            hooks.after(module, partial(show, names))


def _plan_attention(
    hooks: Hooks, layers: dict[int, LayerRecord], index: int, attention: Attention, *, leaf: bool
) -> None:
    """Record what an attention exposes, and what of it lies in the graph."""
    linear = attention.linear

    def merge(args: Arguments, _: dict[str, Any]) -> Tensor | None:
        if index not in layers:
            return None
        heads = args[0] if args[0].ndim == 3 else args[0][:, None]  # of a single query
        differentiated = not linear  # and hooks on what follows are in the graph
        layers[index].heads_output = heads = as_leaf(heads) if leaf and differentiated else heads
        if differentiated or heads.ndim > args[0].ndim:
            return heads.clone().view(args[0].shape)
        return None

    plan_exposed(hooks, layers, index, attention)
    if (merging := attention.merge_module()) is not None:
        hooks.before(merging, merge, first=not linear)


def plan_embedding(hooks: Hooks, record: Recording, tower: Tower, *, leaf: bool) -> None:
    """Record what the tower returns, and what a projection after it makes of that."""

    def leave(_: Arguments, result: Any) -> Any:
        embedding = tower.embedding(result)
        record.embedding = as_leaf(embedding) if leaf else embedding
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
        if then == "embedding":  # a score may read them by a hook, besides the embedding
            record.other_outputs.append(as_leaf(features))
            return record.other_outputs[-1].clone()
        torch.set_grad_enabled(True)
        record.shift = features.new_zeros(features.shape[:2]).requires_grad_()
        return record.features + record.shift[:, :, None, None]

    with recording(tower, gradient=then != "stop") as (hooks, record):
        hooks.after(tower.stage, leave, "The last stage", first=then == "embedding")
        if then == "embedding":
            plan_embedding(hooks, record, tower, leaf=True)
        yield record


@contextmanager
def record_features(
    tower: ViTTower | ResNetTower, *, through: Callable[[Tensor], Tensor] = as_leaf
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

    with recording(tower, gradient=through is as_leaf) as (hooks, record):
        if isinstance(tower, ResNetTower):
            hooks.after(tower.stage, passed)
        else:
            layer = tower.layers[-2 if tower.pooling == "cls" else -1]
            hooks.after(layer.block, leave)
        yield record
