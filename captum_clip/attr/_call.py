"""One call of a method: the forward, its scores and gradients, and the embedding they are made of.

Captum's `target` picks the columns (K', B) of a score (B, K): one score for each map.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import grad

from ..checks import expect, show
from ..errors import CaptureError, TargetError, UnsupportedModelError
from ..maps import to_float32
from ..models.library import checkpoints, has_no_foreign_hooks
from ..models.rounding import agree, difference, is_rounding
from ..models.steps import Direction, Step, run_steps
from ..models.towers import ResNetTower, Tower, TransformerTower
from ..recording.graph import detached, keeps_graph, no_graph, without_whole_graph
from ..recording.laws import verify
from ..recording.observe import Embedding, Features, Kernels, Observer, Outputs, Probes, observe
from ..recording.records import NOTHING, Recording
from ..targets.similarity import ClipSimilarity, Similarity, TextSimilarity

Columns = Sequence[int] | Tensor | None
Indices = int | Sequence[Any] | Tensor | np.ndarray | None
# their scores are known, those of a subclass may differ
_COSINES = (ClipSimilarity, TextSimilarity)
TOGETHER = 1 << 23  # numbers of a batched backward, which bounds its memory
Select = Callable[[int, int], Tensor]  # (B, K) -> columns (K', B)


class ReadsMoreError(CaptureError):
    """The scores depend on more than the embedding, or the pooled token."""


class ForwardFailedError(Exception):
    """A forward function raised torch's own error, its cause, while it was recorded."""


class Computed(NamedTuple):
    """The result of a method's formula.

    Attributes:
        record: the recording of the forward.
        values: maps of the K' targets, before `ClipAttribution._on_grid` brings them on the grid.
        scores: (B, K').
        rest: (B, K'), the part of the scores that an additive method's maps leave out.
        parts: of the pooled token, (B, m, D), and the linear map that made vectors of them.
    """

    record: Recording
    values: Tensor
    scores: Tensor
    rest: Tensor | None = None
    parts: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None


@dataclass(frozen=True, eq=False)
class Call:
    """A forward function, its arguments, and the columns to explain."""

    forward: Callable[..., Tensor]
    images: tuple[Tensor, ...]
    extra: tuple[Any, ...]
    select: Select
    tower: Tower
    method: str  # in messages
    copies: bool = False  # whether tokens that are read later are copied at once
    # what earlier calls showed of the scores' constants, by the number of scores
    constants: dict[int, "Constants"] = field(default_factory=dict)

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
        scores = self.forward(*(image.clone() for image in self.images), *self.extra)
        fits = isinstance(scores, Tensor) and scores.ndim in (1, 2)
        expected = "a forward function that returns a score or K per image, (B,) or (B, K)"
        expect(fits, expected, scores, error=CaptureError)
        return scores[:, None] if scores.ndim == 1 else scores

    def of_two(self) -> "Call":
        """The call with two images, the fewest that can show whether images mix."""
        count = len(self.images[0])
        extra = [x[:2] if torch.is_tensor(x) and x.shape[:1] == (count,) else x for x in self.extra]
        images = tuple(image[:2] for image in self.images)
        if count == 1 and not extra and not isinstance(self.forward, Similarity):
            images = tuple(torch.cat([image, image.flip(-1)]) for image in images)
        return replace(self, images=images, extra=tuple(extra))

    def run(self, recording: AbstractContextManager[Recording]) -> "Pass":
        """Run the forward to its end under a recording."""
        with recording as record:
            try:
                scores = self.scores()
            except RuntimeError as error:
                # Subclasses have their own meaning, as ours and an exhausted memory have.
                if type(error) is not RuntimeError:
                    raise
                raise ForwardFailedError from error
        verify(record, self.method)
        expected = f"scores of the {record.batch} images that went through the tower"
        expect(len(scores) == record.batch, expected, scores, error=CaptureError)
        # a score on another device than the images is legal, as with a sharded model
        columns, rows = self.select(*scores.shape), None
        if self.is_cosine:
            alike = bool((columns == columns[:, :1]).all())
            embeddings: Tensor = self.forward.embeddings  # type: ignore[attr-defined]
            rows = embeddings[(columns[:, :1] if alike else columns).to(embeddings.device)]
        return Pass(record, scores, columns.to(scores.device), rows, self)


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward: its recording, scores (B, K) with a graph or without, and columns (K', B).

    A plain `Similarity` adds the unit `rows` (K', 1 or B, E) whose cosines they are.
    """

    record: Recording
    scores: Tensor
    columns: Tensor
    rows: Tensor | None = None
    call: Call | None = None  # of a forward that can be run once more

    @property
    def chosen(self) -> Tensor:
        """The scores of the columns, (B, K'), without a graph unless it is kept."""
        return detached(self.scores).T.gather(0, self.columns).T.contiguous()

    def computed(self, values: Tensor, rest: Tensor | None = None) -> Computed:
        """A method's result: maps of the K' columns, and the rest (B, K') of an additive method."""
        return Computed(self.record, values, self.chosen, rest)

    def gradients(self, *leaves: Tensor, together: int = 1) -> Iterator[tuple[Tensor, ...]]:
        """The gradients `(k, *leaf.shape)` of some columns at a time with respect to the leaves."""
        return chunks(partial(self._known, leaves), self._one_hot(), together)

    def stacked_gradients(self, leaf: Tensor) -> Tensor:
        """The gradients of all columns with respect to one leaf, `(K', *leaf.shape)`."""
        return batched(partial(self._known, (leaf,)), self._one_hot(), leaf)

    def _known(self, leaves: Sequence[Tensor], rows: Tensor, **more: bool) -> tuple[Tensor, ...]:
        """Gradients of the scores at some leaves.

        Zero for a leaf that none reaches, if a foreign hook may have cut it off; else an error.
        """
        options: Any = {"retain_graph": True, "create_graph": keeps_graph(), **more}
        gradients: Sequence[Tensor | None] = [None] * len(leaves)
        self.refuse_no_graph()
        if self.scores.requires_grad:
            gradients = grad(self.scores, leaves, rows, allow_unused=True, **options)
        if any(gradient is None for gradient in gradients) and not self.record.is_hooked:
            raise CaptureError("The scores do not depend on what the tower computed.")
        # a batched backward has one more axis in front
        shape = rows.shape[: rows.ndim - self.scores.ndim]
        pairs = zip(gradients, leaves, strict=True)
        return tuple(leaf.new_zeros(*shape, *leaf.shape) if g is None else g for g, leaf in pairs)

    def refuse_no_graph(self) -> None:
        """Raise CaptureError where the scores have no graph, unless a foreign hook cut it off."""
        if not (self.scores.requires_grad or self.record.is_hooked):
            raise CaptureError(
                "No gradient leads from the scores back to the tower; the forward function must "
                "not use torch.no_grad(), .detach() or .item() on the way."
            )

    def mixed(self, *points: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of one weighted sum of the columns' scores, so that all cost one backward."""
        if not self.scores.requires_grad or not points:
            return (None,) * len(points)
        rows = self._one_hot()  # (K', B, K)
        weights = (1 + 0.618 * torch.arange(len(rows), device=rows.device)) % 1 + 0.5
        mixture = torch.einsum("nbk,n->bk", rows, weights.to(rows))
        return grad(self.scores, points, mixture, retain_graph=True, allow_unused=True)

    def _one_hot(self) -> Tensor:
        shape = (len(self.columns), *self.scores.shape)
        ones = torch.zeros(shape, dtype=self.scores.dtype, device=self.scores.device)
        return ones.scatter_(2, self.columns[..., None], 1)

    @property
    def scored(self) -> Tensor | None:
        """The tower's own embedding where the scores are cosines of it, or None."""
        record = self.record
        for candidate in (record.projected, record.embedding):
            if self.rows is None or candidate is None:
                continue
            # FLAVA projects all tokens
            first = candidate[:, 0] if candidate.ndim == 3 else candidate
            if first.shape == record.scored.shape and record.scored.equal(to_float32(first)):
                return candidate
        return None


def detach_inference(inputs: Any) -> Any:
    """The inputs, copied where inference mode made them, since those can enter no graph."""
    if isinstance(inputs, tuple):
        return tuple(detach_inference(each) for each in inputs)
    return inputs.clone() if isinstance(inputs, Tensor) and inputs.is_inference() else inputs


def further_arguments(extra: Any) -> tuple[Any, ...]:
    """Captum's `additional_forward_args`: none, one, or a tuple of them."""
    return () if extra is None else extra if isinstance(extra, tuple) else (extra,)


def differentiate(maps: Tensor, leaves: list[Tensor]) -> None:
    """Raise UnsupportedModelError where torch has no derivative of the maps."""
    try:
        grad(maps.sum(), leaves, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"torch cannot differentiate these maps ({error}); use direct, or run this call and "
            "the loss under torch.nn.attention.sdpa_kernel(SDPBackend.MATH)."
        ) from error


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
    if target is None and count != 1:
        raise TargetError(
            f"the forward function returns {count} scores per image{_names_hint(names)}; "
            "choose one with target=0, or take all with attribute_targets."
        )
    flat = _as_indices(0 if target is None else target)
    flat = flat * batch if len(flat) == 1 else flat
    several = "for several maps of an image call attribute_targets"
    expected = f"one target, or one for each of {batch} images"
    expect(len(flat) == batch, expected, flat, several, error=TargetError)
    return _checked_columns(flat, count, names)[None]


def many_columns(targets: Columns, batch: int, count: int, names: Sequence[str] = ()) -> Tensor:
    """Indices, or None for all -> (K', B), the same column for every image."""
    flat = _as_indices(range(count) if targets is None else targets)
    if not flat:
        raise TargetError("targets is empty; leave it out to take all.")
    return _checked_columns(flat, count, names)[:, None].expand(-1, batch)


def _as_indices(targets: Any) -> list[Any]:
    """One or several targets as a list; Captum's one-tuples are those of single images."""
    if isinstance(targets, (Tensor, np.ndarray)):
        targets = targets.reshape(-1).tolist()
    is_single = isinstance(targets, str) or not isinstance(targets, Iterable)
    several = [targets] if is_single else list(targets)
    return [t[0] if isinstance(t, (list, tuple)) and len(t) == 1 else t for t in several]


def _checked_columns(flat: list[Any], count: int, names: Sequence[str]) -> Tensor:
    for index in flat:
        is_index = isinstance(index, Integral) and not isinstance(index, bool)  # NumPy's too
        expect(is_index, "a target of an index or one index per image", index, error=TargetError)
        if not -count <= int(index) < count:
            raise TargetError(
                f"target: {show(index)} is out of range; there are {count} scores per image"
                f"{_names_hint(names)}."
            )
    return torch.tensor([int(index) for index in flat], device="cpu") % count


def _names_hint(names: Sequence[str]) -> str:
    listed = ", ".join(repr(name) for name in names[:8])
    return f" ({listed}{', ...' if len(names) > 8 else ''})" if names else ""


def observed(tower: Tower, call: Call, *observers: Observer, leaf: bool = False) -> Pass:
    """Run once under some observers; with `leaf` the graph begins at the embedding.

    Scores that are not the cosines of the embedding are then seen to read nothing below it.
    """
    recording = partial(observe, tower, *observers, Embedding(call.readout, leaf))
    if not leaf:
        return call.run(recording())
    if call.is_cosine and (run := call.run(recording())).scored is not None:
        return run
    return replace(call.run(recording(Probes(range(len(tower.layers))))), rows=None)


def without_gradient(tower: TransformerTower, call: Call, kernels: Kernels) -> Pass:
    """Run once without any graph and read some layers."""
    with no_graph():
        return observed(tower, call, kernels)


def refuse_checkpointing(tower: Tower) -> None:
    """Raise UnsupportedModelError if blocks run again in the backward, where no hook sees them."""
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
        direction: y = d . e + remainder for K' texts, with the length of the embedding as a
            constant. It is the direction's scale, so its rows are the texts' own where y is a
            cosine.
        gradient: of the scores at e, (K', B, E).
        projected: whether e comes out of the tower's whole head.
        remainder: (B, K'), what the embedding does not add to the scores, such as a bias; None
            for cosines, which have none.
        token: what is pooled, (B, D); with a mean of patches or features these, (B, N, D).
        dtype: of the tower.
    """

    run: Pass
    embedding: Tensor
    direction: Direction
    gradient: Tensor
    projected: bool = True
    remainder: Tensor | None = None
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
    return with_token(tower, embedded_scores(tower, observed(tower, call, *observers, leaf=True)))


def pooled_tokens(tower: Tower, record: Recording) -> Tensor:
    """The `token` of a `PooledEmbedding`, in the tower's own precision."""
    if tower.pooling == "attention":
        return record.pool
    if not isinstance(tower, TransformerTower):
        return detached(record.features).flatten(2).transpose(1, 2)
    final = detached(record.outputs[len(tower.layers) - 1])
    return final[:, tower.prefix :] if tower.pooling == "mean" else record.pooled.read(final)


def with_token(tower: Tower, embedded: PooledEmbedding) -> PooledEmbedding:
    """Add what is pooled, and compare what the head makes of it with the embedding."""
    record, returned = embedded.run.record, embedded.embedding.detach()
    token = pooled_tokens(tower, record)
    with torch.no_grad():
        again, steps = token, embedded.head(tower)
        if tower.pooling == "mean":
            before, steps = steps[: tower.steps_before_mean], steps[tower.steps_before_mean :]
            again = record.pooled.mean(run_steps(before, token), slice(None))[:, 0]
        again = run_steps(steps, again)
        if again.shape != returned.shape:
            again = torch.full_like(returned, torch.nan)
        # of the tower's precision, since it may have been cast
        record.compare("the embedding", to_float32(again), returned.to(token.dtype))
    return replace(embedded, token=to_float32(token), dtype=token.dtype)


def embedded_scores(
    tower: Tower, run: Pass, below: Tensor | None = None, *, directed: bool = True
) -> PooledEmbedding:
    r"""A forward's scores in terms of the embedding e, through which alone they read the tower.

    The directions d of a cosine are the texts over the length of e. For any other score they are
    :math:`g + (y - b - g \cdot e) e / |e|^2`, g its gradient at e and b its constant, so that
    :math:`d \cdot e + b = y`. A score that is not odd in e but for a constant, such as that of an
    MLP, has :math:`d = g`. It is seen that the score depends through e alone on `below`, by
    default on what the tower returned.

    Args:
        tower: the tower.
        run: the forward.
        below: where the graph begins.
        directed: whether directions are needed, and not the gradient alone.
    """
    record = run.record
    if (scored := run.scored) is not None:
        assert run.rows is not None
        e = detached(record.scored)
        scale = e.norm(dim=-1).clamp(min=1e-12).reciprocal()
        direction = Direction.of(run.rows.to(e.dtype), scale)
        cosines, size = direction.dot(e).T, run.chosen.norm(dim=1, keepdim=True).clamp(min=1)
        record.compare("the score", cosines, run.chosen.to(cosines.dtype), size)
        # what a cosine feels of its direction is not along e
        along = cosines.T[..., None] * (e * scale[:, None])
        gradient = (direction.rows - along) * scale[:, None]
        return PooledEmbedding(run, record.scored, direction, gradient, scored is record.projected)
    embedding = _scored_point(run, record.embedding if below is None else below)
    if embedding is None:
        run.refuse_no_graph()
        raise ReadsMoreError(
            f"The scores depend on more than the embedding that the {tower.noun} returned, such as "
            "hidden states, so they cannot be taken apart. Use a method with gradients, such as "
            "all-grad, or grad-cam on a convolutional tower."
        )
    projected = embedding is record.projected
    gradient = to_float32(run.stacked_gradients(embedding))  # (K', B, E)
    first, gradient = _first_token(embedding), _first_token(gradient, embedding.ndim)
    length = to_float32(detached(first)).norm(dim=-1, keepdim=True).clamp(min=1e-12)
    if not directed:
        direction = Direction.of(gradient, torch.ones_like(length[:, 0]))
        return PooledEmbedding(run, first, direction, gradient, projected)
    rows, remainder = _directions(run, embedding, gradient, projected)
    # One direction for all images, as for texts, makes the products that follow one matrix.
    mean = rows.mean(1, keepdim=True)
    # Rows that are equal here may have other derivatives.
    if not keeps_graph():
        bound = 32 * torch.finfo(rows.dtype).eps
        if bool(is_rounding(difference(rows, mean, dim=-1), mean.norm(dim=-1), bound).all()):
            rows = mean
    direction = Direction.of(rows, length[:, 0].reciprocal())
    return PooledEmbedding(run, first, direction, gradient, projected, remainder)


def _first_token(embedding: Tensor, ndim: int | None = None) -> Tensor:
    """An embedding (..., B, E), the first token of one with all tokens, as FLAVA projects them."""
    return embedding[..., 0, :] if (ndim or embedding.ndim) == 3 else embedding


@dataclass(frozen=True)
class Constants:
    """What a forward function's K scores have beside what the embedding makes, from one call.

    Numbers and no tensors, since a method keeps them between calls.

    Attributes:
        matter: whether directions depend on them, as those of a cosine do.
        values: the K constants, the same for all images; NaN where they are not known.
        lengths: of the K directions, which change if a constant does; NaN where not known.
    """

    matter: bool
    values: tuple[float, ...] = ()
    lengths: tuple[float, ...] = ()

    def of_columns(self, columns: Tensor, like: Tensor) -> Tensor:
        """The constants of columns (K', B)."""
        return like.new_tensor(self.values)[columns]

    def fit(self, columns: Tensor, rows: Tensor, bound: float) -> bool:
        """Whether directions (K', B, E) of columns (K', B) have the lengths that they had."""
        lengths = rows.new_tensor(self.lengths)[columns]
        off = (rows.norm(dim=-1) - lengths).abs()
        return bool(is_rounding(off, lengths, bound).all())

    def with_lengths(self, columns: Tensor, rows: Tensor, bound: float) -> "Constants":
        """The same with the lengths of directions (K', B, E), where all images have one length."""
        lengths = rows.norm(dim=-1)  # (K', B)
        alike = is_rounding((lengths - lengths[:, :1]).abs(), lengths[:, :1], bound)
        lengths = torch.where(alike.all(1, keepdim=True), lengths, torch.nan)
        known = lengths.new_full((len(self.values),), torch.nan)
        known = known.scatter(0, columns.flatten(), lengths.flatten())
        return replace(self, lengths=tuple(known.tolist()))


def _directions(
    run: Pass, embedding: Tensor, gradient: Tensor, projected: bool
) -> tuple[Tensor, Tensor]:
    r"""Directions (K', B, E) on the unit embedding, and what is left of the scores (B, K').

    The part of a score along the embedding, which a cosine's gradient lacks, is made of its value,
    and so its constant must be known: :math:`b = (f(e) + f(-e)) / 2`, since cosines are odd in the
    embedding but for it. That takes another forward, so what it showed is kept: with a constant of
    another size, directions would have another length.
    """
    e = to_float32(detached(_first_token(embedding)))
    length = e.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    scores = run.chosen.T.to(gradient.dtype)  # (K', B)
    linear = (gradient * e).sum(-1)  # (K', B)
    bound = run.record.rounding(embedding)

    def directions(constants: Tensor) -> Tensor:
        along = (scores - constants - linear)[..., None]
        rows: Tensor = gradient * length + along * (e / length)
        return rows

    memory, count = {} if run.call is None else run.call.constants, run.scores.shape[1]
    known = memory.get(count)
    # The derivative of a map with respect to a constant is zero only if f(-e) is in the graph.
    if known is not None and known.matter and not keeps_graph():
        constants = known.of_columns(run.columns, gradient)
        rows = directions(constants)
        if known.fit(run.columns, rows, bound):
            return rows, constants.T
    if known is None or known.matter:
        known, constants = _turned_round(run, embedding, gradient, projected)
        if known.matter:
            known = known.with_lengths(run.columns, directions(constants).detach(), bound)
        memory[count] = known
    if not known.matter:
        return gradient * length, (scores - linear).T
    return directions(constants), constants.T


def _turned_round(
    run: Pass, embedding: Tensor, gradient: Tensor, projected: bool
) -> tuple[Constants, Tensor]:
    """The constants of all scores, and those of the columns (K', B), from a forward with -e.

    They do not matter for scores that are linear in e, whose direction is the gradient, and for
    scores that are not odd but for a constant, which have no constant.
    """
    scores, bound = detached(run.scores), run.record.rounding(embedding)
    gradient_alone = Constants(False), torch.zeros_like(gradient[..., 0])
    if run.call is None:
        return gradient_alone
    turned = Embedding(run.call.readout, other=-embedding, projected=projected)
    try:
        with without_whole_graph():
            other = run.call.run(observe(run.call.tower, turned))
        point = other.record.projected if projected else other.record.embedding
        assert point is not None
        slope = to_float32(other.stacked_gradients(point))
    # The user's code need not take an embedding that no image has.
    except Exception:
        return gradient_alone
    slope = _first_token(slope, embedding.ndim)
    turned_scores = detached(other.scores)
    constants, odd = (scores + turned_scores) / 2, (scores - turned_scores) / 2  # (B, K)
    # The gradient of an odd function is even.
    is_odd = agree(slope, gradient, bound=bound, dim=-1)
    if not bool(is_odd.all() & constants.isfinite().all()):
        return gradient_alone
    chosen = [each.T.gather(0, run.columns).to(gradient.dtype) for each in (constants, odd)]
    linear = (gradient * to_float32(detached(_first_token(embedding)))).sum(-1)
    off = (chosen[1] - linear).abs()
    if bool(is_rounding(off, chosen[1].abs(), bound).all()):
        return gradient_alone
    size = scores.abs() + turned_scores.abs()
    alike = is_rounding((constants - constants[:1]).abs(), size, bound).all(0)
    values = torch.where(alike, constants.mean(0), torch.nan)
    return Constants(True, tuple(values.tolist())), chosen[0]


def _scored_point(run: Pass, below: Tensor) -> Tensor | None:
    """The embedding through which alone the scores depend on what is below; None without one."""
    candidates = run.record.projected, run.record.embedding
    points = [each for each in candidates if each is not None and each.requires_grad]
    probes = [] if run.record.graph.probe is None else [run.record.graph.probe]
    # one mixture of all targets, in which nothing cancels, so that the law costs one backward
    whole, *inner = run.mixed(below, *points, *probes)
    if whole is None or any(each is not None and bool(each.any()) for each in inner[len(points) :]):
        return None
    for embedding, gradient in zip(points, inner, strict=False):
        if _leads_through(run, embedding, gradient, whole, below):
            return embedding
    return None


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
    is_all = agree(through, whole, bound=run.record.rounding(embedding))
    # Where the gradient overflows nothing can be told, and the map shows it.
    return bool(is_all) or not whole.isfinite().all()
