"""One forward through a tower: gradients at its attentions, or the embedding taken apart.

Where a `ClipSimilarity` scores a tower that pools CLS or has a pooling head, the forward stops at
the last attention, and one token goes through the rest. Elsewhere the forward runs to its end.
Either way a gradient is taken at the output of an attention.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad

from ..errors import CaptureError, UnsupportedModelError
from ..maps import to_float32
from ..models.attentions import AttentionLayer
from ..models.library import checkpoints
from ..models.steps import Direction, Step, call_steps, run_steps
from ..models.text import TextTower
from ..models.towers import ResNetTower, Tower, TransformerTower
from ..recording import NOTHING, LayerRecord, Recording, Visit, record_resnet, record_vit
from ..similarity import Similarity
from . import _attention as mha
from ._call import Call, Pass

Visits = tuple[Collection[int], Visit]


@dataclass(frozen=True, eq=False)
class LastGradient:
    """The gradient of the last attention, which is the pooling head's where there is one.

    Attributes:
        row: d y / d A of the pooled row, (K', B, H, s), where all others are exactly zero.
        attention: that row of A, (B, H, s), where there is a `row`.
        output: the gradient at the last layer's point, (K', B, s, D), where they are not zero:
            then there is no `row`.
    """

    run: Pass
    row: Tensor = NOTHING
    attention: Tensor = NOTHING
    output: Tensor | None = None

    def matrices(self, tower: TransformerTower) -> Iterator[tuple[Tensor, Tensor]]:
        """For each target the row to read (B, s), and d y / d A (B, H, s, s) of the last layer."""
        assert self.output is not None
        layer = self.run.record.layers[len(tower.layers) - 1]
        for output in self.output:
            start = mha.start_row(output, tower, layer.pooled)
            yield start, mha.matrix_gradient(layer, output)


def last_gradient(
    tower: TransformerTower, call: Call, visit: Visits | None = None, keep: range = range(0)
) -> LastGradient:
    """Run once, visit or keep the tokens of some layers, and differentiate the last attention."""
    last = len(tower.attentions) - 1
    if tower.pooling == "cls" and not keep and call.similarity is None:
        short = _from_last_block(tower, call, visit)
        if short is not None:
            return short
    if _stops(tower, call):
        run, weights, heads = _stopped(tower, call, from_heads=True, visit=visit)
        row = mha.row_gradient(run.record.layers[last], run.stacked_gradients(heads))
        return LastGradient(run, row, weights)
    refuse_checkpointing(tower)
    run = call.run(record_vit(tower, visit=visit, keep=keep, leaf=last))
    layer = run.record.layers[last]
    output = run.stacked_gradients(layer.point()[0])  # (K', B, s, D)
    if tower.pooling == "attention":
        _check_first_query(output)
    elif tower.pooling == "mean" or output[:, :, 1:].any():
        return LastGradient(run, output=output)
    return LastGradient(run, *_first_row(layer, output))


def _from_last_block(
    tower: TransformerTower, call: Call, visit: Visits | None
) -> LastGradient | None:
    """Run with the last block's output as the leaf, so K backwards run the user's tail alone.

    One token passes the block itself, for all targets at once. None where the scores depend on
    more than CLS, or the block gives something else for it.
    """
    last = len(tower.layers) - 1
    run = call.run(record_vit(tower, visit=visit, keep=range(last, last + 1), leaf="block"))
    rows = []
    for (gradient,) in run.gradients(run.record.outputs[last]):
        if gradient[:, 1:].any():
            return None
        rows.append(gradient[:, 0])
    with torch.no_grad():
        weights, heads = _last_heads(tower, run.record)
    token = _pooled_token(tower, run.record, heads.requires_grad_())
    returned = run.record.pooled.read(run.record.outputs[last].detach())
    if token.shape != returned.shape:
        return None
    off, size = (to_float32(t).norm(dim=-1) for t in (token.detach() - returned, returned))
    if not (off <= run.record.rounding(returned) * size).all():
        return None
    if not token.requires_grad:  # a hook wiped what leads from the attention
        return None
    directions = torch.stack(rows)
    gradients: Any = grad(token, heads, directions, is_grads_batched=True, allow_unused=True)
    if gradients[0] is None:
        return None
    return LastGradient(run, mha.row_gradient(run.record.layers[last], gradients[0]), weights)


def _stops(tower: TransformerTower, call: Call) -> bool:
    """Whether the forward may end at the last attention, the rest being one token's tail."""
    return call.similarity is not None and tower.pooling != "mean"


def _stopped(
    tower: TransformerTower, call: Call, *, from_heads: bool = False, **recording: Any
) -> tuple[Pass, Tensor, Tensor]:
    """A forward that ends at the last attention, whose pooled token goes through the rest.

    With the last pooled row (B, H, s) and its heads' outputs (B, D), which are the leaf of the
    graph with `from_heads`.
    """
    assert call.similarity is not None
    with _stopping(tower, **recording) as record:
        call.scores()
    with torch.set_grad_enabled(torch.is_grad_enabled() and not from_heads):
        row, heads = _last_heads(tower, record)
    if from_heads:
        heads.requires_grad_()
    embedding = tower.embed(_pooled_token(tower, record, heads))
    return call.passed(record, call.similarity.score(embedding)), row, heads


def _stopping(
    tower: TransformerTower, visit: Visits | None = None, **recording: Any
) -> AbstractContextManager[Recording]:
    """A recording that stops at the last attention.

    Where that is not run itself, a row of the layer below is compared in its place.
    """
    last = len(tower.attentions) - 1
    layers, call = visit or (range(0), None)
    kept = recording.get("keep", range(0))
    if tower.witness is not None and last - 1 not in (*layers, *kept):

        def watch(index: int, record: LayerRecord) -> Any:
            if index == last - 1:
                mha.compare_output(record)
            return call(index, record) if call is not None and index in layers else None

        visit = {*layers, last - 1}, watch
    return record_vit(tower, stop=last, visit=visit, **recording)


@torch.no_grad()
def _first_row(layer: LayerRecord, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """D y / d A (K', B, H, s) and A (B, H, s) of the first row, alone in the point's gradient."""
    compared = mha.pooled_attention if layer.point()[1] else mha.compare_output
    heads = mha.heads_gradient(layer, gradient[:, :, 0])
    return mha.row_gradient(layer, heads), compared(layer)


def _check_first_query(gradient: Tensor) -> None:
    """Only a pooling head's first query may have a gradient (..., queries, D): it is pooled."""
    if gradient[..., 1:, :].any():
        raise CaptureError(
            "The scores depend on several queries of the tower's pooling head; only the first one, "
            "of which the image embedding is made, can be explained."
        )


def _last_heads(tower: TransformerTower, record: Recording) -> tuple[Tensor, Tensor]:
    """The last attention's pooled row (B, H, s), and its heads' outputs (B, D)."""
    layer = record.layers[len(tower.attentions) - 1]
    row = mha.pooled_attention(layer, compare=False)
    return row, mha.heads_output(layer, row)


def _pooled_token(tower: TransformerTower, record: Recording, heads: Tensor) -> Tensor:
    """The pooled token (B, D), which `tower.embed` takes, from the last heads' outputs (B, D)."""
    last = len(tower.attentions) - 1
    layer = record.layers[last]
    attended, attention = mha.merged(layer, heads), layer.attention
    if layer.output is not None:
        layer.compare(attended, layer.pick(layer.output))
    if isinstance(attention, AttentionLayer):
        residual = record.pooled.read(record.residual)
        record.stream[last] = attention.tail(residual, attended.to(residual.dtype))
        return record.stream[last][1]
    return attended.to(layer.tokens.dtype)  # of the tower, as its head expects


@dataclass(frozen=True, eq=False)
class AllGradients:
    """One forward whose graph begins at an attention, and the `points` to differentiate.

    They are the attentions' outputs, before the output map where they can be; where the forward
    was stopped the last one is the pooled row of attention itself.
    """

    tower: TransformerTower
    run: Pass
    points: tuple[Tensor, ...]

    def layer_gradient(self, index: int, gradient: Tensor) -> Tensor:
        """D y / d A (B, H, s, s) of a layer, given the gradient of its point."""
        return mha.matrix_gradient(self.run.record.layers[index], gradient)

    def last_row(self, gradient: Tensor) -> tuple[Tensor, Tensor] | None:
        """D y / d A and A of the pooled row, both (B, H, s), given the last gradient.

        None where the last attention is a layer's whole matrix.
        """
        if self.run.record.stopped:
            return gradient, self.points[-1].detach()
        if self.tower.pooling_head is None:
            return None
        _check_first_query(gradient)
        rows, attention = _first_row(self.run.record.layers[len(self.tower.layers)], gradient[None])
        return rows[0], attention


def all_gradients(
    tower: TransformerTower, call: Call, start: int, first: int | None = None
) -> AllGradients:
    """Run once with a graph from the attention of layer `start` on, tokens kept from `first`."""
    refuse_checkpointing(tower)
    first, stop = start if first is None else first, len(tower.attentions)
    rows: tuple[Tensor, ...] = ()
    if _stops(tower, call) and start < stop - 1:
        stop -= 1
        run, row, _ = _stopped(tower, call, keep=range(first, stop), leaf=start)
        rows = (row,)
    else:
        run = call.run(record_vit(tower, keep=range(first, stop), leaf=start))
    points = (run.record.layers[index].point()[0] for index in range(start, stop))
    return AllGradients(tower, run, (*points, *rows))


def kept_attention(run: Pass, *, averaged: bool = False) -> Callable[[int], Tensor]:
    """A function of a kept layer: its attention (B, H, s, s), or `averaged` (B, 1, s, s)."""

    def attention(index: int) -> Tensor:
        matrix = mha.all_rows(run.record.layers[index])
        return matrix.mean(1, keepdim=True) if averaged else matrix

    return cache(attention) if len(run.columns) > 1 else attention  # every target needs it again


def without_gradient(tower: TransformerTower, call: Call, visit: Visits) -> Pass:
    """Run once without any graph and visit the tokens of some layers."""
    with torch.no_grad():
        if _stops(tower, call):
            return _stopped(tower, call, visit=visit)[0]
        return call.run(record_vit(tower, visit=visit))


def refuse_checkpointing(tower: TransformerTower) -> None:
    """A block that runs again in the backward would be seen by no hook."""
    if checkpoints(tower.module):
        raise UnsupportedModelError(
            f"The {tower.noun} checkpoints its activations, so its blocks run again in the "
            "backward; turn gradient checkpointing off to explain it."
        )


class ReadsMoreError(CaptureError):
    """The scores depend on more than the embedding."""


@dataclass(frozen=True, eq=False)
class PooledEmbedding:
    """An embedding e, the scores that are made of it, and what e itself is pooled from.

    Attributes:
        embedding: (B, E), in the graph where there is one.
        direction: y = d . e for K' texts, with the length of the embedding as a constant. It is
            the direction's scale, so its rows are the texts' own where y is a cosine.
        gradient: of the scores at e, (K', B, E).
        projected: whether e comes out of the tower's whole head.
        token: what is pooled, (B, D); with a mean of patches the tokens of which it is the mean,
            (B, N, D); a ResNet's features (B, C, h, w).
    """

    run: Pass
    embedding: Tensor
    direction: Direction
    gradient: Tensor
    projected: bool = True
    token: Tensor = NOTHING

    def head(self, tower: Tower) -> tuple[Step, ...]:
        """The steps of a tower's head up to the embedding that the scores are made of."""
        whole = self.projected or tower.projection_module is None
        return tower.head if whole else tower.head[:-1]


def pooled_embedding(
    tower: Tower, call: Call, visit: Visits | None = None, *, stream: range = range(0)
) -> PooledEmbedding:
    """Run once, without a graph up to the embedding, and visit the tokens of some layers.

    Of the layers of `stream` what each adds to the pooled token is compared.
    """
    _ = tower.head  # which a family may not know: refused before any work
    with _until_embedding(tower, call, visit, stream) as record:
        text = isinstance(tower, TextTower) and call.similarity is None
        scores = call.embeddings() if text else call.scores()
    with torch.no_grad():
        token = pooled_tokens(tower, record)
    if call.similarity is None:
        embedded = embedded_scores(tower, call, record, scores)
        compare_embedding(tower, embedded, token)
    else:
        with torch.no_grad():
            embedded = _of_cosine(call, record, _embedded(tower, record, token, tower.head))
    return replace(embedded, token=to_float32(token))


def _until_embedding(
    tower: Tower, call: Call, visit: Visits | None, stream: range
) -> AbstractContextManager[Recording]:
    leaf: Any = "embedding" if call.similarity is None and tower.kind != "text" else None
    if isinstance(tower, ResNetTower):
        return record_resnet(tower, then=leaf or "stop")
    assert isinstance(tower, TransformerTower)
    if _stops(tower, call):
        return _stopping(tower, visit, stream=stream)
    last = range(len(tower.attentions))[-1:]
    parts: Any = {"keep" if tower.pooling == "attention" else "outputs": last}
    return record_vit(tower, visit=visit, leaf=leaf, stream=stream, **parts)


def pooled_tokens(tower: Tower, record: Recording) -> Tensor:
    """The `token` of a `PooledEmbedding`, in the tower's own precision."""
    if not isinstance(tower, TransformerTower):
        return record.features
    if record.stopped or tower.pooling == "attention":
        return _pooled_token(tower, record, _last_heads(tower, record)[1])
    final = record.outputs[len(tower.layers) - 1].detach()
    if tower.pooling == "mean":
        return final[:, tower.prefix :]
    return record.pooled.read(final)


def _embedded(tower: Tower, record: Recording, token: Tensor, steps: Sequence[Step]) -> Tensor:
    """The embedding (B, E) of what is pooled, by a ViT's `steps`."""
    if isinstance(tower, ResNetTower):
        return tower.pool(token)
    assert isinstance(tower, TransformerTower)
    if tower.pooling != "mean":  # modules that a stopped forward left out are called as it would
        return call_steps(steps, token) if record.stopped else run_steps(steps, token)
    before = tower.steps_before_mean
    mean = record.pooled.mean(run_steps(steps[:before], token), slice(None))[:, 0]
    return run_steps(steps[before:], mean)


@torch.no_grad()
def compare_embedding(tower: Tower, embedded: PooledEmbedding, token: Tensor) -> None:
    """Compare the embedding of what is pooled with the one that the scores are made of."""
    record, returned = embedded.run.record, embedded.embedding.detach()
    made = _embedded(tower, record, token, embedded.head(tower))
    if made.shape != returned.shape:
        made = torch.full_like(returned, torch.nan)
    record.compare("the embedding", to_float32(made), returned)


def _of_cosine(call: Call, record: Recording, embedding: Tensor) -> PooledEmbedding:
    """Directions that are the target's embeddings over the length of the image's."""
    similarity = call.similarity or call.forward
    assert isinstance(similarity, Similarity)
    run = call.passed(record, similarity.score(embedding.detach()))
    columns, e = run.columns, to_float32(embedding.detach())
    same = bool((columns == columns[:, :1]).all())  # every image is asked about the same targets
    rows = similarity.embeddings.to(e.dtype)[columns[:, :1] if same else columns]
    length = e.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    gradient = (rows - run.chosen.T[..., None] * (e / length)) / length
    direction = Direction.of(rows, length[:, 0].reciprocal())
    return PooledEmbedding(run, embedding, direction, gradient)


def embedded_scores(tower: Tower, call: Call, record: Recording, result: Tensor) -> PooledEmbedding:
    r"""A forward's result, scores or the embeddings of texts, in terms of the embedding e.

    The directions d are :math:`g + (y - g \cdot e) e / |e|^2`, g the gradient at e: so
    :math:`d \cdot e = y` for any score, and :math:`d = t / |e|` if y is the cosine of e and t.
    """
    if isinstance(tower, TextTower):
        return _of_cosine(call, record, result)
    run = call.passed(record, result)
    if run.depend_on(record.other_outputs):
        raise ReadsMoreError(
            "The scores depend on more of what the vision tower returned than the image embedding, "
            "such as hidden states, so they cannot be taken apart; take a method with gradients, "
            "such as all-grad, or grad-cam on a convolutional tower."
        )
    point, projected = record.embedding, False
    if record.projected is not None and record.projected.requires_grad:
        projected = _leads_through(result, record.projected, record.embedding)
        point = record.projected if projected else point
    gradient = to_float32(run.stacked_gradients(point))  # (K', B, E)
    if point.ndim == 3:  # FLAVA projects all tokens, and the first is the image's
        gradient, point = gradient[:, :, 0], point[:, 0]
    e = to_float32(point.detach())
    along = run.chosen.T.to(gradient.dtype) - (gradient * e).sum(-1)
    length = e.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    rows = gradient * length + along[..., None] * (e / length)
    direction = Direction.of(rows, length[:, 0].reciprocal())
    return PooledEmbedding(run, point, direction, gradient, projected)


def _leads_through(scores: Tensor, projected: Tensor, embedding: Tensor) -> bool:
    """Whether the scores depend on the tower's embedding through its projection alone."""
    gradients: Any = partial(grad, retain_graph=True, allow_unused=True)
    inner, whole = gradients(scores.sum(), (projected, embedding))
    if inner is None or whole is None:
        return False
    (through,) = gradients(projected, embedding, inner)
    bound = 1e-6 * float(whole.abs().max())
    return through is not None and torch.allclose(through, whole, rtol=1e-3, atol=bound)


def resnet_gradient(
    tower: ResNetTower, call: Call, *, detached: bool = False
) -> tuple[Pass, Tensor]:
    """Run once: the last stage's features in the recording, and d y / d shift (K', B, C).

    A shift of all positions, since Grad-CAM needs the gradient only through its mean over them;
    `detached` takes the weights of an attention pool as constants.
    """
    try:
        embedded = pooled_embedding(tower, call)
        embedded.run.record.verify(call.method)
        with torch.no_grad():
            shift = tower.shift_gradient(embedded.token, embedded.gradient, detached=detached)
        return embedded.run, shift
    except (ReadsMoreError, UnsupportedModelError) as error:
        # the gradient does not lead through the pool alone, or that is not what it seems to be
        if detached:
            raise UnsupportedModelError(
                "attention='detached' needs a score of the pool's output alone, and "
                "the pool's weights; leave it out."
            ) from error
    run = call.run(record_resnet(tower, then="shift"))
    return run, run.stacked_gradients(run.record.shift)
