"""One call of a method: the forward function with its arguments, its scores, and their gradients.

Captum's `target` picks the columns (K', B) of a score (B, K): one score for each map.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import grad

from ..checks import expect, show
from ..errors import CaptureError, TargetError
from ..models.library import has_no_foreign_hooks
from ..models.towers import Tower
from ..recording.graph import detached, keeps_graph
from ..recording.records import Recording
from ..similarity import ClipSimilarity, Similarity, TextSimilarity

Columns = Sequence[int] | Tensor | None
Indices = int | Sequence[Any] | Tensor | np.ndarray | None
_COSINES = (
    ClipSimilarity,
    TextSimilarity,
)  # their scores are known, those of a subclass may differ
TOGETHER = 1 << 23  # numbers of a batched backward, which bounds its memory
Select = Callable[[int, int], Tensor]  # (B, K) -> columns (K', B)


class Computed(NamedTuple):
    """The result of a method's formula.

    Attributes:
        record: the recording of the forward.
        values: maps of the K' targets, before `ClipAttribution._on_grid` brings them on the grid.
        scores: (B, K').
        rest: (B, K'), the part of the scores that an additive method's maps leave out.
    """

    record: Recording
    values: Tensor
    scores: Tensor
    rest: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Call:
    """A forward function, its arguments, and the columns that are asked for."""

    forward: Callable[..., Tensor]
    images: tuple[Tensor, ...]
    extra: tuple[Any, ...]
    select: Select
    tower: Tower
    method: str  # in messages
    copies: bool = False  # whether tokens that are read later are copied at once

    @property
    def readout(self) -> nn.Module | None:
        """The module that an embedding passes before a `Similarity` scores it."""
        return self.forward.readout if isinstance(self.forward, Similarity) else None

    @property
    def is_cosine(self) -> bool:
        """Whether the scores are cosines of what the adapter returns, by definition."""
        return type(self.forward) in _COSINES and has_no_foreign_hooks(self.forward)  # type: ignore[arg-type]

    def scores(self) -> Tensor:
        """Run the forward to its end: scores (B, K)."""
        # a preprocessing inside of the forward may normalize in place
        images = tuple(image.clone() for image in self.images)
        scores = self.forward(*images, *self.extra)
        fits = isinstance(scores, Tensor) and scores.ndim in (1, 2)
        expected = "a forward function that returns a score or K per image, (B,) or (B, K)"
        expect(fits, expected, scores, error=CaptureError)
        return scores[:, None] if scores.ndim == 1 else scores

    def of_two(self) -> "Call":
        """The same of two images, the least that shows whether images mix."""
        count = len(self.images[0])
        extra = [x[:2] if isinstance(x, Tensor) and len(x) == count else x for x in self.extra]
        images = tuple(image[:2] for image in self.images)
        if count == 1 and not extra and not isinstance(self.forward, Similarity):
            images = tuple(torch.cat([image, image.flip(-1)]) for image in images)
        return replace(self, images=images, extra=tuple(extra))

    def with_leaf(self) -> "Call":
        """The same with its images as the beginning of a graph."""
        first = self.images[0].detach().clone().requires_grad_()
        return replace(self, images=(first, *self.images[1:]))

    def run(self, recording: AbstractContextManager[Recording]) -> "Pass":
        """Run the forward to its end under a recording."""
        with recording as record:
            scores = self.scores()
        return self.as_pass(record, scores)

    def as_pass(self, record: Recording, scores: Tensor) -> "Pass":
        """The scores (B, K) of a recorded forward, and the columns that are asked for."""
        record.verify(self.method)
        expected = f"scores of the {record.batch} images that went through the tower"
        expect(len(scores) == record.batch, expected, scores, error=CaptureError)
        # a score on another device than the images is legal, as with a sharded model
        columns, rows = self.select(*scores.shape), None
        if self.is_cosine:
            alike = bool((columns == columns[:, :1]).all())
            embeddings: Tensor = self.forward.embeddings  # type: ignore[attr-defined]
            rows = embeddings[(columns[:, :1] if alike else columns).to(embeddings.device)]
        return Pass(record, scores, columns.to(scores.device), rows)


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward: its recording, scores (B, K) with a graph or without, and columns (K', B).

    A plain `Similarity` adds the unit `rows` (K', 1 or B, E) whose cosines they are.
    """

    record: Recording
    scores: Tensor
    columns: Tensor
    rows: Tensor | None = None

    @property
    def chosen(self) -> Tensor:
        """The scores that are asked for, (B, K'), without a graph unless it is kept."""
        return detached(self.scores).T.gather(0, self.columns).T.contiguous()

    def computed(self, values: Tensor, rest: Tensor | None = None) -> Computed:
        """A method's result: maps of the K' columns, and the rest (B, K') of an additive method."""
        return Computed(self.record, values, self.chosen, rest)

    def gradients(self, *leaves: Tensor, together: int = 1) -> Iterator[tuple[Tensor, ...]]:
        """The gradients (k, *leaf.shape) of some columns at a time with respect to the leaves."""
        return chunks(partial(self._known, leaves), self._one_hot(), together)

    def stacked_gradients(self, leaf: Tensor) -> Tensor:
        """The gradients of all columns with respect to one leaf, (K', *leaf.shape)."""
        return batched(partial(self._known, (leaf,)), self._one_hot(), leaf)

    def _known(self, leaves: Sequence[Tensor], rows: Tensor, **more: bool) -> tuple[Tensor, ...]:
        """The gradients of the scores, zero where a hook wiped what a leaf led to."""
        options: Any = {"retain_graph": True, "create_graph": keeps_graph(), **more}
        gradients: Sequence[Tensor | None] = [None] * len(leaves)
        if self.scores.requires_grad:
            gradients = grad(self.scores, leaves, rows, allow_unused=True, **options)
        elif not self.record.is_hooked:
            raise CaptureError(
                "No gradient leads from the scores back to the tower; the forward function must "
                "not use torch.no_grad(), .detach() or .item() on the way."
            )
        if any(gradient is None for gradient in gradients) and not self.record.is_hooked:
            raise CaptureError("The scores do not depend on what the tower computed.")
        # a batched backward has one more axis in front
        shape = rows.shape[: rows.ndim - self.scores.ndim]
        pairs = zip(gradients, leaves, strict=True)
        return tuple(leaf.new_zeros(*shape, *leaf.shape) if g is None else g for g, leaf in pairs)

    def mixed(self, *points: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of one mixture of the scores that are asked for, in which none cancels."""
        if not self.scores.requires_grad or not points:
            return (None,) * len(points)
        rows = self._one_hot()  # (K', B, K)
        mixture = torch.einsum("nbk,n->bk", rows, self.weights.to(rows))
        return grad(self.scores, points, mixture, retain_graph=True, allow_unused=True)

    @property
    def weights(self) -> Tensor:
        """Those of the scores in that mixture, (K',)."""
        count = torch.arange(len(self.columns), device=self.columns.device)
        return (1 + 0.618 * count) % 1 + 0.5

    def _one_hot(self) -> Tensor:
        shape = (len(self.columns), *self.scores.shape)
        ones = torch.zeros(shape, dtype=self.scores.dtype, device=self.scores.device)
        return ones.scatter_(2, self.columns[..., None], 1)


def together(numbers: int) -> int:
    """How many rows a batched backward takes at once, given the numbers that it holds of one."""
    return max(1, TOGETHER // max(1, numbers))


def chunks(
    gradients: Callable[..., tuple[Tensor, ...]], rows: Tensor, size: int
) -> Iterator[tuple[Tensor, ...]]:
    """The gradients (k, ...) of chunks of rows, in batched products where they can be."""
    for chunk in torch.split(rows, size):
        gradient = None
        if len(chunk) > 1:
            # a user's own code may hold operations that no batched backward passes
            with suppress(RuntimeError):
                gradient = gradients(chunk, is_grads_batched=True)
        if gradient is None:
            yield from (tuple(each[None] for each in gradients(row)) for row in chunk)
        else:
            yield gradient


def batched(gradients: Callable[..., tuple[Tensor, ...]], rows: Tensor, leaf: Tensor) -> Tensor:
    """The gradients (n, *leaf.shape) of n rows."""
    return torch.cat([gradient for gradient, *_ in chunks(gradients, rows, together(leaf.numel()))])


def one_column(target: Any, batch: int, count: int, names: Sequence[str] = ()) -> Tensor:
    """Captum's `target` -> (1, B), the score's column for each image."""
    if target is None:
        if count != 1:
            raise TargetError(
                f"the forward function returns {count} scores per image{_named(names)}; "
                "choose one with target=0, or take all with attribute_targets."
            )
        target = 0
    flat = _listed(target)
    if len(flat) == 1:
        flat *= batch
    several = "for several maps of an image call attribute_targets"
    expected = f"one target, or one for each of {batch} images"
    expect(len(flat) == batch, expected, flat, several, error=TargetError)
    return _checked(flat, count, names)[None]


def many_columns(targets: Columns, batch: int, count: int, names: Sequence[str] = ()) -> Tensor:
    """Indices, or None for all -> (K', B), the same column for every image."""
    flat = _listed(range(count) if targets is None else targets)
    if not flat:
        raise TargetError("targets is empty; leave it out to take all.")
    return _checked(flat, count, names)[:, None].expand(-1, batch)


def _listed(targets: Any) -> list[Any]:
    """One or several targets as a list; Captum's one-tuples are those of single images."""
    if isinstance(targets, (Tensor, np.ndarray)):
        targets = targets.reshape(-1).tolist()
    is_single = isinstance(targets, str) or not isinstance(targets, Iterable)
    several = [targets] if is_single else list(targets)
    return [t[0] if isinstance(t, (list, tuple)) and len(t) == 1 else t for t in several]


def _checked(flat: list[Any], count: int, names: Sequence[str]) -> Tensor:
    for index in flat:
        is_index = isinstance(index, Integral) and not isinstance(index, bool)  # NumPy's too
        expect(is_index, "a target of an index or one index per image", index, error=TargetError)
        if not -count <= int(index) < count:
            raise TargetError(
                f"target: {show(index)} is out of range; there are {count} scores per image"
                f"{_named(names)}."
            )
    return torch.tensor([int(index) for index in flat], device="cpu") % count


def _named(names: Sequence[str]) -> str:
    listed = ", ".join(repr(name) for name in names[:8])
    return f" ({listed}{', ...' if len(names) > 8 else ''})" if names else ""
