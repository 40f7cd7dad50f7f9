"""Recordings of a forward up to a leaf, or to where nobody needs its rest."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from ..errors import CaptureError
from ..models.attentions import AttentionLayer
from ..models.steps import run_steps
from ..models.text import TextTower
from ..models.towers import ResNetTower, Tower, TransformerTower, ViTTower
from .hooks import Arguments, Hooks, Stop, graph_from_start, uncompiled
from .records import NOTHING, Recording, Visit, as_leaf


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
    tower: TransformerTower,
    *,
    visit: tuple[Collection[int], Visit] | None = None,
    keep: range = range(0),
    leaf: int | Literal["input", "block", "embedding"] | None = None,
    stop: int | None = None,
    outputs: range = range(0),
    stream: range = range(0),
) -> Iterator[Recording]:
    """Record a forward of a transformer, which runs without a graph up to `leaf`.

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
    early = stop is not None and (stop < last or tower.witness is not None)
    if leaf == "block":
        outputs = range(last, last + 1)
    with recording(tower, gradient=leaf is not None) as (hooks, record):
        if leaf == "input" and isinstance(tower, TextTower):  # token ids have no gradient
            hooks.after(tower.embedding_table, record.begin)
        elif leaf == "input":
            hooks.before(tower.input_module, record.begin)
        blocks = _Blocks(record, stream, outputs, is_leaf=leaf == "block")
        blocks.plan(hooks, stop)
        for index in sorted({*kept, *visited, *stream}):
            attention = _RecordedAttention(
                record,
                index,
                visit=call if index in visited else None,
                is_kept=index in kept,
                is_leaf=index == leaf,
                stops=None if index != stop else "before" if early else "after",
            )
            attention.plan(hooks)
        if leaf == "embedding" or (outputs and isinstance(leaf, int)):
            plan_embedding(hooks, record, tower, leaf=leaf == "embedding")
        yield record


@dataclass(eq=False)
class AttentionHooks(ABC):
    """Hooks on one attention, which note what enters it and the queries, keys, values it shows."""

    record: Recording
    index: int

    def __post_init__(self) -> None:
        self.attention = self.record.transformer.attentions[self.index]

    def plan(self, hooks: Hooks) -> None:
        """Set the hooks."""
        hooks.before(self.attention.input_module, self.enter, f"Layer {self.index}")
        for module, names in self.attention.exposed().items():
            if names:
                hooks.after(module, partial(self.expose, names))
        hooks.after(self.attention.output_module, self.leave, f"Layer {self.index}", first=True)

    def enter(self, args: Arguments, kwargs: dict[str, Any]) -> None:
        """Record the inputs; not where a part ran without the tower, which is told at the end."""
        if self.record.size is not None:
            self.record.layers[self.index] = self.record.entering(self.index, args, kwargs)

    def expose(self, names: tuple[str, ...], _: Arguments, result: Tensor) -> None:
        """Record what a map returned."""
        if self.index in self.record.layers:
            for name, part in zip(names, result.chunk(len(names), -1), strict=True):
                setattr(self.record.layers[self.index], name, part)

    @abstractmethod
    def leave(self, _: Arguments, result: Any) -> Any:
        """Choose what the attention is to return; None for what it did."""


@dataclass(eq=False)
class _RecordedAttention(AttentionHooks):
    """An attention whose output, and what its output map takes, are recorded."""

    visit: Visit | None
    is_kept: bool
    is_leaf: bool
    stops: Literal["before", "after"] | None

    @override
    def plan(self, hooks: Hooks) -> None:
        if self.stops == "before":
            hooks.before(self.attention.input_module, self.enter, f"Layer {self.index}")
            return
        super().plan(hooks)
        if (merging := self.attention.merge_module()) is not None:
            hooks.before(merging, self.merge, first=not self.attention.linear)

    @override
    def enter(self, args: Arguments, kwargs: dict[str, Any]) -> None:
        super().enter(args, kwargs)
        if self.stops == "before" and self.index in self.record.layers:
            self._visit()
            raise Stop

    def merge(self, args: Arguments, _: dict[str, Any]) -> Tensor | None:
        """Record the heads' outputs, which are the leaf before a map that is not linear."""
        layer = self.record.layers.get(self.index)
        if layer is None:
            return None
        heads = args[0] if args[0].ndim == 3 else args[0][:, None]  # of a single query
        differentiated = not self.attention.linear  # and hooks on what follows are in the graph
        layer.heads_output = heads = as_leaf(heads) if self.is_leaf and differentiated else heads
        if differentiated or heads.ndim > args[0].ndim:
            return heads.clone().view(args[0].shape)
        return None

    @override
    def leave(self, _: Arguments, result: Any) -> Any:
        layer = self.record.layers.get(self.index)
        if layer is None:  # it ran without its first hook, which is told at the end
            return None
        layer.output = self.attention.output(result)
        if self.is_leaf and self.attention.linear:
            layer.output = as_leaf(layer.output)
        self._visit()
        if self.stops:
            raise Stop
        if not self.is_kept:
            del self.record.layers[self.index]
            return None
        # a clone, since what follows may work in place, such as somebody's hook
        return self.attention.replaced(result, layer.output.clone())

    def _visit(self) -> None:
        if self.visit is not None:
            self.record.visited[self.index] = self.visit(self.index, self.record.layers[self.index])


@dataclass(eq=False)
class _Blocks:
    """Hooks on blocks, which keep outputs and compare what each adds to the pooled token.

    A block of the `stream` is to add what its two branches return.
    """

    record: Recording
    stream: range
    outputs: range
    is_leaf: bool  # whether the graph begins at an output

    def __post_init__(self) -> None:
        self.layers = self.record.transformer.layers
        self.left = NOTHING  # the pooled token (B, D) when the last block was left
        self.added: dict[int, Tensor] = {}  # to it, by the two branches of the block that runs

    def plan(self, hooks: Hooks, stop: int | None) -> None:
        """Set the hooks; of the block at whose attention the forward stops its input is kept."""
        begins = {*self.stream[:1], *(self.outputs if self.is_leaf else ()), stop}
        for index in begins & {*range(len(self.layers))}:
            hooks.before(self.layers[index].block, partial(self.enter, index))
        for index in sorted({*self.outputs, *self.stream} - {stop}):
            layer = self.layers[index]
            if index in self.stream:
                hooks.after(layer.output_module, partial(self.add, layer, 0), first=True)
                hooks.after(layer.added()[0], partial(self.add, layer, 1))
            # a hook of the user's on the block may keep what is then the beginning of the graph
            leave = partial(self.leave, index)
            hooks.after(layer.block, leave, f"Layer {index}", first=self.is_leaf)

    def enter(self, index: int, args: Arguments, kwargs: dict[str, Any]) -> None:
        """Keep what enters a block, which the one below it has returned."""
        self.record.residual = self.record.watched(self.layers[index].residual(args, kwargs))
        row = self.record.pooled.read(self.record.residual)
        if index and index - 1 in self.stream:
            self.record.compare(f"what enters layer {index}", self.left, row)
        elif index in self.stream:
            self.left = row.clone()

    def add(self, layer: AttentionLayer, branch: int, _: Arguments, result: Any) -> None:
        """Note what a branch returned for the pooled token."""
        self.added[branch] = self.record.pooled.read(layer.output(result)).clone()

    def leave(self, index: int, _: Arguments, result: Any) -> Any:
        """Compare the sum, and keep the output."""
        layer, record = self.layers[index], self.record
        output = layer.output(result)
        if index in self.stream:
            row = record.pooled.read(output)
            seen = [self.added.pop(branch, None) for branch in (0, 1)]
            # a branch that did not run is a sum that equals nothing, and bounds nothing
            attended, added = (_or(row, b, torch.nan) for b in seen)
            stream = self.left + run_steps(layer.branch(), attended)
            made = layer.summed(stream, added)
            within = [_or(row, b, 0) for b in seen]
            # a sum is rounded as its largest part
            slack = 8 * torch.finfo(row.dtype).eps / record.rounding(row)
            record.compare(f"layer {index}", made, row, *within, slack * row)
            self.left = row.clone()
            record.stream[index] = stream, self.left
        if index not in self.outputs:
            return None
        record.outputs[index] = output = as_leaf(output) if self.is_leaf else output
        return layer.replaced(result, output.clone())  # what follows may work in place


def _or(like: Tensor, branch: Tensor | None, value: float) -> Tensor:
    return torch.full_like(like, value) if branch is None else branch


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
        output = layer.output(result)
        patches = record.on_grid(output.mT)
        tokens = passed((), patches).flatten(2).mT
        return layer.replaced(result, torch.cat([output[:, : record.span.start], tokens], 1))

    with recording(tower, gradient=through is as_leaf) as (hooks, record):
        if isinstance(tower, ResNetTower):
            hooks.after(tower.stage, passed)
        else:
            layer = tower.layers[-2 if tower.pooling == "cls" else -1]
            hooks.after(layer.block, leave)
        yield record
