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
"""The `targets` of `attribute_targets`: indices of scores, or None for all."""

Indices = int | Sequence[Any] | Tensor | np.ndarray | None
"""The `target` of `attribute`, as Captum has it."""

Select = Callable[[int, int], Tensor]
"""From the shape (B, K) of the scores to the columns (K', B) that are explained."""

# The scores of these classes are cosines. A subclass may compute something else.
_COSINES = (ClipSimilarity, TextSimilarity)
# A batched backward holds at most so many numbers, which bounds its memory.
_NUMBERS_AT_ONCE = 1 << 23


class ReadsMoreError(CaptureError):
    """The scores depend on more than the embedding, or the pooled token."""


class Computed(NamedTuple):
    """The result of a method's formula.

    Attributes:
        record: the recording of the forward.
        values: maps of the K' targets, before `ClipAttribution._on_grid` brings them on the grid.
        scores: (B, K').
        rest: (B, K'), the part of the scores that an additive method's maps leave out.
        parts: the parts (B, m, D) of the pooled token, and the linear map from them to vectors.
    """

    record: Recording
    values: Tensor
    scores: Tensor
    rest: Tensor | None = None
    parts: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None


@dataclass(frozen=True, eq=False)
class Call:
    """A forward function, its arguments, and the columns to explain.

    Attributes:
        forward: the forward function.
        images: its first arguments.
        extra: its further arguments.
        select: chooses the columns, given the shape of the scores.
        tower: the tower that it runs.
        method: the name of the method in messages.
        copies: whether tokens that are read later are copied at once, since the model changes
            them in place.
        constants: what earlier calls showed of the constant b of each score, the part to which the
            embedding adds nothing, by the number of scores.
    """

    forward: Callable[..., Tensor]
    images: tuple[Tensor, ...]
    extra: tuple[Any, ...]
    select: Select
    tower: Tower
    method: str
    copies: bool = False
    constants: dict[int, "Constants"] = field(default_factory=dict)

    @property
    def readout(self) -> nn.Module | None:
        """The module that an embedding passes before a `Similarity` scores it."""
        if isinstance(self.forward, Similarity):
            return self.forward.readout
        return None

    @property
    def is_cosine(self) -> bool:
        """Whether the scores are cosines of what the adapter returns, by definition."""
        return type(self.forward) in _COSINES and has_no_foreign_hooks(self.forward)  # type: ignore[arg-type]

    def scores(self) -> Tensor:
        """Run the forward to its end: scores (B, K)."""
        # The forward function may preprocess the images in place.
        images = [image.clone() for image in self.images]
        scores = self.forward(*images, *self.extra)
        fits = isinstance(scores, Tensor) and scores.ndim in (1, 2)
        expected = "a forward function that returns a score or K per image, (B,) or (B, K)"
        expect(fits, expected, scores, error=CaptureError)
        return scores[:, None] if scores.ndim == 1 else scores

    def of_two(self) -> "Call":
        """The call with two images, the fewest that can show whether images mix."""
        batch = len(self.images[0])
        images = tuple(image[:2] for image in self.images)
        extra = []
        for argument in self.extra:
            is_batch = torch.is_tensor(argument) and argument.shape[:1] == (batch,)
            extra.append(argument[:2] if is_batch else argument)
        if batch == 1 and not extra and not isinstance(self.forward, Similarity):
            # A single image is joined by its mirror image. Further arguments, which may belong to
            # the image, could not be doubled like this.
            images = tuple(torch.cat([image, image.flip(-1)]) for image in images)
        return replace(self, images=images, extra=tuple(extra))

    def run(self, recording: AbstractContextManager[Recording]) -> "Pass":
        """Run the forward to its end under a recording."""
        with recording as record:
            scores = self.scores()
        verify(record, self.method)
        expected = f"scores of the {record.batch} images that went through the tower"
        expect(len(scores) == record.batch, expected, scores, error=CaptureError)
        columns = self.select(*scores.shape)
        rows = self._target_rows(columns) if self.is_cosine else None
        # The scores of a sharded model may be on another device than the images.
        return Pass(record, scores, columns.to(scores.device), rows, self)

    def _target_rows(self, columns: Tensor) -> Tensor:
        """The unit embeddings of columns (K', B): (K', B, E), or (K', 1, E) for shared ones."""
        embeddings: Tensor = self.forward.embeddings  # type: ignore[attr-defined]
        of_first_image = columns[:, :1]
        if bool((columns == of_first_image).all()):
            columns = of_first_image
        return embeddings[columns.to(embeddings.device)]


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward.

    Attributes:
        record: its recording.
        scores: (B, K), with a graph or without.
        columns: (K', B), the scores that are explained.
        rows: (K', 1 or B, E), the unit embeddings of the targets, where the scores are plain
            cosines with them; None for other scores.
        call: the call, if it can be run once more.
    """

    record: Recording
    scores: Tensor
    columns: Tensor
    rows: Tensor | None = None
    call: Call | None = None

    @property
    def chosen(self) -> Tensor:
        """The scores of the columns, (B, K'), without a graph unless it is kept."""
        by_column = detached(self.scores).T  # (K, B)
        return by_column.gather(0, self.columns).T.contiguous()

    def computed(self, values: Tensor, rest: Tensor | None = None) -> Computed:
        """A method's result: maps of the K' columns, and the rest (B, K') of an additive method."""
        return Computed(self.record, values, self.chosen, rest)

    def gradients(self, *leaves: Tensor, together: int = 1) -> Iterator[tuple[Tensor, ...]]:
        """The gradients `(k, *leaf.shape)` of some columns at a time with respect to the leaves."""
        return chunks(partial(self._gradients, leaves), self._one_hot(), together)

    def stacked_gradients(self, leaf: Tensor) -> Tensor:
        """The gradients of all columns with respect to one leaf, `(K', *leaf.shape)`."""
        return batched(partial(self._gradients, (leaf,)), self._one_hot(), leaf)

    def _gradients(
        self, leaves: Sequence[Tensor], rows: Tensor, *, is_grads_batched: bool = False
    ) -> tuple[Tensor, ...]:
        """Multiply rows (B, K) with the gradients of the scores at some leaves.

        If no gradient reaches a leaf, it is zero where somebody's hook may have cut it off, and an
        error otherwise.
        """
        self.check_graph()
        gradients: Sequence[Tensor | None] = [None] * len(leaves)
        if self.scores.requires_grad:
            gradients = grad(
                self.scores,
                leaves,
                rows,
                retain_graph=True,
                create_graph=keeps_graph(),
                allow_unused=True,
                is_grads_batched=is_grads_batched,
            )
        batch_shape = rows.shape[:1] if is_grads_batched else ()
        known = []
        for gradient, leaf in zip(gradients, leaves, strict=True):
            if gradient is None:
                if not self.record.is_hooked:
                    raise CaptureError("The scores do not depend on what the tower computed.")
                gradient = leaf.new_zeros(*batch_shape, *leaf.shape)
            known.append(gradient)
        return tuple(known)

    def check_graph(self) -> None:
        """Raise CaptureError if no gradient leads from the scores back to the tower.

        A hook on the tower may have cut it off on purpose.
        """
        if not self.scores.requires_grad and not self.record.is_hooked:
            raise CaptureError(
                "No gradient leads from the scores back to the tower; the forward function must "
                "not use torch.no_grad(), .detach() or .item() on the way."
            )

    def mixed(self, *points: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of one weighted sum of the columns' scores, so that all cost one backward."""
        if not self.scores.requires_grad or not points:
            return (None,) * len(points)
        rows = self._one_hot()  # (K', B, K)
        # Multiples of the golden ratio give each column another weight, from 0.5 to 1.5.
        weights = (1 + 0.618 * torch.arange(len(rows), device=rows.device)) % 1 + 0.5
        mixture = torch.einsum("nbk,n->bk", rows, weights.to(rows))
        return grad(self.scores, points, mixture, retain_graph=True, allow_unused=True)

    def _one_hot(self) -> Tensor:
        """Rows (K', B, K) that are 1 at the columns."""
        shape = (len(self.columns), *self.scores.shape)
        ones = torch.zeros(shape, dtype=self.scores.dtype, device=self.scores.device)
        return ones.scatter_(2, self.columns[..., None], 1)

    @property
    def scored(self) -> Tensor | None:
        """The tower's own embedding where the scores are cosines of it, or None."""
        if self.rows is None:
            return None
        record = self.record
        for candidate in (record.projected, record.embedding):
            if candidate is None:
                continue
            first = _first_token(candidate, candidate.ndim)
            # An adapter hands the embedding on as it is, so any other number was made on the way.
            if first.shape == record.scored.shape and record.scored.equal(to_float32(first)):
                return candidate
        return None


def detach_inference(inputs: Any) -> Any:
    """The inputs, copied where inference mode made them, since those can enter no graph."""
    if isinstance(inputs, tuple):
        return tuple(detach_inference(value) for value in inputs)
    if isinstance(inputs, Tensor) and inputs.is_inference():
        return inputs.clone()
    return inputs


def further_arguments(extra: Any) -> tuple[Any, ...]:
    """Captum's `additional_forward_args`: none, one, or a tuple of them."""
    if extra is None:
        return ()
    return extra if isinstance(extra, tuple) else (extra,)


def differentiate(maps: Tensor, leaves: list[Tensor]) -> None:
    """Raise UnsupportedModelError where torch has no derivative of the maps."""
    try:
        grad(maps.sum(), leaves, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"torch cannot differentiate these maps ({error}); use direct, or run this call and "
            "the loss under torch.nn.attention.sdpa_kernel(SDPBackend.MATH)."
        ) from error


def rows_at_once(numbers: int) -> int:
    """How many rows a batched backward may take, if it holds so many numbers for each of them."""
    return max(1, _NUMBERS_AT_ONCE // max(1, numbers))


def chunks(
    gradients: Callable[..., tuple[Tensor, ...]], rows: Tensor, size: int
) -> Iterator[tuple[Tensor, ...]]:
    """The gradients (k, ...) of chunks of rows: each chunk in one backward, or else row by row.

    Args:
        gradients: from a row to its gradients at some leaves; with ``is_grads_batched=True`` from
            several rows to theirs.
        rows: (n, ...).
        size: rows in a chunk.
    """
    for chunk in torch.split(rows, size):
        of_chunk = None
        if len(chunk) > 1:
            # The user's own code may hold operations that no batched backward passes.
            with suppress(RuntimeError):
                of_chunk = gradients(chunk, is_grads_batched=True)
        if of_chunk is not None:
            yield of_chunk
            continue
        for row in chunk:
            yield tuple(gradient[None] for gradient in gradients(row))


def batched(gradients: Callable[..., tuple[Tensor, ...]], rows: Tensor, leaf: Tensor) -> Tensor:
    """The gradients (n, *leaf.shape) of n rows at one leaf."""
    size = rows_at_once(leaf.numel())
    return torch.cat([gradient for (gradient,) in chunks(gradients, rows, size)])


def one_column(target: Any, batch: int, count: int, names: Sequence[str] = ()) -> Tensor:
    """Captum's `target` -> (1, B), the score's column for each image."""
    if target is None and count != 1:
        raise TargetError(
            f"the forward function returns {count} scores per image{_names_hint(names)}; "
            "choose one with target=0, or take all with attribute_targets."
        )
    indices = _as_indices(0 if target is None else target)
    if len(indices) == 1:
        indices = indices * batch
    several = "for several maps of an image call attribute_targets"
    expected = f"one target, or one for each of {batch} images"
    expect(len(indices) == batch, expected, indices, several, error=TargetError)
    return _checked_columns(indices, count, names)[None]


def many_columns(targets: Columns, batch: int, count: int, names: Sequence[str] = ()) -> Tensor:
    """Indices, or None for all -> (K', B), the same column for every image."""
    indices = _as_indices(range(count) if targets is None else targets)
    if not indices:
        raise TargetError("targets is empty; leave it out to take all.")
    return _checked_columns(indices, count, names)[:, None].expand(-1, batch)


def _as_indices(targets: Any) -> list[Any]:
    """Make a list of one or several targets, each an index or, as in Captum, a tuple of one."""
    if isinstance(targets, (Tensor, np.ndarray)):
        targets = targets.reshape(-1).tolist()
    if isinstance(targets, str) or not isinstance(targets, Iterable):
        return [targets]
    indices = []
    for target in targets:
        is_one_tuple = isinstance(target, (list, tuple)) and len(target) == 1
        indices.append(target[0] if is_one_tuple else target)
    return indices


def _checked_columns(indices: list[Any], count: int, names: Sequence[str]) -> Tensor:
    """Columns from 0 to `count` - 1; TargetError for what is no index of a score."""
    for index in indices:
        # NumPy's integers are Integral as well.
        is_index = isinstance(index, Integral) and not isinstance(index, bool)
        expect(is_index, "a target of an index or one index per image", index, error=TargetError)
        if not -count <= int(index) < count:
            raise TargetError(
                f"target: {show(index)} is out of range; there are {count} scores per image"
                f"{_names_hint(names)}."
            )
    return torch.tensor([int(index) for index in indices], device="cpu") % count


def _names_hint(names: Sequence[str]) -> str:
    """The names of the first scores in brackets, for messages."""
    if not names:
        return ""
    listed = [repr(name) for name in names[:8]]
    if len(names) > 8:
        listed.append("...")
    return f" ({', '.join(listed)})"


def observed(tower: Tower, call: Call, *observers: Observer, leaf: bool = False) -> Pass:
    """Run once under some observers; with `leaf` the graph begins at the embedding.

    With a leaf, scores other than the embedding's cosines are tested for what they read below it.
    """
    recording = partial(observe, tower, *observers, Embedding(call.readout, leaf))
    if not leaf:
        return call.run(recording())
    if call.is_cosine:
        run = call.run(recording())
        if run.scored is not None:
            return run
    # Probes on all layers show whether a score reads anything below the embedding.
    every_layer = Probes(range(len(tower.layers)))
    run = call.run(recording(every_layer))
    # Cosines of something else than the embedding are scores like any other from here on.
    return replace(run, rows=None)


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
        run: the forward.
        embedding: (B, E).
        direction: d in y = d . e + remainder, for K' targets. The length of the embedding is a
            constant. Its reciprocal is the direction's scale, so the rows of a cosine are the
            targets' own embeddings.
        gradient: of the scores at e, (K', B, E).
        projected: whether e comes out of the tower's whole head.
        remainder: (B, K'), what the embedding does not add to the scores, such as a bias; None
            for cosines, which have none.
        token: what is pooled, (B, D); if the tower pools a mean, all that is averaged, (B, N, D).
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
        if self.projected or tower.projection_module is None:
            return tower.head
        return tower.head[:-1]


def pooled_embedding(tower: Tower, call: Call, *observers: Observer) -> PooledEmbedding:
    """Run once under some observers; the head must make the embedding of what is pooled."""
    # The head of some families is not known. Asking for it refuses them before any work.
    _ = tower.head
    if isinstance(tower, ResNetTower):
        observers = (*observers, Features())
    elif tower.pooling != "attention":
        last_layer = len(tower.layers) - 1
        observers = (*observers, Outputs([last_layer]))
    run = observed(tower, call, *observers, leaf=True)
    return with_token(tower, embedded_scores(tower, run))


def pooled_tokens(tower: Tower, record: Recording) -> Tensor:
    """The `token` of a `PooledEmbedding`, in the tower's own precision."""
    if tower.pooling == "attention":
        return record.pool
    if not isinstance(tower, TransformerTower):
        return detached(record.features).flatten(2).transpose(1, 2)
    tokens = detached(record.outputs[len(tower.layers) - 1])
    if tower.pooling == "mean":
        return tokens[:, tower.prefix :]
    return record.pooled.read(tokens)


def with_token(tower: Tower, embedded: PooledEmbedding) -> PooledEmbedding:
    """Add what is pooled, and compare what the head makes of it with the embedding."""
    record = embedded.run.record
    returned = embedded.embedding.detach()
    token = pooled_tokens(tower, record)
    with torch.no_grad():
        pooled = token
        steps = embedded.head(tower)
        if tower.pooling == "mean":
            normed = run_steps(steps[: tower.steps_before_mean], token)
            pooled = record.pooled.mean(normed, slice(None))[:, 0]
            steps = steps[tower.steps_before_mean :]
        recomputed = run_steps(steps, pooled)
        if recomputed.shape != returned.shape:
            # NaN agrees with nothing, so another shape is refused like other numbers.
            recomputed = torch.full_like(returned, torch.nan)
        # The embedding may have been cast, so it is compared in the precision of the tower.
        record.compare("the embedding", to_float32(recomputed), returned.to(token.dtype))
    return replace(embedded, token=to_float32(token), dtype=token.dtype)


def embedded_scores(
    tower: Tower, run: Pass, below: Tensor | None = None, *, directed: bool = True
) -> PooledEmbedding:
    r"""Express a forward's scores in the embedding e, through which alone they read the tower.

    The directions d of a cosine are the targets over the length of e. For any other score they are
    :math:`g + (y - b - g \cdot e) e / |e|^2`, g its gradient at e and b its constant, so that
    :math:`d \cdot e + b = y`. A score that is not odd in e up to a constant, such as that of an
    MLP, has :math:`d = g`.

    Args:
        tower: the tower.
        run: the forward.
        below: where the graph begins, by default at what the tower returned. The score must depend
            on it through e alone.
        directed: whether directions are needed, and not the gradient alone.

    Raises:
        ReadsMoreError: the score depends on more than the embedding.
        CaptureError: no gradient leads from the score back to the tower.
    """
    record = run.record
    scored = run.scored
    if scored is not None:
        return _embedded_cosines(run, projected=scored is record.projected)
    embedding = _scored_point(run, record.embedding if below is None else below)
    if embedding is None:
        run.check_graph()
        raise ReadsMoreError(
            f"The scores depend on more than the embedding that the {tower.noun} returned, such as "
            "hidden states, so they cannot be taken apart. Use a method with gradients, such as "
            "all-grad, or grad-cam on a convolutional tower."
        )
    projected = embedding is record.projected
    first = _first_token(embedding, embedding.ndim)
    gradient = to_float32(run.stacked_gradients(embedding))
    gradient = _first_token(gradient, embedding.ndim)  # (K', B, E)
    length = to_float32(detached(first)).norm(dim=-1, keepdim=True).clamp(min=1e-12)
    if not directed:
        direction = Direction.of(gradient, torch.ones_like(length[:, 0]))
        return PooledEmbedding(run, first, direction, gradient, projected)
    rows, remainder = _directions(run, embedding, gradient, projected)
    mean = rows.mean(1, keepdim=True)
    # With a graph, rows that are equal here may still have different derivatives.
    if not keeps_graph():
        bound = 32 * torch.finfo(rows.dtype).eps
        off = difference(rows, mean, dim=-1)
        if bool(is_rounding(off, mean.norm(dim=-1), bound).all()):
            # One direction for all images makes a single matrix of the products that follow.
            rows = mean
    direction = Direction.of(rows, length[:, 0].reciprocal())
    return PooledEmbedding(run, first, direction, gradient, projected, remainder)


def _embedded_cosines(run: Pass, *, projected: bool) -> PooledEmbedding:
    """Express cosines in the embedding, and compare them with the scores."""
    assert run.rows is not None
    record = run.record
    embedding = detached(record.scored)
    scale = embedding.norm(dim=-1).clamp(min=1e-12).reciprocal()
    direction = Direction.of(run.rows.to(embedding.dtype), scale)
    cosines = direction.dot(embedding)  # (K', B)
    scores = run.chosen
    size = scores.norm(dim=1, keepdim=True).clamp(min=1)
    record.compare("the score", cosines.T, scores.to(cosines.dtype), size)
    # A cosine does not change along the embedding, so its gradient is orthogonal to it.
    along = cosines[..., None] * (embedding * scale[:, None])
    gradient = (direction.rows - along) * scale[:, None]
    return PooledEmbedding(run, record.scored, direction, gradient, projected)


def _first_token(values: Tensor, embedding_ndim: int) -> Tensor:
    """An embedding (B, E), or its gradient; the first token if the tower projects all, as FLAVA."""
    return values[..., 0, :] if embedding_ndim == 3 else values


@dataclass(frozen=True)
class Constants:
    """The constants of a forward function's K scores, to which the embedding adds nothing.

    They are numbers and no tensors, since a method keeps them between calls.

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
        of_first_image = lengths[:, :1]
        alike = is_rounding((lengths - of_first_image).abs(), of_first_image, bound)
        lengths = torch.where(alike.all(1, keepdim=True), lengths, torch.nan)
        by_score = lengths.new_full((len(self.values),), torch.nan)
        by_score = by_score.scatter(0, columns.flatten(), lengths.flatten())
        return replace(self, lengths=tuple(by_score.tolist()))


def _directions(
    run: Pass, embedding: Tensor, gradient: Tensor, projected: bool
) -> tuple[Tensor, Tensor]:
    r"""Directions (K', B, E) on the unit embedding, and what is left of the scores (B, K').

    A cosine's gradient lacks the part of the score along the embedding. That part is made of the
    score's value less its constant b. Cosines are odd in the embedding up to b, so
    :math:`b = (f(e) + f(-e)) / 2`. This takes another forward, so b is kept for later calls, as
    long as directions keep their lengths, which a different constant would change.
    """
    e = to_float32(detached(_first_token(embedding, embedding.ndim)))
    length = e.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    scores = run.chosen.T.to(gradient.dtype)  # (K', B)
    linear = (gradient * e).sum(-1)  # (K', B)
    bound = run.record.rounding(embedding)

    def directions(constants: Tensor) -> Tensor:
        along = (scores - constants - linear)[..., None]
        rows: Tensor = gradient * length + along * (e / length)
        return rows

    memory = {} if run.call is None else run.call.constants
    score_count = run.scores.shape[1]
    known = memory.get(score_count)
    if known is not None and not known.matter:
        return gradient * length, (scores - linear).T
    # In a graph, maps have the derivative of f(-e) as well, so this forward is part of it.
    if known is not None and not keeps_graph():
        constants = known.of_columns(run.columns, gradient)
        rows = directions(constants)
        if known.fit(run.columns, rows, bound):
            return rows, constants.T
    known, constants = _constants_of(run, embedding, gradient, projected)
    if not known.matter:
        memory[score_count] = known
        return gradient * length, (scores - linear).T
    rows = directions(constants)
    memory[score_count] = known.with_lengths(run.columns, rows.detach(), bound)
    return rows, constants.T


def _constants_of(
    run: Pass, embedding: Tensor, gradient: Tensor, projected: bool
) -> tuple[Constants, Tensor]:
    """The constants of all scores, and those of the columns (K', B), from a forward with -e.

    They do not matter for scores that are linear in e, whose direction is the gradient. Scores
    that are not odd in e up to a constant have none.
    """
    scores = detached(run.scores)  # (B, K)
    bound = run.record.rounding(embedding)
    gradient_alone = Constants(matter=False), torch.zeros_like(gradient[..., 0])
    if run.call is None:
        return gradient_alone
    negation = Embedding(run.call.readout, other=-embedding, projected=projected)
    try:
        with without_whole_graph():
            negated = run.call.run(observe(run.call.tower, negation))
        point = negated.record.projected if projected else negated.record.embedding
        assert point is not None
        negated_gradient = to_float32(negated.stacked_gradients(point))
    except Exception:
        # The user's code need not take an embedding that no image has, and may raise anything.
        return gradient_alone
    negated_gradient = _first_token(negated_gradient, embedding.ndim)
    negated_scores = detached(negated.scores)
    constants = (scores + negated_scores) / 2
    odd = (scores - negated_scores) / 2
    # The gradient of an odd function is even.
    is_odd = agree(negated_gradient, gradient, bound=bound, dim=-1)
    if not bool(is_odd.all() & constants.isfinite().all()):
        return gradient_alone
    chosen_constants = constants.T.gather(0, run.columns).to(gradient.dtype)  # (K', B)
    chosen_odd = odd.T.gather(0, run.columns).to(gradient.dtype)
    first = to_float32(detached(_first_token(embedding, embedding.ndim)))
    linear = (gradient * first).sum(-1)
    # If the gradient gives the whole odd part, no part of the score along e is missing in it.
    if bool(is_rounding((chosen_odd - linear).abs(), chosen_odd.abs(), bound).all()):
        return gradient_alone
    size = scores.abs() + negated_scores.abs()
    # A constant that differs between images, such as a prior of each, is not known beforehand.
    alike = is_rounding((constants - constants[:1]).abs(), size, bound).all(0)
    values = torch.where(alike, constants.mean(0), torch.nan)
    return Constants(matter=True, values=tuple(values.tolist())), chosen_constants


def _scored_point(run: Pass, below: Tensor) -> Tensor | None:
    """The embedding through which alone the scores depend on what is below; None without one."""
    record = run.record
    points = []
    for candidate in (record.projected, record.embedding):
        if candidate is not None and candidate.requires_grad:
            points.append(candidate)
    probes = [] if record.graph.probe is None else [record.graph.probe]
    # The law costs one backward, since one mixture of all targets is tested, in which none cancels.
    whole, *inner = run.mixed(below, *points, *probes)
    if whole is None:
        return None
    at_points = inner[: len(points)]
    at_probes = inner[len(points) :]
    if any(gradient is not None and bool(gradient.any()) for gradient in at_probes):
        return None
    for embedding, gradient in zip(points, at_points, strict=True):
        if _leads_through(run, embedding, gradient, whole, below):
            return embedding
    return None


def _leads_through(
    run: Pass, embedding: Tensor, inner: Tensor | None, whole: Tensor, below: Tensor
) -> bool:
    """Whether the scores depend on what is below through the embedding's first token alone.

    Args:
        run: the forward.
        embedding: (B, E), or (B, s, E) with all tokens.
        inner: the scores' gradient at the embedding; None if there is none.
        whole: the scores' gradient at what is below.
        below: where the graph begins.
    """
    if inner is None or (embedding.ndim == 3 and inner[:, 1:].any()):
        return False
    if embedding is below:
        return True
    (through,) = grad(embedding, below, inner, retain_graph=True, materialize_grads=True)
    is_all = agree(through, whole, bound=run.record.rounding(embedding))
    # A gradient that overflows tells nothing. The map shows it, so it is no reason to refuse.
    return bool(is_all) or not whole.isfinite().all()
