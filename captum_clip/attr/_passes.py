"""One forward through a tower: what each method needs of it, and the gradients for K targets.

Where a `ClipSimilarity` scores a CLS-pooled tower, the forward stops at the last attention, and one
token goes through the rest. Elsewhere the forward runs to its end. Either way the gradient is taken
at the output of the attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import CaptureError, UnsupportedModelError
from ..models.standard import standard
from ..models.towers import ResNetTower, ViTTower
from ..recording import Recording, Visit, record_resnet, record_vit
from ..similarity import ClipSimilarity
from . import _attention

Select = Callable[[int, int], Tensor]  # (B, K) -> columns (K', B)


@dataclass(frozen=True, eq=False)
class Call:
    """A forward function, its arguments, and the columns that are asked for."""

    forward: Callable[..., Tensor]
    images: tuple[Tensor, ...]
    extra: tuple[Any, ...]
    select: Select

    @cached_property
    def similarity(self) -> ClipSimilarity | None:
        """The forward function where what it does after the tower is known."""
        similarity = plain_similarity(self.forward)
        return similarity if similarity is not None and similarity.clip.standard else None

    def scores(self) -> Tensor:
        """Run the forward to its end: scores (B, K).

        Raises:
            CaptureError: the forward function returned something else.
        """
        images = self.images
        if self.similarity is None:  # which might change them
            images = tuple(image.clone() for image in images)
        scores = self.forward(*images, *self.extra)
        if not isinstance(scores, Tensor) or scores.ndim not in (1, 2):
            found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise CaptureError(
                "The forward function must return one score or K scores an image, a tensor (B,) "
                f"or (B, K); it returned {found}."
            )
        return scores[:, None] if scores.ndim == 1 else scores


def plain_similarity(forward: Callable[..., Tensor]) -> ClipSimilarity | None:
    """The forward function where it is a `ClipSimilarity` that nobody made into something else."""
    if isinstance(forward, ClipSimilarity) and standard(forward, (ClipSimilarity,)):
        return forward
    return None


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of all columns (B, K), with a graph or without, and the columns asked for (K', B)."""

    scores: Tensor
    columns: Tensor
    batched: bool = False  # whether one batched product gives all columns

    @classmethod
    def of(cls, scores: Tensor, call: Call, record: Recording) -> Scored:
        """Pick the columns.

        Raises:
            CaptureError: as many rows as images did not come out.
        """
        if len(scores) != record.batch:
            raise CaptureError(
                f"The forward function returned {len(scores)} rows of scores, but "
                f"{record.batch} images went through the tower."
            )
        columns = call.select(*scores.shape).to(scores.device)
        return cls(scores, columns, batched=call.similarity is not None)

    @property
    def chosen(self) -> Tensor:
        """The scores asked for, (B, K'), detached."""
        return self.scores.detach().T.gather(0, self.columns).T.contiguous()

    def gradients(self, *leaves: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """For each column the gradients of its score with respect to the leaves.

        Raises:
            CaptureError: the scores do not depend on the leaves.
        """
        if not self.scores.requires_grad:
            raise CaptureError(
                "No gradient leads from the scores back to the tower; the forward function must "
                "not use torch.no_grad(), .detach() or .item() on the way."
            )
        for column in self._one_hot():
            yield self._checked(
                torch.autograd.grad(
                    self.scores, leaves, column, retain_graph=True, allow_unused=True
                )
            )

    def stacked_gradients(self, leaf: Tensor) -> Tensor:
        """The gradients of all columns with respect to one leaf, (K', *leaf.shape)."""
        if not self.batched or len(self.columns) == 1:
            return torch.stack([gradient for (gradient,) in self.gradients(leaf)])
        return self._checked(
            torch.autograd.grad(self.scores, leaf, self._one_hot(), is_grads_batched=True)
        )[0]

    def _one_hot(self) -> Tensor:
        shape = (len(self.columns), *self.scores.shape)
        ones = torch.zeros(shape, dtype=self.scores.dtype, device=self.scores.device)
        return ones.scatter_(2, self.columns[..., None], 1)

    @staticmethod
    def _checked(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        found = tuple(gradient for gradient in gradients if gradient is not None)
        if len(found) != len(gradients):
            raise CaptureError("The scores do not depend on what the vision tower computed.")
        return found


@dataclass(frozen=True, eq=False)
class LastGradient:
    """The last attention and its gradient.

    Attributes:
        row: d y / d A_n[CLS], (K', B, H, s), where all other rows are exactly zero.
        attention: A_n[CLS], (B, H, s), beside `row`.
        output: d y / d Y_n, (K', B, s, D), where they are not zero.
    """

    record: Recording
    scored: Scored
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
    scored = Scored.of(scores, call, record)
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


def _tail(tower: ViTTower, call: Call, record: Recording, attended: Tensor) -> Scored:
    """The scores of a stopped forward, from the last attention's output for CLS, (B, D)."""
    assert call.similarity is not None
    assert record.residual is not None
    layer, residual = tower.layers[-1], record.residual[:, 0]
    embedding = tower.embed(layer.tail(residual, attended.to(residual.dtype)))
    return Scored.of(call.similarity.score(embedding), call, record)


@dataclass(frozen=True, eq=False)
class AllGradients:
    """What to differentiate in every layer from a first one on.

    `points` are the layers' mixed heads or outputs; where `row` says so the last one is the last
    layer's CLS row of attention itself.
    """

    record: Recording
    scored: Scored
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
    scored = Scored.of(scores, call, record)
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
) -> tuple[Recording, Scored]:
    """Run once without any graph and visit the tokens of some layers."""
    last = len(tower.layers) - 1
    with torch.no_grad():
        if not _stops(tower, call):
            with record_vit(tower, visit=visit) as record:
                scores = call.scores()
            return record, Scored.of(scores, call, record)
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


def resnet_gradient(tower: ResNetTower, call: Call) -> tuple[Recording, Scored, Tensor]:
    """Run once: the last stage's features, the scores, and d y / d shift (K', B, C)."""
    similarity = call.similarity
    with record_resnet(tower, stop=similarity is not None) as record:
        scores = call.scores()
    assert record.features is not None
    if similarity is None:
        assert record.shift is not None
        scored = Scored.of(scores, call, record)
        return record, scored, scored.stacked_gradients(record.shift)
    with torch.no_grad():
        embedding = tower.pool(record.features)
    scored = Scored.of(similarity.score(embedding.requires_grad_()), call, record)
    gradient = scored.stacked_gradients(embedding)  # (K', B, E)
    with torch.no_grad():
        return record, scored, tower.shift_gradient(record.features, gradient)


def _refuse_checkpointing(tower: ViTTower) -> None:
    if tower.checkpointing:
        raise UnsupportedModelError(
            "The vision tower checkpoints its activations, so its blocks run again in the "
            "backward; turn gradient checkpointing off to explain it."
        )
