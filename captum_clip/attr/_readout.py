"""What an embedding is read from, and the texts as directions on it, from one forward."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import CaptureError, UnsupportedModelError
from ..models.library import has_no_foreign_hooks
from ..models.steps import Direction, Step, run_steps
from ..models.text import TextTower
from ..models.towers import ResNetTower, Tower, ViTTower
from ..recording import Recording, Visit, record_resnet, record_vit
from ._attention import to_float32
from ._call import Call, TargetScores
from ._passes import last_heads, readout_token, stops


class ReadsMoreError(CaptureError):
    """The scores depend on more than the embedding."""


@dataclass(frozen=True, eq=False)
class Readout:
    """An embedding e, the scores that are made of it, and what e itself is read from.

    Attributes:
        embedding: (B, E), in the graph where there is one.
        direction: y = d . e for K' texts, the length of the embedding held as it is. It is the
            direction's scale, so its rows are the texts' own where y is a cosine.
        gradient: of the scores at e, (K', B, E).
        projected: whether e comes out of the tower's whole head.
        steps: of the tower's head, from what is read to e.
        token: (B, D) what `ViTTower.embed` takes; with a mean of patches what that is the mean of,
            (B, N, D); a ResNet's features (B, C, h, w).
        heads: (B, D) the last attention's outputs of heads for what is read, where it stands there.
    """

    record: Recording
    scored: TargetScores
    embedding: Tensor
    direction: Direction
    gradient: Tensor
    projected: bool = True
    steps: tuple[Step, ...] = ()
    token: Tensor = field(default_factory=lambda: torch.empty(0))
    heads: Tensor | None = None

    def head(self, tower: ViTTower) -> tuple[Step, ...]:
        """The steps of a tower's head up to the embedding that the scores are made of."""
        whole = self.projected or tower.projection_module is None
        return tower.head if whole else tower.head[:-1]


def readout(tower: Tower, call: Call, visit: tuple[range, Visit] | None = None) -> Readout:
    """Run once, without a graph up to the embedding, and visit the tokens of some layers."""
    if isinstance(tower, ViTTower):
        _ = tower.head  # which a family may not know: said before any work
    with _recorded(tower, call, visit) as record:
        scores = call.scores()
    heads = None
    with torch.no_grad():
        if isinstance(tower, ViTTower):
            token, heads = _read(tower, record)
        else:
            token = record.features
        if call.similarity is not None:
            found = _of_cosine(call, record, _embedded(tower, record, token))
    if call.similarity is None:
        found = embedded_scores(tower, call, record, scores)
    steps = found.head(tower) if isinstance(tower, ViTTower) else ()
    return replace(found, steps=steps, token=to_float32(token), heads=heads)


def _recorded(
    tower: Tower, call: Call, visit: tuple[range, Visit] | None
) -> AbstractContextManager[Recording]:
    own = call.similarity is None
    if isinstance(tower, ResNetTower):
        return record_resnet(tower, then="embedding" if own else "stop")
    assert isinstance(tower, ViTTower)
    last = len(tower.attentions) - 1
    end, nothing = range(last, last + 1), range(0)
    if own:
        kept, outputs = (end, nothing) if tower.pooling == "attention" else (nothing, end)
        return record_vit(tower, visit=visit, keep=kept, leaf="embedding", outputs=outputs)
    if stops(tower, call):
        return record_vit(tower, visit=visit, stop=last)
    return record_vit(tower, visit=visit, outputs=end)


def _read(tower: ViTTower, record: Recording) -> tuple[Tensor, Tensor | None]:
    """The token and the heads of a `Readout`."""
    if record.stopped or tower.pooling == "attention":
        _, heads, _ = last_heads(tower, record)
        return readout_token(tower, record, heads), heads
    final = record.outputs[len(tower.layers) - 1].detach()
    return (final[:, tower.prefix :] if tower.pooling == "mean" else final[:, 0]), None


def _embedded(tower: Tower, record: Recording, token: Tensor) -> Tensor:
    """The embedding (B, E) of what is read."""
    if isinstance(tower, ResNetTower):
        return tower.pool(token)
    assert isinstance(tower, ViTTower)
    if tower.pooling != "mean":
        return tower.embed(token)
    before = tower.steps_before_mean
    mean = record.pooled.mean(run_steps(tower.head[:before], token), slice(None))[:, 0]
    return run_steps(tower.head[before:], mean)


def _of_cosine(call: Call, record: Recording, embedding: Tensor) -> Readout:
    """The rows of the embeddings that are asked for, over the embedding's length."""
    assert call.similarity is not None
    scored = TargetScores.of(call.similarity.score(embedding.detach()), call, record)
    columns, e = scored.columns, to_float32(embedding.detach())
    same = bool((columns == columns[:, :1]).all())  # every image is asked about the same rows
    rows = call.similarity.embeddings.to(e.dtype)[columns[:, :1] if same else columns]
    length = e.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    gradient = (rows - scored.chosen.T[..., None] * (e / length)) / length
    direction = Direction.of(rows, length[:, 0].reciprocal())
    return Readout(record, scored, embedding, direction, gradient)


def embedded_scores(tower: Tower, call: Call, record: Recording, result: Tensor) -> Readout:
    r"""What a forward gave, scores or the embeddings of texts, in terms of the embedding e.

    The directions are :math:`g + (y - g \cdot e) e / |e|^2`, g the gradient at e: so d . e = y
    whatever the scores are, and d = t / |e| where y is the cosine of e and t.
    """
    if isinstance(tower, TextTower):
        return _of_cosine(call, record, result)
    scored = TargetScores.of(result, call, record)
    if scored.depend_on(record.other_outputs):
        raise ReadsMoreError(
            "The scores depend on more of what the vision tower returned than the image embedding, "
            "such as hidden states, so they cannot be taken apart; take a method with gradients, "
            "such as AllGradAttention, or ClipGradCam on a ResNet."
        )
    point, projected = record.embedding, False
    if record.projected is not None and record.projected.requires_grad:
        projected = _leads_through(result, record.projected, record.embedding)
        point = record.projected if projected else point
    gradient = to_float32(scored.stacked_gradients(point))  # (K', B, E)
    if point.ndim == 3:  # FLAVA projects all tokens, and the first is the image's
        gradient, point = gradient[:, :, 0], point[:, 0]
    e = to_float32(point.detach())
    along = scored.chosen.T.to(gradient.dtype) - (gradient * e).sum(-1)
    length = e.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    rows = gradient * length + along[..., None] * (e / length)
    direction = Direction.of(rows, length[:, 0].reciprocal())
    return Readout(record, scored, point, direction, gradient, projected)


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


def resnet_gradient(
    tower: ResNetTower, call: Call, *, detached: bool = False
) -> tuple[Recording, TargetScores, Tensor]:
    """Run once: the last stage's features, the scores, and d y / d shift (K', B, C)."""
    known = call.runs_library_code(tower) and has_no_foreign_hooks(tower.stage)
    if known or call.similarity is not None:
        try:
            found = readout(tower, call)
            with torch.no_grad():
                shift = tower.shift_gradient(found.token, found.gradient, detached=detached)
            return found.record, found.scored, shift
        except ReadsMoreError:
            pass  # the gradient does not lead through the pool alone
    if detached:
        raise UnsupportedModelError(
            "ClipGradCam: attention='detached' needs a score of the pool's output alone, by the "
            "library's own code and without foreign hooks, so that the pool's weights are known; "
            "leave it out."
        )
    record, scored = call.run(record_resnet(tower, then="shift"))
    return record, scored, scored.stacked_gradients(record.shift)
