"""One forward through a tower: what each method needs of it, and the gradients for K targets.

Where a `ClipSimilarity` scores a tower that reads CLS or has a probe, the forward stops at the last
attention, and one token goes through the rest. Elsewhere the forward runs to its end. Either way
the gradient is taken at the output of the attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..errors import CaptureError, UnsupportedModelError
from ..models.towers import Attention, AttentionLayer, ViTTower
from ..recording import LayerRecord, Recording, Visit, record_vit
from . import _attention
from ._call import Call, TargetScores


@dataclass(frozen=True, eq=False)
class LastGradient:
    """The last attention, a probe's where there is one, and its gradient.

    Attributes:
        row: d y / d A of the row that is read, (K', B, H, s), where all others are exactly zero.
        attention: that row of A, (B, H, s), beside `row`.
        output: the gradient at the last layer's point, (K', B, s, D), where they are not zero.
    """

    record: Recording
    scored: TargetScores
    row: Tensor | None = None
    attention: Tensor | None = None
    output: Tensor | None = None

    def matrices(self, tower: ViTTower) -> Iterator[tuple[Tensor, Tensor]]:
        """For each target the row to read (B, s), and d y / d A (B, H, s, s) of the last layer."""
        assert self.output is not None
        layer, seen = tower.layers[-1], self.record.layers[len(tower.layers) - 1]
        for output in self.output:
            start = _attention.start_row(output, tower.prefix, seen.pooled)
            yield start, _attention.matrix_gradient(layer, output, seen)


def last_gradient(
    tower: ViTTower, call: Call, visit: tuple[range, Visit] | None = None, keep: range = range(0)
) -> LastGradient:
    """Run once, visit or keep the tokens of some layers, and differentiate the last attention."""
    last = len(tower.attentions) - 1
    attention = tower.attentions[last]
    if tower.pooling == "cls" and not keep and call.runs_library_code(tower):
        short = _from_last_block(tower, call, visit)
        if short is not None:
            return short
    if stops(tower, call):
        with record_vit(tower, visit=visit, stop=last) as record:
            call.scores()
        with torch.no_grad():
            weights, heads, tokens = last_heads(tower, record)
        scored = _tail(tower, call, record, heads.requires_grad_())
        row = _attention.row_gradient(attention, scored.stacked_gradients(heads), tokens)
        return LastGradient(record, scored, row, weights)
    refuse_checkpointing(tower)
    keep = keep or range(last, last + 1)
    record, scored = call.run(record_vit(tower, visit=visit, keep=keep, leaf=last))
    seen = record.layers[last]
    leaf, _ = seen.point(attention)
    output = scored.stacked_gradients(leaf)  # (K', B, s, D)
    if tower.pooling == "attention":
        _check_first_query(output)
    elif tower.pooling == "mean" or output[:, :, 1:].any():
        return LastGradient(record, scored, output=output)
    return LastGradient(record, scored, *_first_row(attention, seen, output))


@torch.no_grad()
def _first_row(attention: Attention, seen: LayerRecord, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """D y / d A (K', B, H, s) and A (B, H, s) of the first row, alone in the point's gradient."""
    heads = _attention.heads_gradient(attention, gradient[:, :, 0], seen)
    row = _attention.row_gradient(attention, heads, seen.tokens)
    return row, _attention.readout_row(attention, seen)


def last_heads(tower: ViTTower, record: Recording) -> tuple[Tensor, Tensor, Tensor]:
    """The last attention's row that is read (B, H, s), its heads' outputs (B, D), its tokens."""
    attention = tower.attentions[-1]
    seen = record.layers[len(tower.attentions) - 1]
    row = _attention.readout_row(attention, seen)
    return row, _attention.heads_output(attention, row, seen.tokens), seen.tokens


def _from_last_block(
    tower: ViTTower, call: Call, visit: tuple[range, Visit] | None
) -> LastGradient | None:
    """The same where the last block's output is the leaf, so K backwards run the user's tail alone.

    The block itself is passed by one token, for all targets at once. None where the scores read
    more than CLS.
    """
    last = len(tower.layers) - 1
    attention = tower.layers[last]
    kept = range(last, last + 1)
    record, scored = call.run(record_vit(tower, visit=visit, keep=kept, leaf="block"))
    rows = []
    for (gradient,) in scored.gradients(record.outputs[last]):
        if gradient[:, 1:].any():
            return None
        rows.append(gradient[:, 0])
    with torch.no_grad():
        weights, heads, tokens = last_heads(tower, record)
    token = readout_token(tower, record, heads.requires_grad_())
    (gradient,) = torch.autograd.grad(token, heads, torch.stack(rows), is_grads_batched=True)
    row = _attention.row_gradient(attention, gradient, tokens)
    return LastGradient(record, scored, row, weights)


def stops(tower: ViTTower, call: Call) -> bool:
    """Whether the forward may end at the last attention, the rest being one token's tail."""
    return call.similarity is not None and tower.pooling != "mean"


def _check_first_query(gradient: Tensor) -> None:
    """Only a probe's first query may have a gradient (..., queries, D): it is the embedding's."""
    if gradient[..., 1:, :].any():
        raise CaptureError(
            "The scores depend on several queries of the tower's pooling head; only the first one, "
            "of which the image embedding is made, can be explained."
        )


def _tail(tower: ViTTower, call: Call, record: Recording, heads: Tensor) -> TargetScores:
    """The scores of a stopped forward, from the last heads' outputs for what is read, (B, D)."""
    assert call.similarity is not None
    embedding = tower.embed(readout_token(tower, record, heads))
    return TargetScores.of(call.similarity.score(embedding), call, record)


def readout_token(tower: ViTTower, record: Recording, heads: Tensor) -> Tensor:
    """What `ViTTower.embed` takes, (B, D), from the last heads' outputs for what is read."""
    last = len(tower.attentions) - 1
    attention = tower.attentions[last]
    attended = _attention.merged(attention, heads)
    if isinstance(attention, AttentionLayer):
        residual = record.pooled.read(record.residual)
        return attention.tail(residual, attended.to(residual.dtype))
    return attended.to(record.layers[last].tokens.dtype)


@dataclass(frozen=True, eq=False)
class AllGradients:
    """What to differentiate in every attention from a first one on.

    `points` are the attentions' outputs, before the output map where they can; where the forward
    was stopped the last one is the row of attention that is read itself.
    """

    tower: ViTTower
    record: Recording
    scored: TargetScores
    points: tuple[Tensor, ...]

    def layer_gradient(self, index: int, gradient: Tensor) -> Tensor:
        """D y / d A (B, H, s, s) of a layer, given the gradient of its point."""
        layer, seen = self.tower.layers[index], self.record.layers[index]
        return _attention.matrix_gradient(layer, gradient, seen)

    def last_row(self, gradient: Tensor) -> tuple[Tensor, Tensor] | None:
        """D y / d A and A of the row that is read, both (B, H, s), given the last gradient.

        None where the last attention is a layer's whole matrix.
        """
        if self.record.stopped:
            return gradient, self.points[-1].detach()
        probe, index = self.tower.pooling_head, len(self.tower.layers)
        if probe is None:
            return None
        _check_first_query(gradient)
        rows, attention = _first_row(probe, self.record.layers[index], gradient[None])
        return rows[0], attention


def all_gradients(
    tower: ViTTower, call: Call, start: int, first: int | None = None
) -> AllGradients:
    """Run once with a graph from the attention of layer `start` on, tokens kept from `first`."""
    refuse_checkpointing(tower)
    first = start if first is None else first
    last = len(tower.attentions) - 1
    if stops(tower, call) and start < last:
        with record_vit(tower, keep=range(first, last), leaf=start, stop=last) as record:
            call.scores()
        points = _points(tower, record, range(start, last))
        row, heads, _ = last_heads(tower, record)
        scored = _tail(tower, call, record, heads)
        return AllGradients(tower, record, scored, (*points, row))
    record, scored = call.run(record_vit(tower, keep=range(first, last + 1), leaf=start))
    return AllGradients(tower, record, scored, _points(tower, record, range(start, last + 1)))


def _points(tower: ViTTower, record: Recording, indices: range) -> tuple[Tensor, ...]:
    return tuple(record.layers[i].point(tower.attentions[i])[0] for i in indices)


def kept_attention(
    tower: ViTTower, record: Recording, scored: TargetScores, *, averaged: bool = False
) -> Callable[[int], Tensor]:
    """What gives the attention of a kept layer, (B, H, s, s), or `averaged` (B, 1, s, s)."""

    def attention(index: int) -> Tensor:
        matrix = _attention.all_rows(tower.layers[index], record.layers[index])
        return matrix.mean(1, keepdim=True) if averaged else matrix

    return cache(attention) if len(scored.columns) > 1 else attention  # every target needs it again


def without_gradient(
    tower: ViTTower, call: Call, visit: tuple[range, Visit]
) -> tuple[Recording, TargetScores]:
    """Run once without any graph and visit the tokens of some layers."""
    with torch.no_grad():
        if not stops(tower, call):
            return call.run(record_vit(tower, visit=visit))
        with record_vit(tower, visit=visit, stop=len(tower.attentions) - 1) as record:
            call.scores()
        return record, _tail(tower, call, record, last_heads(tower, record)[1])


def refuse_checkpointing(tower: ViTTower) -> None:
    """A block that runs again in the backward would be seen by no hook."""
    if tower.checkpointing:
        raise UnsupportedModelError(
            "The vision tower checkpoints its activations, so its blocks run again in the "
            "backward; turn gradient checkpointing off to explain it."
        )
