"""One forward through a tower: what each method needs of it, and the gradients for K targets.

Where a `ClipSimilarity` scores a CLS-pooled tower, the forward stops at the last attention, and one
token goes through the rest. Elsewhere the forward runs to its end. Either way the gradient is taken
at the output of the attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CaptureError, UnsupportedModelError
from ..models.towers import ResNetTower, ViTTower
from ..recording import Recording, Visit, record_resnet, record_vit
from . import _attention
from ._call import Call, TargetScores


@dataclass(frozen=True, eq=False)
class LastGradient:
    """The last attention and its gradient.

    Attributes:
        row: d y / d A_n[CLS], (K', B, H, s), where all other rows are exactly zero.
        attention: A_n[CLS], (B, H, s), beside `row`.
        output: d y / d Y_n, (K', B, s, D), where they are not zero.
    """

    record: Recording
    scored: TargetScores
    row: Tensor | None = None
    attention: Tensor | None = None
    output: Tensor | None = None


def last_gradient(
    tower: ViTTower,
    call: Call,
    visit: tuple[range, Visit] | None = None,
    keep: range = range(0),
) -> LastGradient:
    """Run once, visit or keep the tokens of some layers, and differentiate the last attention."""
    last = len(tower.layers) - 1
    layer = tower.layers[last]
    if _stops(tower, call):
        with record_vit(tower, visit=visit, stop=last) as record:
            call.scores()
        tokens = _tokens(record, last)
        with torch.no_grad():
            attention = _attention.cls_row(layer, tokens)
            attended = _attention.attended(layer, attention, tokens)
        scored = _tail(tower, call, record, attended.requires_grad_())
        row = _attention.row_gradient(layer, scored.stacked_gradients(attended), tokens)
        return LastGradient(record, scored, row, attention)
    _refuse_checkpointing(tower)
    keep = keep or range(last, last + 1)
    with record_vit(tower, visit=visit, keep=keep, leaf=last) as record:
        scores = call.scores()
    scored = TargetScores.of(scores, call, record)
    tokens = _tokens(record, last)
    leaf = record.layers[last].output
    assert leaf is not None
    output = scored.stacked_gradients(leaf)  # (K', B, s, D)
    if output[:, :, 1:].any():
        return LastGradient(record, scored, output=output)
    row = _attention.row_gradient(layer, output[:, :, 0], tokens)
    with torch.no_grad():
        return LastGradient(record, scored, row, _attention.cls_row(layer, tokens))


def _stops(tower: ViTTower, call: Call) -> bool:
    """Whether the forward may end at the last attention, the rest being one token's tail."""
    return call.similarity is not None and tower.pooling == "cls"


def _tokens(record: Recording, index: int) -> Tensor:
    tokens = record.layers[index].tokens
    if tokens is None:
        raise CaptureError(
            f"Layer {index} of the vision tower ran without its hooks; it was compiled, or "
            "exchanged during the forward. Explain the model without torch.compile."
        )
    return tokens


def _tail(tower: ViTTower, call: Call, record: Recording, attended: Tensor) -> TargetScores:
    """The scores of a stopped forward, from the last attention's output for CLS, (B, D)."""
    assert call.similarity is not None
    assert record.residual is not None
    layer, residual = tower.layers[-1], record.residual[:, 0]
    embedding = tower.embed(layer.tail(residual, attended.to(residual.dtype)))
    return TargetScores.of(call.similarity.score(embedding), call, record)


@dataclass(frozen=True, eq=False)
class AllGradients:
    """What to differentiate in every layer from a first one on.

    `points` are the layers' mixed heads or outputs; where `row` says so the last one is the last
    layer's CLS row of attention itself.
    """

    record: Recording
    scored: TargetScores
    points: tuple[Tensor, ...]
    row: bool


def all_gradients(tower: ViTTower, call: Call, start: int) -> AllGradients:
    """Run once with a graph from the attention output of layer `start` on."""
    _refuse_checkpointing(tower)
    last = len(tower.layers) - 1
    if _stops(tower, call) and start < last:
        keep = range(start, last)
        with record_vit(tower, keep=keep, leaf=start, stop=last) as record:
            call.scores()
        row = _attention.cls_row(tower.layers[last], _tokens(record, last))
        attended = _attention.attended(tower.layers[last], row, _tokens(record, last))
        scored = _tail(tower, call, record, attended)
        return AllGradients(record, scored, (*_points(record, keep), row), row=True)
    keep = range(start, last + 1)
    with record_vit(tower, keep=keep, leaf=start) as record:
        scores = call.scores()
    scored = TargetScores.of(scores, call, record)
    return AllGradients(record, scored, _points(record, keep), row=False)


def _points(record: Recording, layers: range) -> tuple[Tensor, ...]:
    """What of each layer lies in the graph: the mixed heads where they do, else the output."""
    kept = [record.layers[index] for index in layers]
    points = [k.mixed if in_graph(k.mixed) else k.output for k in kept]
    for index in layers:
        _tokens(record, index)
    return tuple(point for point in points if point is not None)


def in_graph(tensor: Tensor | None) -> bool:
    """Whether a tensor was recorded, and can be differentiated."""
    return tensor is not None and tensor.requires_grad


def without_gradient(
    tower: ViTTower, call: Call, visit: tuple[range, Visit]
) -> tuple[Recording, TargetScores]:
    """Run once without any graph and visit the tokens of some layers."""
    last = len(tower.layers) - 1
    with torch.no_grad():
        if not _stops(tower, call):
            with record_vit(tower, visit=visit) as record:
                scores = call.scores()
            return record, TargetScores.of(scores, call, record)
        with record_vit(tower, visit=visit, stop=last) as record:
            call.scores()
        row = _attention.cls_row(tower.layers[last], _tokens(record, last))
        attended = _attention.attended(tower.layers[last], row, _tokens(record, last))
        return record, _tail(tower, call, record, attended)


def run_again(tower: ViTTower, call: Call, keep: range) -> Recording:
    """The same forward once more, now that whole layers turned out to be needed."""
    with torch.no_grad(), record_vit(tower, keep=keep) as record:
        call.scores()
    return record


def resnet_gradient(tower: ResNetTower, call: Call) -> tuple[Recording, TargetScores, Tensor]:
    """Run once: the last stage's features, the scores, and d y / d shift (K', B, C)."""
    similarity = call.similarity
    with record_resnet(tower, stop=similarity is not None) as record:
        scores = call.scores()
    assert record.features is not None
    if similarity is None:
        assert record.shift is not None
        scored = TargetScores.of(scores, call, record)
        return record, scored, scored.stacked_gradients(record.shift)
    with torch.no_grad():
        embedding = tower.pool(record.features)
    scored = TargetScores.of(similarity.score(embedding.requires_grad_()), call, record)
    gradient = scored.stacked_gradients(embedding)  # (K', B, E)
    with torch.no_grad():
        return record, scored, tower.shift_gradient(record.features, gradient)


def _refuse_checkpointing(tower: ViTTower) -> None:
    if tower.checkpointing:
        raise UnsupportedModelError(
            "The vision tower checkpoints its activations, so its blocks run again in the "
            "backward; turn gradient checkpointing off to explain it."
        )
