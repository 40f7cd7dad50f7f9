"""Recordings of a forward, which runs to its end: small objects that each see one thing."""

import operator
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import CaptureError, UnsupportedModelError
from ..maps import is_vmapped
from ..models.attentions import Attention
from ..models.library import running_state
from ..models.towers import ResNetTower, TextTower, Tower, TransformerTower, ViTTower
from .graph import detached, graph_from_start, keeps_graph, no_graph
from .hooks import Arguments, Hooks, Watch, uncompiled
from .reads import AttentionRead
from .records import NOTHING, Recording

Take = Callable[[int, AttentionRead], Any]
"""What to keep of the attention of a layer, called where it ran."""


@contextmanager
def recording(tower: Tower, *, gradient: bool) -> Iterator[tuple[Hooks, Recording]]:
    """Hooks to set and what they record; however the forward ends, everything is undone.

    Args:
        tower: the tower that the forward must run, exactly once.
        gradient: whether one is needed, which the caller's own mode must then allow.
    """
    record = Recording(tower)
    hooks = Hooks()
    was_grad_enabled = torch.is_grad_enabled()
    state_before: list[Any] = []

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
        if any(map(is_vmapped, (*args, *kwargs.values()))):
            raise CaptureError(
                f"The forward function ran the {tower.noun} under torch.vmap, which hides the "
                "batch from every hook; it must run it on all images at once. Call it on the whole "
                "batch, without vmap."
            )
        state_before.extend(running_state(tower.module))
        record.size, record.batch, record.pooled = tower.read_inputs(args, kwargs)
        # Under autocast, results are rounded to its type, whatever the type of the parameters.
        device_type = next(tower.module.parameters()).device.type
        if torch.is_autocast_enabled(device_type):
            record.autocast = torch.get_autocast_dtype(device_type)
        # A graph of the whole tower would hold every activation, for derivatives that nobody takes.
        # So it begins only where an observer turns it on, unless the model needs one.
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
        hooks.remove()
        torch.set_grad_enabled(was_grad_enabled)
    state = running_state(tower.module)
    is_same = len(state) == len(state_before) and all(map(operator.is_, state, state_before))
    record.switched = not is_same
    # A part whose hooks did not run would be missing in the map. The first one is named.
    for name in hooks.unseen.values():
        raise CaptureError(
            f"{name} of the {tower.noun} ran without its hooks, because it was compiled, or "
            "replaced during the forward. Explain the model without torch.compile."
        )


class Observer:
    """Something to see in a forward of a tower: the hooks that it needs.

    Attributes:
        order: hooks of one module run in the order in which they are set, which is that of this
            number: from 10, where the input becomes a leaf, to 80, where the embedding is read. An
            observer of your own comes after all of them unless it has another.
        leaf: whether the graph begins where it looks.
    """

    order: ClassVar[int] = 100
    leaf: bool = False

    def plan(self, hooks: Hooks, record: Recording) -> None:
        """Set the hooks."""
        raise NotImplementedError


@contextmanager
def observe(tower: Tower, *observers: Observer) -> Iterator[Recording]:
    """Record a forward that runs inside the ``with``, and what some observers see of it.

    There is no graph up to the leaf, where an observer makes one.
    """
    with recording(tower, gradient=any(each.leaf for each in observers)) as (hooks, record):
        for observer in sorted((HandedOn(), *observers), key=operator.attrgetter("order")):
            observer.plan(hooks, record)
        yield record


class HandedOn(Observer):
    """Whether each block gets what the one below it returned: that tensor, or one equal to it."""

    order = 20

    def plan(self, hooks: Hooks, record: Recording) -> None:
        """See `Observer`."""
        output, version = NOTHING, 0

        def enter(layer: Any, args: Arguments, kwargs: dict[str, Any]) -> None:
            tokens = layer.residual(args, kwargs)
            record.count = tokens.shape[1]
            if not record.handed_on:
                return
            if _version(output) != version or output.shape != tokens.shape:
                record.moved = True
            elif not any(tokens is handed_on for handed_on in record.handed_on):
                # The tokens may be a copy, such as one on another device.
                record.moved |= not bool(output.to(tokens).eq(tokens).all())

        def leave(layer: Any, _: Arguments, result: Any) -> None:
            nonlocal output, version
            record.graph.go_on()
            output = layer.output(result)
            version = _version(output)
            record.handed_on = [output]

        for layer in record.tower.layers:
            hooks.before(layer.block, partial(enter, layer))
            hooks.after(layer.block, partial(leave, layer), first=True)


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place, which nobody counts for an inference tensor."""
    return 0 if tensor.is_inference() else tensor._version


class LeafAtInput(Observer):
    """The graph begins at the images that enter the tower, or at the embeddings of a text."""

    order = 10
    leaf = True

    def plan(self, hooks: Hooks, record: Recording) -> None:
        """See `Observer`."""
        if isinstance(record.tower, TextTower):
            # Token ids have no gradient.
            hooks.after(record.tower.stem, partial(begin, record))
        else:
            hooks.before(record.tower.input_module, partial(begin, record))


def begin(record: Recording, args: Arguments, entered: Any) -> Tensor:
    """A hook that begins the graph: before a module at its first tensor, after it at its result.

    So `entered` is the result, or before the module the dictionary of its keyword arguments.
    """
    if not isinstance(entered, Tensor):
        arguments = (*args, *entered.values())
        entered = next(value for value in arguments if isinstance(value, Tensor))
    record.input = record.graph.start(entered)
    return record.input


@dataclass(eq=False)
class Outputs(Observer):
    """Keeps what some blocks return, in the graph where there is one.

    With `starts` the graph begins at the first of them. A forward that turns the graph off for the
    tower is not refused for it, so its scores may come without one.
    """

    order: ClassVar[int] = 50
    layers: Collection[int]
    starts: bool = False

    def plan(self, hooks: Hooks, record: Recording) -> None:
        """See `Observer`."""

        def keep(index: int, _: Arguments, result: Any) -> Any:
            layer = record.tower.layers[index]
            output = layer.output(result)
            if not (record.graph.started or self.starts):
                record.outputs[index] = record.graph.watched(output)
                return None
            is_handed_on = any(output is tensor for tensor in record.handed_on)
            if not output.requires_grad:
                # A block may run without a graph, as checkpointed blocks do.
                output = record.graph.start(output)
            record.outputs[index] = output
            # The next block may work in place.
            following = output.clone()
            if is_handed_on:
                record.handed_on.append(following)
            return layer.replaced(result, following)

        for index in self.layers:
            hooks.after(record.tower.layers[index].block, partial(keep, index), f"Layer {index}")


@dataclass(eq=False)
class Probes(Observer):
    """Tells whether scores read what is below the graph, by a gradient at `Graph.probe`.

    That is what the stem returns, and what some blocks and their two branches return.
    """

    order: ClassVar[int] = 40
    layers: Collection[int]

    def plan(self, hooks: Hooks, record: Recording) -> None:
        """See `Observer`."""

        def leave(layer: Any, _: Arguments, result: Any) -> Any:
            return layer.replaced(result, record.graph.probed(layer.output(result)))

        def leave_stem(_: Arguments, tokens: Tensor) -> Tensor:
            return record.graph.probed(tokens)

        # They run before the user's hooks, of which one may keep what a score reads.
        if isinstance(record.tower, TransformerTower):
            hooks.after(record.tower.stem, leave_stem, first=True)
        for index in self.layers:
            layer = record.tower.layers[index]
            for module in (layer.output_module, layer.added()[0], layer.block):
                hooks.after(module, partial(leave, layer), first=True)


@dataclass(eq=False)
class Sums(Observer):
    """The pooled token through some blocks; what enters and the two branches add up to what leaves.

    All its rows in a block are stacked where the block is left. With `copies` each is copied where
    it is seen, for a model that works in place.
    """

    order: ClassVar[int] = 30
    layers: Collection[int]
    copies: bool = False

    def plan(self, hooks: Hooks, record: Recording) -> None:
        """See `Observer`."""
        for index in self.layers:
            self._plan_block(hooks, record, index, record.transformer.layers[index])

    def _plan_block(self, hooks: Hooks, record: Recording, index: int, layer: Any) -> None:
        names = ("entered", "attention", "mlp")
        rows: dict[str, tuple[Tensor, int]] = {}  # each with its version

        def note(name: str, tokens: Tensor) -> None:
            row = record.pooled.read(detached(tokens))
            if self.copies or row.is_inference():
                row = row.clone()
            rows[name] = row, _version(row)

        def leave(_: Arguments, result: Any) -> None:
            left = record.pooled.read(detached(layer.output(result)))
            if any(_version(row) != version for row, version in rows.values()):
                record.graph.note_change()
            missing = [name for name in names if name not in rows]
            if missing:
                raise UnsupportedModelError(
                    f"layer {index} of the {record.tower.noun} ran without its {missing[0]}, so "
                    "its sum cannot be taken apart; use a method with gradients, such as all-grad."
                )
            parts = [rows[name][0] for name in names]
            with no_graph():
                record.rows[index] = torch.stack([*parts, left])
            rows.clear()

        def enter(args: Arguments, kwargs: dict[str, Any]) -> None:
            note("entered", layer.residual(args, kwargs))

        def returned(name: str, _: Arguments, result: Any) -> None:
            note(name, layer.output(result))

        hooks.before(layer.block, enter)
        hooks.after(layer.output_module, partial(returned, "attention"), first=True)
        hooks.after(layer.added()[0], partial(returned, "mlp"))
        hooks.after(layer.block, leave)


def keep(_: int, read: AttentionRead) -> AttentionRead:
    """Keep an attention as it was read."""
    return read


@dataclass(eq=False)
class Kernels(Observer):
    """Reads the attentions of some layers where they run, and keeps what `take` returns of each.

    A pooling head's attention counts as one more layer, after the last. With `leaf` the graph
    begins at the heads' outputs, so there is a single layer.
    """

    order: ClassVar[int] = 70
    layers: Collection[int]
    take: Take = keep
    leaf: bool = False

    def plan(self, hooks: Hooks, record: Recording) -> None:
        """See `Observer`."""
        watch = Watch(record.tower.noun)
        hooks.handles.append(watch)

        def see(index: int, read: AttentionRead) -> Tensor | None:
            if self.leaf:
                read = replace(read, out=record.graph.start(read.out))
            elif not (keeps_graph() or read.out.requires_grad):
                refuse_cut_graph(record, read)
            taken = self.take(index, read)
            record.reads[index] = taken
            if isinstance(taken, AttentionRead):
                for tensor in taken.sources:
                    record.graph.watched(tensor)
            out: Tensor = read.out
            if taken is read and out.requires_grad:
                # What follows gets a copy, since it may work in place.
                return out.clone()
            return None

        for index in self.layers:
            plan_attention(hooks, record, watch, index, see)


def refuse_cut_graph(record: Recording, read: AttentionRead) -> None:
    """Raise UnsupportedModelError where the graph has started before an attention without one."""
    if record.graph.started:
        raise UnsupportedModelError(
            f"no gradient reaches {read.name} of the {record.tower.noun}: something before it "
            "turns the graph off. Remove that, or use a method without gradients, such as direct."
        )


def plan_attention(
    hooks: Hooks,
    record: Recording,
    watch: Watch,
    index: int,
    see: Callable[[int, AttentionRead], Tensor | None],
    *,
    trims: bool = True,
) -> None:
    """Set hooks on an attention, between which it is read and `see` takes what it wants of it.

    `see` gets a read without the keys beyond the tokens, such as a sink, if it `trims` them.
    """
    attention: Attention = record.tower.attentions[index]
    name = "the pooling head" if attention.is_pool else f"the attention of layer {index}"

    def enter(args: Arguments, kwargs: dict[str, Any]) -> None:
        # If a part ran without the tower, an error says so at the end.
        if record.size is not None:
            watch.enter(attention, name, seen)

    def seen(read: AttentionRead) -> Tensor | None:
        if not record.count:
            # The block ran without its hooks, and an error says so at the end.
            return None
        # A library may put heads before images, and no number would tell.
        if read.out.shape[:2] != (record.batch, attention.heads):
            raise UnsupportedModelError(
                f"{name} of the {record.tower.noun} returns {tuple(read.out.shape)}, expected "
                f"{record.batch} images by {attention.heads} heads; this layout is not known."
            )
        keys, rows = read.value.shape[2], read.out.shape[2]
        if keys < record.count or (rows != record.count and not attention.is_pool):
            raise UnsupportedModelError(
                f"{name} of the {record.tower.noun} attends to {keys} tokens from {rows}, expected "
                f"{record.count}; remove what merges, drops or pads them."
            )
        read = replace(
            read, pooled=record.pooled, span=record.span, features=record.features, name=name
        )
        if trims and keys > record.count:
            read = read.without_extra_keys(record.count)
        return see(index, read)

    def leave(_: Arguments, result: Any) -> None:
        watch.leave()
        if attention.is_pool:
            # This is a copy, since what follows may work in place.
            record.pool = detached(attention.output(result)[:, 0]).clone()
        record.graph.go_on()

    hooks.before(attention.input_module, enter, f"Layer {index}")
    hooks.after(attention.output_module, leave, f"Layer {index}", first=True)


@dataclass(eq=False)
class Embedding(Observer):
    """What the tower returns, what a projection makes of that, and what passes the `readout`.

    With `leaf` the graph begins at what the tower returns. With `other` it begins at that
    embedding, which takes the place of the projection's or, without a projection, of the tower's.
    The tower of a text returns no embedding, so there the `readout` does.
    """

    order: ClassVar[int] = 80
    readout: nn.Module | None = None  # a module that the embedding passes before it is scored
    leaf: bool = False
    other: Tensor | None = None
    projected: bool = False  # whether `other` takes the place of the projection's embedding

    def plan(self, hooks: Hooks, record: Recording) -> None:
        """See `Observer`."""
        tower: Tower = record.tower
        if tower.kind != "text":
            hooks.after(tower.module, partial(self._leave, record))
            if tower.projection_module is not None:
                hooks.after(tower.projection_module, partial(self._project, record))
        if self.readout is not None:
            hooks.after(self.readout, partial(self._score, record))

    def _begin(self, record: Recording, embedding: Tensor) -> Tensor:
        """Record the embedding, and return it, or what takes its place."""
        is_leaf = self.leaf
        if self.other is not None and not self.projected:
            embedding = self.other
            is_leaf = True
        if not is_leaf:
            record.embedding = embedding
            return embedding
        record.embedding = record.graph.start(embedding)
        # What follows may work in place.
        return record.embedding.clone()

    def _leave(self, record: Recording, _: Arguments, result: Any) -> Any:
        tower: Tower = record.tower
        record.graph.go_on()
        following = self._begin(record, tower.embedding(result))
        # A score may read hidden states, which have no gradient below the leaf.
        if not isinstance(result, Tensor):
            result = _probed(result, record)
        return tower.with_embedding(result, following)

    def _project(self, record: Recording, _: Arguments, result: Tensor) -> Tensor | None:
        if self.other is None or not self.projected:
            record.projected = result
            return None
        record.projected = record.graph.start(self.other)
        # What follows may work in place.
        return record.projected.clone()

    def _score(self, record: Recording, _: Arguments, result: Tensor) -> Tensor | None:
        record.scored = result
        if record.tower.kind != "text":
            return None
        # The embedding of a text is no module's result, so it begins here.
        return self._begin(record, result)


def _probed(output: Any, record: Recording) -> Any:
    """What a tower returned, with a probe in its tensors."""
    if isinstance(output, Tensor):
        if record.graph.started and output.is_floating_point():
            return record.graph.probed(output)
        return output
    if isinstance(output, dict):
        # transformers returns dictionaries whose classes take their items as keyword arguments.
        probed = {name: _probed(value, record) for name, value in output.items()}
        return type(output)(**probed)
    if type(output) in (tuple, list):
        return type(output)(_probed(value, record) for value in output)
    return output


@dataclass(eq=False)
class Features(Observer):
    """The last stage of a convolutional tower; with `leaf` the graph begins there."""

    order: ClassVar[int] = 60
    leaf: bool = False

    def plan(self, hooks: Hooks, record: Recording) -> None:
        """See `Observer`."""
        tower: ResNetTower = record.tower

        def start(_: Arguments, features: Tensor) -> Tensor:
            if not self.leaf:
                # A score may read the features beside the pool.
                return record.graph.probed(features)
            return record.graph.start(features).clone()

        def leave(_: Arguments, features: Tensor) -> Tensor:
            record.graph.go_on()
            record.features = features if self.leaf else record.graph.watched(features)
            record.count = tower.prefix + features.shape[-2] * features.shape[-1]
            if self.leaf:
                # What follows may work in place.
                return features.clone()
            return record.graph.probed(features)

        # The user's own hooks run between these two, and may keep the beginning of the graph or
        # change it.
        hooks.after(tower.stage, start, "The last stage", first=True)
        hooks.after(tower.stage, leave)


@dataclass(eq=False)
class LastFeatures(Observer):
    """The features (B, C, h, w) of a class activation map, where the graph begins.

    They are a ResNet's last stage; the patches that enter the last block of a tower that pools CLS,
    since nothing reads the patches that leave it; the patches that leave it in another tower. With
    `through` there is no graph, and the forward goes on with what it makes of them.
    """

    order: ClassVar[int] = 60
    through: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        self.leaf = self.through is None

    def plan(self, hooks: Hooks, record: Recording) -> None:
        """See `Observer`."""
        tower: ViTTower | ResNetTower = record.tower

        def replaced(_: Arguments, features: Tensor) -> Tensor:
            make_features = self.through or record.graph.start
            record.features = make_features(features)
            # What follows may work in place.
            return record.features.clone()

        if isinstance(tower, ResNetTower):
            hooks.after(tower.stage, replaced)
            return
        # What leaves the block before the last one enters the last one.
        index = -2 if tower.pooling == "cls" else -1
        layer = tower.layers[index]

        def leave(_: Arguments, result: Any) -> Any:
            output = layer.output(result)
            patches = replaced((), record.on_grid(output.mT)).flatten(2).mT
            tokens = torch.cat([output[:, : record.span.start], patches], 1)
            # The next block gets these tokens, which is no change of the model's.
            record.handed_on.append(tokens)
            return layer.replaced(result, tokens)

        hooks.after(layer.block, leave)
