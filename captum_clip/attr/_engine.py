"""One forward through a tower: gradients at its attentions, or the embedding taken apart.

It runs to its end, with a graph from the last attention on, and every derivative is taken between
points of that graph. What a map leaves out is seen to have no gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor
from torch.autograd import grad

from ..errors import CaptureError, UnsupportedModelError
from ..maps import autocast_disabled, to_float32
from ..models.attentions import PooledToken
from ..models.library import checkpoints
from ..models.steps import Direction, Step, call_steps, run_steps
from ..models.text import TextTower
from ..models.towers import ResNetTower, Tower, TransformerTower
from ..recording.graph import detached, keeps_graph, no_graph
from ..recording.observe import (
    Embedding,
    Features,
    Kernels,
    Observer,
    Outputs,
    Probes,
    Sums,
    observe,
)
from ..recording.reads import AttentionRead
from ..recording.records import NOTHING, Recording, agree
from . import _attention as mha
from ._call import Call, Pass, batched, together


class ReadsMoreError(CaptureError):
    """The scores depend on more than the embedding."""


@dataclass(frozen=True, eq=False)
class LastGradient:
    """The gradient of the last attention, which is the pooling head's where there is one.

    Attributes:
        row: d y / d A of the pooled row, (K', B, H, s), where all others are exactly zero.
        output: the gradient at the heads' outputs, (K', B, H, s, d), where they are not zero: then
            there is no `row`.
    """

    run: Pass
    read: AttentionRead
    row: Tensor | None = None
    output: Tensor | None = None

    def matrices(self, tower: TransformerTower) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows to read (k, B, s) of k targets at a time, and d y / d A of the last layer.

        The latter are (k, B, H, s, s).
        """
        assert self.output is not None
        for output in torch.split(self.output, together(_numbers(self.read.out))):
            start = mha.start_row(output, tower, self.read.pooled)
            yield start, mha.matrix_gradient(self.read, output)


def observed(tower: Tower, call: Call, *observers: Observer, leaf: bool = False) -> Pass:
    """Run once under some observers; with `leaf` the graph begins at the embedding.

    Scores that are not the cosines of the embedding are then seen to read nothing below it.
    """
    recording = partial(observe, tower, *observers, Embedding(call.readout, leaf))
    if not leaf:
        return call.run(recording())
    if call.is_cosine:
        run = call.run(recording())
        if _scored_cosine(run) is not None:
            return run
    run = call.run(recording(Probes(range(len(tower.layers)))))
    return replace(run, rows=None)


def begin_at(index: int) -> Kernels:
    """An observer with which the graph begins at the heads' outputs of an attention."""
    return Kernels([index], leaf=True)


def last_gradient(tower: TransformerTower, call: Call, *kernels: Kernels) -> LastGradient:
    """Run once, read the attentions of other layers as well, and differentiate the last one."""
    last = len(tower.attentions) - 1
    if tower.pooling != "mean":
        blocks = Sums(range(last, len(tower.layers)), copies=call.copies)
        run = observed(tower, call, *kernels, Kernels([last]), blocks, leaf=True)
        read = run.record.reads[last]
        if (heads := _through_one_token(tower, run, read)) is not None:
            return LastGradient(run, read, mha.row_gradient(read, heads))
    refuse_checkpointing(tower)
    run = observed(tower, call, *kernels, begin_at(last))
    read = run.record.reads[last]
    output = run.stacked_gradients(read.out)  # (K', B, H, rows, d)
    if tower.pooling == "attention":
        _check_first_query(output)
    elif tower.pooling == "mean" or _reads_others(output.transpose(2, 3).flatten(3), read.pooled):
        _refuse_text(tower)
        return LastGradient(run, read, output=output)
    return LastGradient(run, read, mha.row_gradient(read, read.select(output)))


def _reads_others(gradient: Tensor, pooled: PooledToken) -> bool:
    """Whether other tokens than the pooled one have a gradient (..., B, s, D)."""
    reached = gradient.ne(0).any(-1)  # (..., B, s)
    here = pooled.row_of(reached.flatten(0, -3)[0] if reached.ndim > 2 else reached)
    return bool((reached & here.eq(0)).any())


def _through_one_token(tower: TransformerTower, run: Pass, read: AttentionRead) -> Tensor | None:
    """The gradients (K', B, H d) at the last heads' outputs of the pooled token.

    It alone goes once more through the rest of the last block and the head, for all targets in one
    product: a backward through all tokens would cost s times as much for each. None where the
    scores read more than the embedding, or that token alone does not make what the forward made.
    """
    record, last = run.record, len(tower.attentions) - 1
    try:
        embedded = embedded_scores(tower, run)
    except ReadsMoreError:
        return None
    heads, layer = read.select(detached(read.out)).flatten(1), None
    if tower.pooling == "cls":
        layer = tower.layers[last]
    gradients = []
    # one token for each target: a batched backward would differentiate norms one by one
    for rows in torch.split(embedded.gradient, together(8 * heads.numel())):
        count = len(rows)
        leaf = heads.repeat(count, 1).requires_grad_()
        try:
            token = mha.merged(read.attention, leaf)
            if layer is not None:
                entered = record.rows[last][0].repeat(count, 1)
                stream = entered + call_steps(layer.branch(), token.to(entered.dtype))
                token = call_steps(layer.after_attention(), stream)
            embedding = call_steps(embedded.head(tower), token)
        except (
            RuntimeError,
            ValueError,
            IndexError,
            TypeError,
        ):  # of a module that needs all tokens
            return None
        returned = embedded.embedding.repeat(count, 1)
        # a hook may wipe what leads from the attention
        if not embedding.requires_grad or not agree(record, (embedding, returned)):
            return None
        cotangent = rows.flatten(0, 1).to(embedding.dtype)
        [gradient] = grad(embedding, leaf, cotangent, create_graph=keeps_graph())
        gradients.append(gradient.view(*rows.shape[:2], -1))
    return torch.cat(gradients)


def _refuse_text(tower: TransformerTower) -> None:
    """A text whose embedding is made of another token than its family says has no row to read."""
    if isinstance(tower, TextTower) and tower.pooling == "cls":
        raise UnsupportedModelError(
            f"the {tower.noun} pools neither the first token of a text nor the token that ends it; "
            "check its end token (eos_token_id)."
        )


def _check_first_query(gradient: Tensor) -> None:
    """Only a pooling head's first query may have a gradient (..., queries, d): it is pooled."""
    if gradient[..., 1:, :].any():
        raise CaptureError(
            "The scores depend on several queries of the tower's pooling head; only the first one, "
            "which makes the image embedding, can be explained."
        )


@dataclass(frozen=True, eq=False)
class AllGradients:
    """One forward whose graph begins at an attention, and the `points` to differentiate.

    They are the outputs of the heads (B, H, s, d) in every attention from there on.
    """

    tower: TransformerTower
    run: Pass
    points: tuple[Tensor, ...]

    @property
    def together(self) -> int:
        """How many targets are differentiated at once."""
        return together(max(*map(_numbers, self.points), sum(p.numel() for p in self.points)))

    def gradients(self) -> Iterator[tuple[Tensor, ...]]:
        """Those of the points (k, B, H, s, d), of some targets at once."""
        return self.run.gradients(*self.points, together=self.together)

    def attention(self, *, averaged: bool = False) -> Callable[[int], Tensor]:
        """That of layers, as `kept_attention` has it."""
        again = len(self.run.columns) > self.together
        return kept_attention(self.run.record, again, averaged=averaged)

    def layer_gradient(self, index: int, gradient: Tensor) -> Tensor:
        """D y / d A (k, B, H, s, s) of a layer, given the gradient of its point."""
        return mha.matrix_gradient(self.run.record.reads[index], gradient)

    def start_row(self, gradient: Tensor) -> Tensor:
        """The rows (k, B, s) to begin with, given the gradient of the last layer's point."""
        pooled, is_text = self.run.record.pooled, isinstance(self.tower, TextTower)
        if is_text and _reads_others(gradient.transpose(2, 3).flatten(3), pooled):
            _refuse_text(self.tower)
        return mha.start_row(gradient, self.tower, pooled)

    def pool_row(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """D y / d A (k, B, H, s) and A (B, H, s) of a pool, given the gradient of its point."""
        read = self.run.record.reads[len(self.tower.attentions) - 1]
        _check_first_query(gradient)
        return mha.row_gradient(read, read.select(gradient)), read.row()


def _numbers(out: Tensor) -> int:
    """The most numbers of one target at heads' outputs (B, H, s, d), in A or a wider MLP."""
    return out[..., 0].numel() * max(out.shape[-2], 4 * out.shape[-1])


def all_gradients(
    tower: TransformerTower, call: Call, start: int, first: int | None = None
) -> AllGradients:
    """Run once with a graph from the attention of layer `start` on, all kept from `first`."""
    refuse_checkpointing(tower)
    others = {*range(start if first is None else first, len(tower.attentions))} - {start}
    run = observed(tower, call, begin_at(start), Kernels(sorted(others)))
    points = (run.record.reads[index].out for index in range(start, len(tower.attentions)))
    return AllGradients(tower, run, tuple(points))


def kept_attention(
    record: Recording, again: bool, *, averaged: bool = False
) -> Callable[[int], Tensor]:
    """A function of a kept layer: its attention (B, H, s, s), or `averaged` (B, 1, s, s)."""

    def attention(index: int) -> Tensor:
        matrix: Tensor = record.reads[index].matrix()
        return matrix.mean(1, keepdim=True) if averaged else matrix

    return cache(attention) if again else attention  # other targets need it again


def without_gradient(tower: TransformerTower, call: Call, kernels: Kernels) -> Pass:
    """Run once without any graph and read some layers."""
    with no_graph():
        return observed(tower, call, kernels)


def once_more(tower: TransformerTower, call: Call, run: Pass, kept: range) -> Recording:
    """Record whole layers of a forward that turned out to be needed: it must be the same again."""
    again = without_gradient(tower, call, Kernels(kept))
    again.record.compare("a second forward", again.scores, run.scores)
    again.record.verify(call.method)
    return again.record


def refuse_checkpointing(tower: Tower) -> None:
    """A block that runs again in the backward would be seen by no hook."""
    if checkpoints(tower.module):
        raise UnsupportedModelError(
            f"The {tower.noun} checkpoints its activations, so its blocks run again in the "
            "backward pass; turn gradient checkpointing off to explain it."
        )


@dataclass(frozen=True, eq=False)
class PooledEmbedding:
    """An embedding e, the scores that are made of it, and what e itself is pooled from.

    Attributes:
        embedding: (B, E).
        direction: y = d . e for K' texts, with the length of the embedding as a constant. It is
            the direction's scale, so its rows are the texts' own where y is a cosine.
        gradient: of the scores at e, (K', B, E).
        projected: whether e comes out of the tower's whole head.
        token: what is pooled, (B, D); with a mean of patches or features these, (B, N, D).
        dtype: of the tower.
    """

    run: Pass
    embedding: Tensor
    direction: Direction
    gradient: Tensor
    projected: bool = True
    token: Tensor = NOTHING
    dtype: torch.dtype = torch.float32

    def head(self, tower: Tower) -> tuple[Step, ...]:
        """The steps of a tower's head up to the embedding that the scores are made of."""
        whole = self.projected or tower.projection_module is None
        return tower.head if whole else tower.head[:-1]


def pooled_embedding(tower: Tower, call: Call, *observers: Observer) -> PooledEmbedding:
    """Run once under some observers; the head must make the embedding of what is pooled."""
    _ = tower.head  # which a family may not know: refused before any work
    if isinstance(tower, ResNetTower):
        observers = (*observers, Features())
    elif tower.pooling != "attention":
        observers = (*observers, Outputs([len(tower.layers) - 1]))
    run = observed(tower, call, *observers, leaf=True)
    embedded = embedded_scores(tower, run)
    token = pooled_tokens(tower, run.record)
    compare_embedding(tower, embedded, token)
    return replace(embedded, token=to_float32(token), dtype=token.dtype)


def pooled_tokens(tower: Tower, record: Recording) -> Tensor:
    """The `token` of a `PooledEmbedding`, in the tower's own precision."""
    if tower.pooling == "attention":
        return record.pool
    if not isinstance(tower, TransformerTower):
        return detached(record.features).flatten(2).transpose(1, 2)
    final = detached(record.outputs[len(tower.layers) - 1])
    return final[:, tower.prefix :] if tower.pooling == "mean" else record.pooled.read(final)


@torch.no_grad()
def compare_embedding(tower: Tower, embedded: PooledEmbedding, token: Tensor) -> None:
    """Compare the embedding of what is pooled with the one that the scores are made of."""
    record, returned = embedded.run.record, embedded.embedding.detach()
    steps = embedded.head(tower)
    if tower.pooling == "mean":
        before = tower.steps_before_mean
        mean = record.pooled.mean(run_steps(steps[:before], token), slice(None))[:, 0]
        made = run_steps(steps[before:], mean)
    else:
        made = run_steps(steps, token)
    if made.shape != returned.shape:
        made = torch.full_like(returned, torch.nan)
    # of the tower's precision, since it may have been cast
    record.compare("the embedding", to_float32(made), returned.to(token.dtype))


def embedded_scores(tower: Tower, run: Pass, below: Tensor | None = None) -> PooledEmbedding:
    r"""A forward's scores in terms of the embedding e, through which alone they read the tower.

    The directions d of a cosine are the texts over the length of e. For any other score they are
    :math:`g + (y - g \cdot e) e / |e|^2`, g its gradient at e, so that :math:`d \cdot e = y`; it
    is seen that it depends through e alone on `below`, by default on what the tower returned.
    """
    record = run.record
    if (scored := _scored_cosine(run)) is not None:
        return _of_cosines(run, record.scored, scored is record.projected)
    points = [p for p in (record.projected, record.embedding) if p is not None]
    embedding = _scored_point(run, points, below)
    if embedding is None:
        raise ReadsMoreError(
            f"The scores depend on more than the embedding that the {tower.noun} returned, such as "
            "hidden states, so they cannot be taken apart. Use a method with gradients, such as "
            "all-grad, or grad-cam on a convolutional tower."
        )
    projected = embedding is record.projected
    gradient = to_float32(run.stacked_gradients(embedding))  # (K', B, E)
    if embedding.ndim == 3:  # FLAVA projects all tokens, and the first is the image's
        gradient, embedding = gradient[:, :, 0], embedding[:, 0]
    # a cosine is flat along e, so the part of the score along it is put back by hand
    e = to_float32(detached(embedding))
    along = run.chosen.T.to(gradient.dtype) - (gradient * e).sum(-1)
    length = e.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    rows = gradient * length + along[..., None] * (e / length)
    # one direction for all images makes the products that follow one matrix
    mean = rows.mean(1, keepdim=True)  # of cosines the images' rows are the same
    rounding = 32 * torch.finfo(rows.dtype).eps * mean.norm(dim=-1)
    # rows that are equal here may have other derivatives
    alike = ((rows - mean).norm(dim=-1) <= rounding).all()
    rows = mean if bool(alike) and not keeps_graph() else rows
    direction = Direction.of(rows, length[:, 0].reciprocal())
    return PooledEmbedding(run, embedding, direction, gradient, projected)


def _scored_cosine(run: Pass) -> Tensor | None:
    """The tower's own embedding, where the scores are cosines of it; None where they are not."""
    record = run.record
    for candidate in (record.projected, record.embedding):
        if run.rows is None or candidate is None:
            continue
        # FLAVA projects all tokens
        first = candidate[:, 0] if candidate.ndim == 3 else candidate
        if first.shape == record.scored.shape and record.scored.equal(to_float32(first)):
            return candidate
    return None


def _of_cosines(run: Pass, embedding: Tensor, projected: bool) -> PooledEmbedding:
    """The same of a `Similarity`, whose scores are the products of unit vectors by definition."""
    assert run.rows is not None
    e = detached(embedding)
    scale = e.norm(dim=-1).clamp(min=1e-12).reciprocal()
    direction = Direction.of(run.rows.to(e.dtype), scale)
    made, size = direction.dot(e).T, run.chosen.norm(dim=1, keepdim=True).clamp(min=1)
    run.record.compare("the score", made, run.chosen.to(made.dtype), size)
    # what a cosine feels of its direction is not along e
    along = made.T[..., None] * (e * scale[:, None])
    gradient = (direction.rows - along) * scale[:, None]
    return PooledEmbedding(run, embedding, direction, gradient, projected)


def _scored_point(run: Pass, points: Sequence[Tensor], below: Tensor | None) -> Tensor | None:
    """The point through which alone the scores depend on what is below; None where none is."""
    points = [each for each in points if each.requires_grad]
    below = run.record.embedding if below is None else below
    probes = [] if run.record.probe is None else [run.record.probe]
    # one mixture of all targets, in which nothing cancels, so that the law costs one backward
    whole, *inner = run.mixed(below, *points, *probes)
    if whole is None or any(each is not None and bool(each.any()) for each in inner[len(points) :]):
        return None
    leads = (
        each
        for each, gradient in zip(points, inner, strict=False)
        if _leads_through(run, each, gradient, whole, below)
    )
    return next(leads, None)


def _leads_through(
    run: Pass, embedding: Tensor, inner: Tensor | None, whole: Tensor, below: Tensor
) -> bool:
    """Whether the scores depend on what is below through one point alone, its first token.

    Given their gradients at both.
    """
    if inner is None or (embedding.ndim == 3 and inner[:, 1:].any()):
        return False
    if embedding is below:
        return True
    (through,) = grad(embedding, below, inner, retain_graph=True, allow_unused=True)
    through = torch.zeros_like(whole) if through is None else through
    off, size = (to_float32(each).norm() for each in (through - whole, whole))
    return bool(off <= run.record.rounding(embedding) * size) or not whole.isfinite().all()


def resnet_gradient(
    tower: ResNetTower, call: Call, *, detached: bool = False
) -> tuple[Pass, Tensor]:
    """Run once: the last stage's features in the recording, and d y / d shift (K', B, C).

    A shift of all positions, since Grad-CAM needs the gradient only through its mean over them;
    `detached` takes the weights of an attention pool as constants.
    """
    with suppress(UnsupportedModelError):  # of a pool that cannot be read
        pool = Kernels(range(len(tower.attentions)))
        run = observed(tower, call, Features(), pool, leaf=True)
        if (shift := _shift_gradient(tower, run, detached)) is not None:
            return run, shift
    if detached:
        raise UnsupportedModelError(
            "attention='detached' needs a score of the pool's output alone; leave it out."
        )
    # the whole gradient, from the features on
    run = observed(tower, call, Features(leaf=True))
    return run, run.stacked_gradients(run.record.features).sum((-2, -1))


def _shift_gradient(tower: ResNetTower, run: Pass, detached: bool) -> Tensor | None:
    """The gradients (K', B, C) of a shift, from those at the heads of the pool or at the mean.

    None unless the embedding, and values and the query of the pool, are what the weights make of
    the features.
    """
    record, read = run.record, run.record.reads.get(0)
    # written-out attention shows its weights, and not the scale of its products
    if read is not None and read.weights is not None:
        return None
    try:
        embedded = embedded_scores(tower, run)
    except ReadsMoreError:
        return None
    features = to_float32(record.features.detach())
    with autocast_disabled(features):
        token = features.mean((-2, -1)) if read is None else mha.heads_output(read)
        steps = () if read is None else read.attention.merge_steps()
        embedding = run_steps((*steps, *embedded.head(tower)), token.requires_grad_())
        pairs = [(embedding, to_float32(embedded.embedding))]
        if read is not None:
            query_map, _, value_map = read.attention.input_maps()
            tokens, values, first = mha.features_mixture(read)
            query = read.select(read.query).flatten(1)
            pairs += [(value_map(tokens), values), (query_map(first), query)]
        if not agree(record, *pairs):
            return None
        gradients = partial(grad, embedding, token, retain_graph=True)
        at_token = batched(gradients, embedded.gradient.to(embedding.dtype), token)
        return at_token if read is None else mha.shift_gradient(read, at_token, detached=detached)
