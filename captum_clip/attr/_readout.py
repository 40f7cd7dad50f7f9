"""What an embedding is read from, and the texts as directions on it: no gradient is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import CaptureError
from ..models.steps import Direction, Step, run_steps
from ..models.text import TextTower
from ..models.towers import ResNetTower, Tower, ViTTower
from ..recording import Recording, Visit, record_resnet, record_vit
from . import _attention
from ._call import Call, TargetScores
from ._passes import layer_record, readout_token, refuse_checkpointing, stops


@dataclass(frozen=True, eq=False)
class Readout:
    """What an embedding is read from, and K' directions on the embedding that give the scores.

    Attributes:
        direction: y = d . e, the length of the embedding e held as it is. It is the direction's
            scale, so its rows are the texts' own where y is a cosine.
        steps: of the tower's head, from what is read to e.
        token: (B, D) what `ViTTower.embed` takes; with a mean of patches what that is the mean of,
            (B, N, D).
        heads: (B, D) the last attention's outputs of heads for what is read, where it stands there.
    """

    record: Recording
    scored: TargetScores
    direction: Direction
    steps: tuple[Step, ...]
    token: Tensor
    heads: Tensor | None = None


def readout(tower: ViTTower, call: Call, visit: tuple[range, Visit]) -> Readout:
    """Run once, without a graph up to the embedding, and visit the tokens of some layers."""
    last, steps = len(tower.attentions) - 1, tower.head
    probe = range(last, last + 1) if tower.pooling == "probe" else range(0)
    if call.similarity is None:
        with record_vit(
            tower, visit=visit, keep=probe, leaf="embedding", final=not probe
        ) as record:
            scores = call.scores()
        scored, direction, projected = _embedding_direction(tower, call, record, scores)
        steps = _head(tower, projected)
    else:
        stop = last if stops(tower, call) else None
        with (
            torch.no_grad(),
            record_vit(tower, visit=visit, stop=stop, final=stop is None) as record,
        ):
            call.scores()
    with torch.no_grad():
        heads = None
        if record.stopped or probe:
            seen, tokens = layer_record(record, last)
            row = _attention.readout_row(tower.attentions[last], seen)
            heads = _attention.heads_output(tower.attentions[last], row, tokens)
            token = readout_token(tower, record, heads)
        else:
            assert record.final is not None
            token = record.final.detach()
            token = token[:, tower.prefix :] if tower.pooling == "mean" else token[:, 0]
        if call.similarity is not None:
            embedding = _embedded(tower, record, token)
            scored = TargetScores.of(call.similarity.score(embedding), call, record)
            direction = _cosine_direction(call.similarity.bank, scored.columns, embedding)
    return Readout(record, scored, direction, steps, _attention.widened(token), heads)


@dataclass(frozen=True, eq=False)
class BlockOutputs:
    """The outputs of some blocks, and the texts to compare them with.

    Attributes:
        record: with the blocks' `outputs`, in the graph from their attention on.
        texts: (K', B, E), so that y = t . e / |e|.
        steps: of the tower's head, from what is read to e.
    """

    record: Recording
    scored: TargetScores
    texts: Tensor
    steps: tuple[Step, ...]


def block_outputs(tower: ViTTower, call: Call, layers: range) -> BlockOutputs:
    """Run once, with a graph from the attention of the first of the layers on.

    With a probe, which is differentiated itself, there is no graph before the embedding.
    """
    refuse_checkpointing(tower)
    probe = tower.pooling == "probe"
    leaf: int | Literal["embedding"] = "embedding" if probe else layers[0]
    keep = range(0) if probe else layers
    with record_vit(tower, keep=keep, leaf=leaf, outputs=layers) as record:
        scores = call.scores()
    scored, direction, projected = _embedding_direction(tower, call, record, scores)
    return BlockOutputs(record, scored, direction.rows, _head(tower, projected))


def _head(tower: ViTTower, projected: bool) -> tuple[Step, ...]:
    """The steps of the head up to the embedding that the scores are made of."""
    whole = projected or tower.projection_module is None
    return tower.head if whole else tower.head[:-1]


def _embedded(tower: ViTTower, record: Recording, token: Tensor) -> Tensor:
    """The embedding (B, E) of what is read."""
    if tower.pooling != "mean":
        return tower.embed(token)
    before = tower.steps_before_mean
    mean = record.reading.mean(run_steps(tower.head[:before], token), slice(None))[:, 0]
    return run_steps(tower.head[before:], mean)


def _cosine_direction(bank: Tensor, columns: Tensor, embedding: Tensor) -> Direction:
    """The rows of the bank that are asked for, over the embedding's length."""
    embedding = _attention.widened(embedding)
    same = bool((columns == columns[:, :1]).all())  # every image is asked about the same rows
    rows = bank.to(embedding.dtype)[columns[:, :1] if same else columns]
    return Direction.of(rows, embedding.norm(dim=-1).clamp(min=1e-12).reciprocal())


def _embedding_direction(
    tower: Tower, call: Call, record: Recording, scores: Tensor
) -> tuple[TargetScores, Direction, bool]:
    r"""Directions :math:`g + (y - g \cdot e) e / |e|^2` on the embedding, g its gradient.

    So d . e = y whatever the scores are, and d = t / |e| where y is the cosine of e and t. The
    flag says whether e is the output of the projection after the tower.
    """
    scored = TargetScores.of(scores, call, record)
    if scored.depend_on(record.beside):
        raise CaptureError(
            "The scores depend on more of what the vision tower returned than the image embedding, "
            "such as hidden states, so they cannot be taken apart; take a method with gradients, "
            "such as AllGradAttention, or ClipGradCam on a ResNet."
        )
    assert record.embedding is not None
    point, projected = record.embedding, False
    if record.projected is not None and record.projected.requires_grad:
        projected = _leads_through(scores, record.projected, record.embedding)
        point = record.projected if projected else point
    gradient = _attention.widened(scored.stacked_gradients(point))  # (K', B, E)
    embedding = _attention.widened(point.detach())
    if embedding.ndim == 3:  # FLAVA projects all tokens, and the first is the image's
        gradient, embedding = gradient[:, :, 0], embedding[:, 0]
    along = scored.chosen.T.to(gradient.dtype) - (gradient * embedding).sum(-1)
    length = embedding.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    rows = gradient * length + along[..., None] * (embedding / length)
    return scored, Direction.of(rows, length[:, 0].reciprocal()), projected


def direction_in_graph(
    tower: ViTTower, call: Call, record: Recording, result: Tensor
) -> tuple[TargetScores, Direction, Tensor]:
    """Scores, K' directions on an embedding of a graph that leads further back, and it.

    `result` is what the forward gave: scores, or the embeddings of texts.
    """
    if isinstance(tower, TextTower):
        assert call.similarity is not None
        scored = TargetScores.of(call.similarity.score(result.detach()), call, record)
        return (
            scored,
            _cosine_direction(call.similarity.bank, scored.columns, result.detach()),
            result,
        )
    scores = result
    scored, direction, projected = _embedding_direction(tower, call, record, scores)
    embedding = record.projected if projected else record.embedding
    assert embedding is not None
    return scored, direction, embedding[:, 0] if embedding.ndim == 3 else embedding


def _leads_through(scores: Tensor, projected: Tensor, embedding: Tensor) -> bool:
    """Whether the scores depend on the tower's embedding through its projection alone."""
    points = (projected, embedding)
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
        scores.sum(), points, retain_graph=True, allow_unused=True
    )
    inner, whole = gradients
    if inner is None or whole is None:
        return False
    through: Tensor | None = torch.autograd.grad(
        projected, embedding, inner, retain_graph=True, allow_unused=True
    )[0]
    return through is not None and bool(
        torch.allclose(through, whole, rtol=1e-3, atol=1e-6 * float(whole.abs().max()))
    )


def resnet_readout(tower: ResNetTower, call: Call) -> tuple[Recording, TargetScores, Direction]:
    """Run once: the last stage's features and K' directions on the embedding."""
    similarity = call.similarity
    with record_resnet(tower, then="embedding" if similarity is None else "stop") as record:
        scores = call.scores()
    if similarity is None:
        return record, *_embedding_direction(tower, call, record, scores)[:2]
    assert record.features is not None
    with torch.no_grad():
        embedding = tower.pool(record.features)
        scored = TargetScores.of(similarity.score(embedding), call, record)
        return record, scored, _cosine_direction(similarity.bank, scored.columns, embedding)
