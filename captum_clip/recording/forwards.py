"""Recordings of a forward, which runs to its end: what its attentions and blocks showed."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import CaptureError, UnsupportedModelError
from ..models.attentions import AttentionLayer
from ..models.steps import run_steps
from ..models.text import TextTower
from ..models.towers import ResNetTower, Tower, TransformerTower, ViTTower
from .graph import detached, graph_from_start
from .hooks import Arguments, Hooks, uncompiled
from .places import Places
from .reads import AttentionRead
from .records import NOTHING, Recording, Visit, as_leaf
from .watch import Watch


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
        # the caller may be under autocast, in which what ran is rounded as its type is
        kind = next(tower.module.parameters()).device.type
        if torch.is_autocast_enabled(kind):
            record.autocast = torch.get_autocast_dtype(kind)
        # the graph begins only where a recording turns it on, but for a model that needs one
        # a graph of the whole tower would hold every activation, for no derivative that is taken
        torch.set_grad_enabled(graph_from_start.get())

    hooks.before(tower.input_module, enter)
    try:
        with uncompiled:
            yield hooks, record
        if record.size is None:
            raise CaptureError(
                f"The forward function did not run the {tower.noun} that is to be explained; it "
                "must call that module, not a replica, exactly once."
            )
    finally:
        for handle in hooks.handles:
            handle.remove()
        torch.set_grad_enabled(mode)
    for name in hooks.unseen.values():  # which would be left out of the map
        raise CaptureError(
            f"{name} of the {tower.noun} ran without its hooks, because it was compiled, or "
            "replaced during the forward. Explain the model without torch.compile."
        ) from None


@contextmanager
def record_vit(
    tower: TransformerTower,
    *,
    visit: tuple[Collection[int], Visit] | None = None,
    keep: Collection[int] = (),
    leaf: int | Literal["input", "block"] | None = None,
    outputs: Collection[int] = (),
    stream: range = range(0),
    places: bool = False,
    readout: nn.Module | None = None,
) -> Iterator[Recording]:
    """Record a forward of a transformer, which runs without a graph up to `leaf`.

    An index is that of a layer; a pooling head's attention comes after the last one.

    Args:
        tower: the tower; its forward runs inside the ``with``.
        visit: layers, and what to call as ``visit(layer, read)`` where their attention ran;
            its result is kept.
        keep: layers whose attention is kept as it was read.
        leaf: layer whose heads' outputs become a leaf; from there on the graph is recorded. Or
            the images that enter the tower, of a text its token embeddings ("input"); the output
            of the last block ("block"), which is kept.
        outputs: layers whose block's output is kept, in the graph where there is one.
        stream: layers whose block is to add to the pooled token what its branches return, which
            is compared.
        places: whether to see, at the price of a third of a forward, that every attention reads at
            each place the token of that place.
        readout: the module that an embedding passes before it is scored.
    """
    last = len(tower.layers) - 1
    visited, call = visit or (range(0), None)
    kept = {*keep, *([leaf] if isinstance(leaf, int) else ())}
    watch = Watch(tower.noun)

    def see(index: int, read: AttentionRead) -> Tensor | None:
        if index == leaf:
            read.out, record.begun = as_leaf(read.out), True
        if index in kept:
            record.reads[index] = read
            read.watch()
            assert read.row is not None  # compared with what ran
        if call is not None and index in visited:
            record.visited[index] = call(index, read)
        # a clone, since what follows may work in place
        return read.out.clone() if index in kept and read.out.requires_grad else None

    with recording(tower, gradient=leaf is not None) as (hooks, record):
        # before the hook that ends the graph of what enters
        if leaf == "input" and isinstance(tower, TextTower):  # token ids have no gradient
            hooks.after(tower.stem, record.begin)
        elif leaf == "input":
            hooks.before(tower.input_module, record.begin)
        moves = Places(record, hooks) if places else None
        if moves is not None:
            hooks.after(tower.stem, moves.begin, "The patch projection")
        outputs = {*outputs, *([last] if leaf == "block" else ())}
        # blocks below the graph, around which no residual leads into it
        pools = isinstance(leaf, int) and tower.attentions[leaf].is_pool
        below = leaf - 1 + pools if isinstance(leaf, int) else last if leaf == "block" else 0
        apart = range(below)
        at_block = last if leaf == "block" else None
        Blocks(record, stream, outputs, moves, at_block, apart).plan(hooks)
        every = range(len(tower.attentions)) if places else ()
        layers = sorted({*kept, *visited, *stream, *every})
        plan_attentions(hooks, record, watch, layers, see, moves)
        plan_embedding(hooks, record, tower, readout)
        try:
            yield record
        finally:
            watch.close()


def plan_attentions(
    hooks: Hooks,
    record: Recording,
    watch: Watch,
    layers: Iterable[int],
    see: Callable[[int, AttentionRead], Tensor | None],
    moves: Places | None = None,
) -> None:
    """Set hooks on attentions, between which each is read and `see` takes what it wants of it."""
    for index in layers:
        _Attention(record, index, watch, see, moves).plan(hooks)


@dataclass(eq=False)
class _Attention:
    """Hooks on one attention, between which it is read."""

    record: Recording
    index: int
    watch: Watch
    take: Callable[[int, AttentionRead], Tensor | None]
    moves: Places | None

    def __post_init__(self) -> None:
        self.attention = self.record.tower.attentions[self.index]
        is_pool = self.attention.is_pool
        self.name = "the pooling head" if is_pool else f"the attention of layer {self.index}"

    def plan(self, hooks: Hooks) -> None:
        """Set the hooks."""
        name = f"Layer {self.index}"
        hooks.before(self.attention.input_module, self.enter, name)
        hooks.after(self.attention.output_module, self.leave, name, first=True)

    def enter(self, args: Arguments, kwargs: dict[str, Any]) -> None:
        """Begin to read; not where a part ran without the tower, which is told at the end."""
        if self.record.size is not None:
            self.watch.enter(self.attention, self.name, self.see)

    def see(self, read: AttentionRead) -> Tensor | None:
        """Note where an attention ran, and hand it over."""
        record = self.record
        read.pooled, read.span, read.compare = record.pooled, record.span, record.compare
        read.watched, read.features = record.watched, record.features
        batch, heads = record.batch, self.attention.heads
        # a library may put heads before images, and no number would tell
        if read.out.shape[:2] != (batch, heads):
            raise UnsupportedModelError(
                f"{self.name} of the {record.tower.noun} returns {tuple(read.out.shape)}, "
                f"expected {batch} images by {heads} heads; this layout is not known."
            )
        if self.moves is not None:
            self.moves.check(self.name, read.value)
            if not record.begun:  # the graph was for that alone
                read.detach()
        if read.value.shape[2] < record.count:
            raise UnsupportedModelError(
                f"{self.name} of the {record.tower.noun} attends to {read.value.shape[2]} of "
                f"{record.count} tokens; remove what merges or drops them."
            )
        if read.value.shape[2] > record.count:
            read.cut(record.count)
        taken = self.take(self.index, read)
        return read.out if taken is None and self.moves is not None else taken

    def leave(self, _: Arguments, result: Any) -> None:
        """Keep the pooled row of what the attention returned."""
        self.watch.leave()
        output = self.attention.output(result)
        # a clone, since a residual may be added in place
        row = output[:, 0] if self.attention.is_pool else self.record.pooled.read(output)
        self.record.returned[self.index] = detached(row).clone()
        if self.index in self.record.reads:
            self.record.reads[self.index].output = output.detach().clone()
        self.record.go_on()


@dataclass(eq=False)
class Blocks:
    """Hooks on blocks: each gets what the one below it returned.

    A block of the `stream` is to add to the pooled token what its two branches return.
    """

    record: Recording
    stream: range
    outputs: Collection[int]
    moves: Places | None
    leaf: int | None = None  # the block at whose output the graph begins
    apart: range = range(0)  # blocks of which it is told whether scores read their output

    def __post_init__(self) -> None:
        self.layers = self.record.transformer.layers
        self.left: tuple[Tensor, ...] = ()  # what the last block returned, and what goes on
        self.version = 0
        self.row = NOTHING  # the pooled token (B, D) when the last block was left
        self.added = NOTHING  # to it, by the second branch of the block that runs

    def plan(self, hooks: Hooks) -> None:
        """Set the hooks."""
        for index, layer in enumerate(self.layers):
            hooks.before(layer.block, partial(self.enter, index))
            hooks.after(layer.block, partial(self.leave, index), first=True)
            if index in self.stream:
                hooks.after(layer.added()[0], partial(self.add, layer))
            if index in self.outputs:
                # a hook of the user's may keep what is then the beginning of the graph
                keep, is_leaf = partial(self.keep, index), index == self.leaf
                hooks.after(layer.block, keep, f"Layer {index}", first=is_leaf)

    def enter(self, index: int, args: Arguments, kwargs: dict[str, Any]) -> Tensor | None:
        """Compare what enters a block with what the one below it has returned."""
        record, layer = self.record, self.layers[index]
        tokens, self.added = layer.residual(args, kwargs), NOTHING
        record.count = tokens.shape[1]
        if index and self.left:
            raw = self.left[0]
            kept = _version(raw) == self.version and raw.shape == tokens.shape
            same = any(tokens is each for each in self.left)  # or a copy, on another device
            record.moved |= not kept or not (same or bool(raw.to(tokens).eq(tokens).all()))
        if index in self.stream or index == len(self.layers) - 1:
            row = record.pooled.read(tokens)
            if index and index - 1 in self.stream:
                record.compare(f"what enters layer {index}", self.row, row)
            self.row = detached(row).clone()
            record.residual = self.row
        if index == 0 and self.moves is not None:
            return layer.batch_first(self.moves.enter(tokens))
        return None

    def add(self, layer: AttentionLayer, _: Arguments, result: Any) -> None:
        """Note what the second branch returned for the pooled token."""
        self.added = self.record.pooled.read(layer.output(result)).detach().clone()

    def leave(self, index: int, _: Arguments, result: Any) -> Any:
        """Compare the sum, and note what the block returned."""
        layer, record = self.layers[index], self.record
        output = layer.output(result)
        record.go_on()
        if index in self.stream:
            row = detached(record.pooled.read(output))
            seen = [record.returned.get(index, NOTHING), self.added]
            # a branch that did not run is a sum that equals nothing, and bounds nothing
            attended, added = (b if b.numel() else torch.full_like(row, torch.nan) for b in seen)
            stream = self.row + run_steps(layer.branch(), attended)
            made = layer.summed(stream, added)
            sizes = [b if b.numel() else torch.zeros_like(row) for b in seen]
            # a sum is rounded as its largest part
            slack = 8 * torch.finfo(row.dtype).eps / record.rounding(row)
            record.compare(f"layer {index}", made, row, *sizes, slack * row)
            self.row = row.clone()
            record.stream[index] = stream, self.row
        self.left, self.version = (output,), _version(output)
        following = output if self.moves is None else self.moves.enter(output)
        if index in self.apart:
            following = record.probed(following)
        if following is output:
            return None
        self.left = output, following
        return layer.replaced(result, following)

    def keep(self, index: int, _: Arguments, result: Any) -> Any:
        """Keep the output."""
        layer, record = self.layers[index], self.record
        output = layer.output(result)
        # or where the block itself ran without one, as checkpointed blocks do
        if index == self.leaf or (record.begun and not output.requires_grad):
            output, record.begun = as_leaf(output), True
        record.outputs[index] = output
        going_on = output.clone()  # what follows may work in place
        if any(output is each for each in self.left) or index == self.leaf:
            self.left = *self.left, going_on
        return layer.replaced(result, going_on)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def plan_embedding(
    hooks: Hooks, record: Recording, tower: Tower, readout: nn.Module | None = None
) -> None:
    """Record what the tower returns, what a projection makes of that, and what is scored."""

    def leave(_: Arguments, result: Any) -> Any:
        record.go_on()
        record.embedding = tower.embedding(result)
        # a score may read hidden states, which have no gradient below the leaf
        if not isinstance(result, Tensor):
            result = _apart(result, record)
        return tower.with_embedding(result, record.embedding)

    def project(_: Arguments, result: Tensor) -> None:
        record.projected = result

    def score(_: Arguments, result: Tensor) -> None:
        record.scored = result
        if tower.kind == "text":  # no one module makes the embedding of a text
            record.embedding = result

    if tower.kind != "text":
        hooks.after(tower.module, leave)
        if tower.projection_module is not None:
            hooks.after(tower.projection_module, project)
    if readout is not None:
        hooks.after(readout, score)


def _apart(output: Any, record: Recording) -> Any:
    """What a tower returned, with a probe in its tensors."""
    if isinstance(output, Tensor):
        return record.probed(output) if record.begun and output.is_floating_point() else output
    if isinstance(output, dict):  # an output of transformers
        return type(output)(**{name: _apart(value, record) for name, value in output.items()})
    if type(output) in (tuple, list):
        return type(output)(_apart(value, record) for value in output)
    return output


@contextmanager
def record_resnet(
    tower: ResNetTower, *, visit: Visit | None = None, readout: nn.Module | None = None
) -> Iterator[Recording]:
    """Record the last stage of a ResNet tower, whose forward runs inside the ``with``.

    There is no graph up to there, and one from there on. With `visit` an attention pool is read,
    and the graph begins at its heads' outputs.
    """
    reads_pool = visit is not None and tower.pooling_head is not None

    def begin(_: Arguments, features: Tensor) -> Tensor:
        if reads_pool:  # a score may read the features beside the pool
            return record.probed(features.clone())
        record.begun = True
        return as_leaf(features).clone()

    def leave(_: Arguments, features: Tensor) -> Tensor:
        record.go_on()
        record.features = features
        record.count = tower.prefix + features.shape[-2] * features.shape[-1]
        # a clone, since what follows may work in place
        return record.probed(features.clone()) if reads_pool else features.clone()

    def see(index: int, read: AttentionRead) -> Tensor | None:
        # without features the stage ran without its hooks, which is told at the end
        if visit is None or record.features.ndim != 4:
            return None
        record.visited[index] = visit(index, read.detach())
        # a backward through the pool's values and keys would cost a tenth of the forward
        record.reads[index], record.begun = replace(read, out=as_leaf(read.out)), True
        return record.reads[index].out.clone()

    with recording(tower, gradient=True) as (hooks, record):
        # a hook of the user's may keep what is then the beginning of the graph, or change it
        hooks.after(tower.stage, begin, "The last stage", first=True)
        hooks.after(tower.stage, leave)
        watch = Watch(tower.noun)
        if reads_pool:
            plan_attentions(hooks, record, watch, range(len(tower.attentions)), see)
        plan_embedding(hooks, record, tower, readout)
        try:
            yield record
        finally:
            watch.close()


@contextmanager
def record_features(
    tower: ViTTower | ResNetTower, *, through: Callable[[Tensor], Tensor] = as_leaf
) -> Iterator[Recording]:
    """Record the features (B, C, h, w), and go on with what `through` makes of them.

    They are a ResNet's last stage; the patches that enter the last block of a tower that pools CLS,
    since nothing reads the patches that leave it; the patches that leave it in another tower.
    Without `through` they are the leaf of the graph.
    """

    def replace(_: Arguments, features: Tensor) -> Tensor:
        record.features = through(features)
        return record.features.clone()  # what follows may work in place

    def leave(_: Arguments, result: Any) -> Any:
        output = layer.output(result)
        patches = record.on_grid(output.mT)
        tokens = replace((), patches).flatten(2).mT
        return layer.replaced(result, torch.cat([output[:, : record.span.start], tokens], 1))

    with recording(tower, gradient=through is as_leaf) as (hooks, record):
        if isinstance(tower, ResNetTower):
            hooks.after(tower.stage, replace)
        else:
            layer = tower.layers[-2 if tower.pooling == "cls" else -1]
            hooks.after(layer.block, leave)
        yield record
