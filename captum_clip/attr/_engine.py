"""One forward through a tower: gradients at its attentions, or the embedding taken apart.

It runs to its end, with a graph from the last attention on, and every derivative is taken between
points of that graph. What a map leaves out is seen to have no gradient.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

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
from ..recording import NOTHING, AttentionRead, Recording, Visit, record_resnet, record_vit
from ..recording.graph import detached, keeps_graph, no_graph
from . import _attention as mha
from ._call import Call, Pass, batched

Visits = tuple[Collection[int], Visit]


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

    @property
    def attention(self) -> Tensor:
        """The pooled row of A, (B, H, s)."""
        return self.read.row

    def matrices(self, tower: TransformerTower) -> Iterator[tuple[Tensor, Tensor]]:
        """For each target the row to read (B, s), and d y / d A (B, H, s, s) of the last layer."""
        assert self.output is not None
        for output in self.output:
            start = mha.start_row(output, tower, self.read.pooled)
            yield start, mha.matrix_gradient(self.read, output)


def last_gradient(
    tower: TransformerTower, call: Call, visit: Visits | None = None, keep: range = range(0)
) -> LastGradient:
    """Run once, visit or keep some layers, and differentiate the last attention."""
    last, blocks = len(tower.attentions) - 1, range(len(tower.layers))[-1:]
    outputs = blocks if tower.pooling == "cls" else range(0)
    run = _run(tower, call, visit=visit, keep=keep, leaf=last, outputs=outputs)
    read = run.record.reads[last]
    if tower.pooling == "cls":
        rows = _through_one_token(tower, run)
        if rows is not None:
            return LastGradient(run, read, mha.row_gradient(read, rows))
    refuse_checkpointing(tower)
    output = run.stacked_gradients(read.out)  # (K', B, H, rows, d)
    if tower.pooling == "attention":
        _check_first_query(output)
    elif tower.pooling == "mean" or _reads_others(output.transpose(2, 3).flatten(3), read.pooled):
        _refuse_text(tower)
        return LastGradient(run, read, output=output)
    return LastGradient(run, read, mha.row_gradient(read, read.select(output)))


def _run(tower: TransformerTower, call: Call, **options: Any) -> Pass:
    return call.run(record_vit(tower, places=call.places, readout=call.readout, **options))


def _reads_others(gradient: Tensor, pooled: PooledToken) -> bool:
    """Whether other tokens than the pooled one have a gradient (..., B, s, D)."""
    reached = gradient.ne(0).any(-1)  # (..., B, s)
    here = pooled.row_of(reached.flatten(0, -3)[0] if reached.ndim > 2 else reached)
    return bool((reached & here.eq(0)).any())


def _through_one_token(tower: TransformerTower, run: Pass) -> Tensor | None:
    """The gradients (K', B, H d) at the last heads' outputs of the pooled token.

    It alone goes once more through the rest of the last block and the head, for all targets in one
    product. None where the scores depend on more than that token, or it gives something else.
    """
    record, last = run.record, len(tower.layers) - 1
    layer, read, returned = tower.layers[last], record.reads[last], record.outputs[last]
    try:
        embedded = embedded_scores(tower, run, returned, _beyond(tower, run))
    except ReadsMoreError:
        return None
    # a backward through all tokens of the last block would cost s times as much for each target
    heads = read.select(detached(read.out)).flatten(1).requires_grad_()
    try:
        attended = mha.merged(layer, heads)
        stream = record.residual + call_steps(layer.branch(), attended.to(record.residual.dtype))
        token = call_steps(layer.after_attention(), stream)
        embedding = call_steps(embedded.head(tower), token)
    except (RuntimeError, ValueError, IndexError, TypeError):  # of a module that needs all tokens
        return None
    made = (attended, record.returned[last]), (token, record.pooled.read(returned))
    if not all(agree(record, *pair) for pair in (*made, (embedding, embedded.embedding))):
        return None
    try:
        gradients = partial(grad, embedding, heads, retain_graph=True, create_graph=keeps_graph())
        return batched(gradients, embedded.gradient.to(embedding.dtype), heads)
    except RuntimeError:  # a hook wiped what leads from the attention
        return None


@torch.no_grad()
def agree(record: Recording, made: Tensor, returned: Tensor) -> bool:
    """Whether something was computed again as it ran."""
    if made.shape != returned.shape:
        return False
    off, size = (to_float32(t).norm(dim=-1) for t in (made - returned, returned))
    return bool((off <= record.rounding(returned) * size).all())


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

    def layer_gradient(self, index: int, gradient: Tensor) -> Tensor:
        """D y / d A (B, H, s, s) of a layer, given the gradient of its point."""
        return mha.matrix_gradient(self.run.record.reads[index], gradient)

    def last_row(self, gradient: Tensor) -> tuple[Tensor, Tensor] | None:
        """D y / d A and A of the pooled row, both (B, H, s), given the last gradient.

        None where the last attention is a layer's whole matrix.
        """
        read = self.run.record.reads[len(self.tower.attentions) - 1]
        if self.tower.pooling == "attention":
            _check_first_query(gradient)
        elif self.tower.pooling == "mean" or _reads_others(
            gradient.transpose(1, 2).flatten(2), read.pooled
        ):
            _refuse_text(self.tower)
            return None
        return mha.row_gradient(read, read.select(gradient)[None])[0], read.row


def all_gradients(
    tower: TransformerTower, call: Call, start: int, first: int | None = None
) -> AllGradients:
    """Run once with a graph from the attention of layer `start` on, all kept from `first`."""
    refuse_checkpointing(tower)
    kept = range(start if first is None else first, len(tower.attentions))
    run = _run(tower, call, keep=kept, leaf=start)
    points = (run.record.reads[index].out for index in range(start, len(tower.attentions)))
    return AllGradients(tower, run, tuple(points))


def kept_attention(
    record: Recording, targets: int, *, averaged: bool = False
) -> Callable[[int], Tensor]:
    """A function of a kept layer: its attention (B, H, s, s), or `averaged` (B, 1, s, s)."""

    def attention(index: int) -> Tensor:
        matrix = record.reads[index].matrix()
        return matrix.mean(1, keepdim=True) if averaged else matrix

    return cache(attention) if targets > 1 else attention  # every target needs it again


def without_gradient(tower: TransformerTower, call: Call, visit: Visits) -> Pass:
    """Run once without any graph and visit some layers."""
    with no_graph():
        return _run(tower, call, visit=visit)


def once_more(tower: TransformerTower, call: Call, run: Pass, keep: range) -> Recording:
    """Record whole layers of a forward that turned out to be needed: it must be the same again."""
    with no_graph():
        again = _run(tower, call, keep=keep)
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
        embedding: (B, E), in the graph.
        direction: y = d . e for K' texts, with the length of the embedding as a constant. It is
            the direction's scale, so its rows are the texts' own where y is a cosine.
        gradient: of the scores at e, (K', B, E).
        projected: whether e comes out of the tower's whole head.
        token: what is pooled, (B, D); with a mean of patches or features these, (B, N, D).
        dtype: of the tower.
        mixture: the gradient of a mixture of the scores at what is below.
    """

    run: Pass
    embedding: Tensor
    direction: Direction
    gradient: Tensor
    projected: bool = True
    token: Tensor = NOTHING
    dtype: torch.dtype = torch.float32
    mixture: Tensor = NOTHING

    def head(self, tower: Tower) -> tuple[Step, ...]:
        """The steps of a tower's head up to the embedding that the scores are made of."""
        whole = self.projected or tower.projection_module is None
        return tower.head if whole else tower.head[:-1]


def pooled_embedding(
    tower: Tower,
    call: Call,
    visit: Visits | None = None,
    *,
    keep: range = range(0),
    stream: range = range(0),
) -> PooledEmbedding:
    """Run once, with a graph from what is pooled on, and visit or keep some layers.

    For the layers of `stream`, what each adds to the pooled token is compared.
    """
    _ = tower.head  # which a family may not know: refused before any work
    if isinstance(tower, ResNetTower):
        see = None if visit is None else visit[1]
        run = call.run(record_resnet(tower, visit=see, readout=call.readout))
        below = run.record.reads[0].out if run.record.reads else run.record.features
        return _with_token(tower, embedded_scores(tower, run, below, _beyond(tower, run)))
    assert isinstance(tower, TransformerTower)
    last = len(tower.attentions) - 1
    leaf: Any = last if tower.pooling == "attention" else "block"
    run = _run(tower, call, visit=visit, keep=keep, leaf=leaf, stream=stream)
    record = run.record
    below = record.reads[last].out if leaf == last else record.outputs[last]
    return _with_token(tower, embedded_scores(tower, run, below, _beyond(tower, run)))


def _beyond(tower: Tower, run: Pass) -> Callable[[Tensor], bool]:
    """Whether a gradient at what is pooled reaches more than the pooled token or query."""
    if tower.pooling == "mean":
        return lambda whole: False
    if tower.pooling == "cls":
        return partial(_reads_others, pooled=run.record.pooled)
    return lambda whole: bool(whole[..., 1:, :].any())


def _with_token(tower: Tower, embedded: PooledEmbedding) -> PooledEmbedding:
    """With what is pooled, of which the head's steps must make the embedding."""
    record = embedded.run.record
    token = pooled_tokens(tower, record)
    compare_embedding(tower, embedded, token)
    return replace(embedded, token=to_float32(token), dtype=token.dtype)


def pooled_tokens(tower: Tower, record: Recording) -> Tensor:
    """The `token` of a `PooledEmbedding`, in the tower's own precision."""
    if tower.pooling == "attention":
        return record.returned[len(tower.layers)]
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


def embedded_scores(
    tower: Tower,
    run: Pass,
    below: Tensor,
    reads_more: Callable[[Tensor], Any] = lambda whole: False,
) -> PooledEmbedding:
    r"""A forward's scores in terms of the embedding e, through which alone they depend on `below`.

    `reads_more` tells of their gradient there whether they read more of it than is claimed.

    The directions d are :math:`g + (y - g \cdot e) e / |e|^2`, g the gradient at e: so
    :math:`d \cdot e = y` for any score, and :math:`d = t / |e|` if y is the cosine of e and t.
    """
    record = run.record
    points = [p for p in (record.projected, record.embedding) if p is not None and p.requires_grad]
    # one mixture of all targets, in which nothing cancels, so that the law costs one backward
    whole, *inner = run.mixed(below, *points, *record.apart)
    if whole is None:
        whole = run.stacked_gradients(below)[0]  # of zeros where a hook wiped it
    leads = (
        p for p, g in zip(points, inner, strict=False) if _leads_through(run, p, g, whole, below)
    )
    embedding = next(leads, None)
    apart = (each for each in inner[len(points) :] if each is not None)
    if embedding is None or reads_more(whole) or any(bool(each.any()) for each in apart):
        raise ReadsMoreError(
            f"The scores depend on more than the embedding that the {tower.noun} returned, such as "
            "hidden states, so they cannot be taken apart. Use a method with gradients, such as "
            "all-grad, or grad-cam on a convolutional tower."
        )
    projected = embedding is record.projected
    scored = record.scored  # in float32 at least, where it is the same
    if embedding.shape == scored.shape and scored.equal(embedding.to(scored.dtype)):
        embedding = scored
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
    return PooledEmbedding(run, embedding, direction, gradient, projected, mixture=whole)


def _leads_through(
    run: Pass, embedding: Tensor, inner: Tensor | None, whole: Tensor, below: Tensor
) -> bool:
    """Whether the scores depend on what is below through one point alone, its first token.

    Given their gradients at both.
    """
    if inner is None or (embedding.ndim == 3 and inner[:, 1:].any()):
        return False
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
        run = call.run(record_resnet(tower, visit=lambda _, read: read, readout=call.readout))
        if (shift := _shift_gradient(tower, run, detached)) is not None:
            return run, shift
    if detached:
        raise UnsupportedModelError(
            "attention='detached' needs a score of the pool's output alone; leave it out."
        )
    # the whole gradient, from the features on
    run = call.run(record_resnet(tower, readout=call.readout))
    return run, run.stacked_gradients(run.record.features).sum((-2, -1))


def _shift_gradient(tower: ResNetTower, run: Pass, detached: bool) -> Tensor | None:
    """The gradients (K', B, C) of a shift, from those at the heads of the pool or at the mean.

    None unless the gradient of a mixture of the scores is theirs, and values and the query of the
    pool are what its weights make of the features.
    """
    record, read = run.record, run.record.visited.get(0)
    below = record.features if read is None else record.reads[0].out
    # written-out attention shows its weights, and not the scale of its products
    if read is not None and read.weights is not None:
        return None
    try:
        embedded = embedded_scores(tower, run, below, _beyond(tower, run))
    except ReadsMoreError:
        return None
    features, whole = to_float32(record.features.detach()), embedded.mixture
    with autocast_disabled(features):
        token = features.mean((-2, -1)) if read is None else mha.heads_output(read)
        steps = () if read is None else read.attention.merge_steps()
        embedding = run_steps((*steps, *embedded.head(tower)), token.requires_grad_())
        gradients = partial(grad, embedding, token, retain_graph=True)
        at_token = batched(gradients, embedded.gradient.to(embedding.dtype), token)
        mixed = torch.einsum("k,kbc->bc", run.weights.to(at_token), at_token)
        whole = whole.sum((-2, -1)) if read is None else read.select(whole).flatten(1)
        pairs = [(mixed, whole)]
        if read is not None:
            query_map, _, value_map = read.attention.input_maps()
            tokens, values, first = mha.features_mixture(read)
            query = read.select(read.query).flatten(1)
            pairs += [(value_map(tokens), values), (query_map(first), query)]
        if not all(agree(record, made, returned) for made, returned in pairs):
            return None
        return at_token if read is None else mha.shift_gradient(read, at_token, detached=detached)
