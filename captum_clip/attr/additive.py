"""Scores and embeddings as sums over positions or heads: vectors, their products, relevance."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import expect
from ..errors import CaptureError, UnsupportedModelError, public
from ..maps import autocast_disabled, to_float32
from ..models.attentions import Attention, PostNormLayer
from ..models.steps import (
    Direction,
    Step,
    constants,
    flattened,
    needs_token,
    pull_back,
    push_forward,
    run_steps,
    split_heads,
)
from ..models.towers import Tower, TransformerTower
from ..recording.graph import detached, held, keeps_graph, no_graph
from ..recording.observe import Kernels, Sums
from ..recording.passes import record_held, refuse_nonlinear
from ..recording.reads import AttentionRead
from ..recording.records import NOTHING, Recording
from . import _attention as mha
from ._base import ClipAttribution
from ._call import (
    Call,
    Computed,
    Indices,
    PooledEmbedding,
    batched,
    embedded_scores,
    further_arguments,
    one_column,
    pooled_embedding,
    refuse_checkpointing,
)


def products(vectors: Tensor, directions: Tensor | None) -> Tensor:
    """Vectors (B, ..., E) times others (n, B or 1, E), by default the axes: (n, B, ...)."""
    if directions is None:
        return vectors.movedim(-1, 0)
    directions = directions.to(vectors).expand(-1, len(vectors), -1)
    return torch.einsum("nbe,b...e->nb...", directions, vectors)


class PooledRow(NamedTuple):
    """The pooled row of an attention as a sum over tokens, and how it reaches the stream.

    Where tokens are averaged, the mean is the row: it has a single head and no further steps.
    """

    name: str  # in messages
    parts: Tensor  # (B, H, s, d), what each token adds to the heads' outputs
    extra: Tensor | None = None  # (B, H d), what no token adds
    attention: Attention | None = None
    mixture: tuple[Tensor, Tensor] | None = None  # of values, as computed and as they ran

    @property
    def heads(self) -> Tensor:
        """The heads' outputs, (B, H d)."""
        whole = self.parts.sum(2).flatten(1)
        return whole if self.extra is None else whole + self.extra

    @classmethod
    def of(cls, _: int, read: AttentionRead, *, centered: bool) -> "PooledRow":
        """That of an attention that runs; `centered` takes values less their mean."""
        with no_graph(), autocast_disabled(read.value):
            row, value, extra = read.row(), to_float32(read.value), read.extra
            if read.attention.positions is not None:
                return _spread(read, row, value, centered)
            if centered:  # the value of a mean token is the mean of the values
                mean = read.pooled.mean(value.transpose(1, 2).flatten(2), read.span)
                mean = split_heads(mean, value.shape[1]).transpose(1, 2)  # (B, H, 1, d)
                value = value - mean
                added = (row.sum(-1, keepdim=True) * mean[:, :, 0]).flatten(1)
                extra = added if extra is None else extra + added
            return cls(read.name, value * row[..., None], extra, read.attention)


def _spread(read: AttentionRead, row: Tensor, value: Tensor, centered: bool) -> PooledRow:
    r"""The row of a ResNet's pool, whose mean token is spread over the positions.

    .. math:: a_j \, v_j + \frac{a_0}{N} (v_j - c_j), \qquad c_j = W_V p_j + b_V

    with p the positions, which no image changes; :math:`a_0 c_0` is of no position.
    """
    positions: Any = read.attention.positions
    count = len(positions) - 1
    # a mixture of the tokens goes along, to see that the values are those of the features
    mixed, returned, _ = mha.features_mixture(read)
    mapped = read.attention.input_maps()[2](torch.cat([positions.to(value.dtype), mixed]))
    placed = split_heads(mapped[: 1 + count], value.shape[1]).transpose(0, 1)  # (H, 1 + N, d)
    plain = value - placed
    plain, others = plain[:, :, 1:], value[:, :, 1:]
    first = row[..., :1]
    extra = first * placed[:, 0]
    if centered:
        shifts = [each.mean(2, keepdim=True) for each in (plain, others)]
        plain, others = plain - shifts[0], others - shifts[1]
        extra = extra + first * shifts[0][:, :, 0]
        extra = extra + row[..., 1:].sum(-1, keepdim=True) * shifts[1][:, :, 0]
    parts = others * row[..., 1:, None] + plain * (first[..., None] / count)
    parts, mixture = F.pad(parts, (0, 0, 1, 0)), (mapped[1 + count :], returned)
    return PooledRow(read.name, parts, extra.flatten(1), read.attention, mixture)


def _mean_row(tower: Tower, embedded: PooledEmbedding, centered: bool) -> PooledRow:
    """That of a mean of tokens, for each of which the first steps of the head run."""
    pooled, tokens = embedded.run.record.pooled, embedded.token
    steps = embedded.head(tower)[: tower.steps_before_mean]
    share = mha.initial_row("mean", tokens[..., 0], 0, pooled)[..., None]  # (B, N, 1)
    mean = pooled.mean(tokens, slice(None)).expand_as(tokens)
    # the norm of each token is its own, so the mean passes it once for every token
    flat = torch.stack([tokens, mean], 2).flatten(0, 1)  # (B N, 2, D)
    flat = push_forward(steps, flat[:, 0], flat if centered else flat[:, :1])[1]
    parts, *means = (flat.view(*tokens.shape[:2], *flat.shape[1:]) * share[..., None]).unbind(2)
    # a norm of zeros is its bias
    extra = run_steps(steps, torch.zeros_like(tokens[:, 0]))
    if centered:
        parts, extra = parts - means[0], extra + means[0].sum(1)
    parts = F.pad(parts, (0, 0, tower.prefix, 0))
    return PooledRow("the mean of the tokens", parts[:, None], extra)


class PooledRows(NamedTuple):
    """The pooled rows of some attentions, and the way from them to the embedding."""

    embedded: PooledEmbedding
    rows: dict[int, PooledRow]
    token: Tensor  # (B, D), what is pooled
    head: tuple[Step, ...]  # from there to the embedding

    @property
    def record(self) -> Recording:
        """The recording of the forward."""
        return self.embedded.run.record

    @property
    def direction(self) -> Direction:
        """The direction on the pooled token along which the scores grow."""
        return pull_back(self.head, self.token, self.embedded.direction)

    def embed(self, parts: Tensor) -> Tensor:
        """What parts (B, m, D) of the pooled token are of the unit embedding, (B, m, E).

        The norm's deviation, the gates and the embedding's length are those of this image.
        """
        with no_graph(), autocast_disabled(self.token):
            vectors = push_forward(self.head, self.token, parts.to(self.token))[1]
            return torch.einsum("b...,b->b...", vectors, self.embedded.direction.scale)


def pooled_rows(
    tower: Tower, call: Call, layers: range, centered: bool, kernels: Kernels | None = None
) -> PooledRows:
    """Run once, and read the pooled row of the attentions of some layers, or a mean.

    Other `kernels` keep something else of other layers.
    """
    # a mean of features has no attention
    layers = layers[: len(tower.attentions)]
    kernels = kernels or Kernels(layers, partial(PooledRow.of, centered=centered))
    blocks = Sums(range(layers.start, min(layers.stop, len(tower.layers))), copies=call.copies)
    return rows_of(tower, pooled_embedding(tower, call, kernels, blocks), centered)


def rows_of(tower: Tower, embedded: PooledEmbedding, centered: bool) -> PooledRows:
    """The rows that a forward has shown, or that of a mean."""
    record = embedded.run.record
    if record.rows:
        record.compare_sums()
    rows = {index: row for index, row in sorted(record.reads.items()) if isinstance(row, PooledRow)}
    for row in rows.values():
        if row.mixture is not None:
            record.compare(row.name, *row.mixture)
    head, token = embedded.head(tower), embedded.token
    if tower.pooling == "mean":
        with no_graph(), autocast_disabled(token):
            row = _mean_row(tower, embedded, centered)
            head, token = head[tower.steps_before_mean :], row.heads
            rows = {len(tower.layers): row}  # after all of them
    return PooledRows(embedded, rows, token, head)


_Onwards = list[tuple[tuple[Step, ...], Tensor, Tensor]]
"""The steps of the pooled token after a layer's attention, what enters them and comes out."""


def _steps_onwards(pooled: PooledRows, mlps: bool) -> dict[int, _Onwards]:
    """Those of each layer; without the `mlps` the norms on the stream, if there are any."""
    layers, onwards = dict(enumerate(pooled.record.tower.layers)), dict[int, _Onwards]()
    if not (mlps or any(isinstance(layer, PostNormLayer) for layer in layers.values())):
        return onwards
    for index, (stream, returned) in pooled.record.streams().items():
        steps, token = flattened(layers[index].after_attention()), to_float32(stream)
        onwards[index] = [(steps, token, returned)]
        if not mlps:
            normed = run_steps(steps[:1], token)
            second = steps[2:], run_steps(steps[1:2], normed), returned
            onwards[index] = [(steps[:1], token, normed), second]
    return onwards


def _steps_and_output(
    pooled: PooledRows, index: int
) -> tuple[tuple[Step, ...], tuple[Step, ...], Tensor]:
    """The output map of a row and the branch that follows it, and what ran between them (B, D)."""
    row, record = pooled.rows[index], pooled.record
    if row.attention is None:
        return (), (), row.heads
    returned = record.pool if row.attention.is_pool else record.rows[index][1]
    return row.attention.merge_steps(), row.attention.branch(), returned


def parts_of_heads(pooled: PooledRows) -> Tensor:
    """The pooled token as a sum of parts, (B, n (H + 1) + 1, D).

    They are those of the heads, and then the MLP of each layer, and at last what is in neither.
    """
    parts, record = [], pooled.record
    streams = record.streams()
    for index, row in pooled.rows.items():
        layer = dict(enumerate(record.tower.layers)).get(index)
        if isinstance(layer, PostNormLayer):
            what = "this text tower has norms between its layers, so heads do not add up"
            raise UnsupportedModelError(f"{what}; leave out `per`.")
        # each head with zeros in place of the others
        # one matrix product for all heads: their columns of the output map are disjoint
        diagonal = torch.diag_embed(row.parts.sum(2).mT, dim1=1, dim2=2).flatten(2)
        parts.append(_pushed_row(pooled, index, diagonal))
        if layer is not None:  # the MLP of a pool follows all of its heads
            stream, returned = map(to_float32, streams[index])
            parts.append((returned - stream)[:, None])
    added = torch.cat(parts, 1)
    return torch.cat([added, pooled.token[:, None] - added.sum(1, keepdim=True)], 1)


def _pushed_row(pooled: PooledRows, index: int, vectors: Tensor) -> Tensor:
    """Parts (B, n, H d) of the heads' outputs of a row in the stream (B, n, D)."""
    row, record = pooled.rows[index], pooled.record
    merge, branch, returned = _steps_and_output(pooled, index)
    output, vectors = push_forward(merge, row.heads, vectors)
    record.compare(row.name, output, returned)
    return push_forward(branch, output, vectors)[1]


def pushed_rows(pooled: PooledRows, mlps: bool) -> Tensor:
    """The share of each patch or word in the pooled token, (B, s, D), through all layers' rows.

    Zero for other tokens, such as CLS, which are in no map.
    """
    share: Any = 0
    record, onwards = pooled.record, _steps_onwards(pooled, mlps)
    span: slice = record.span
    for index, row in pooled.rows.items():
        share = share + _pushed_row(pooled, index, row.parts[:, :, span].transpose(1, 2).flatten(2))
        for steps, token, returned in onwards.get(index, ()):
            output, share = push_forward(steps, token, share)
            record.compare(f"what follows the attention of layer {index}", output, returned)
    return F.pad(share, (0, 0, span.start, row.parts.shape[2] - span.stop))


def pulled_rows(
    pooled: PooledRows, direction: Direction, *, per: str | None = None, mlps: bool = False
) -> Tensor:
    """The maps (K, B, ..., s) along directions on the pooled token, from the last layer down.

    They are kept `per` "layer" or "head", (K, B, n, s) or (K, B, n, H, s), or added up.
    """
    values, record, onwards = list[Tensor](), pooled.record, _steps_onwards(pooled, mlps)
    laws, others, extras = list[_Along](), list[_Along](), list[Tensor | None]()
    ways = list[Direction]()
    for index, row in reversed(pooled.rows.items()):
        for steps, token, returned in reversed(onwards.get(index, [])):
            above = direction
            direction = pull_back(steps, token, above.without_constant())
            what = f"what follows the attention of layer {index}"
            others.append(_Along(what, above, direction.dot(token) + direction.constant, returned))
        merge, branch, returned = _steps_and_output(pooled, index)
        # linear steps are the same for every token
        token = row.heads if needs_token((*merge, *branch)) else direction.rows[0]
        at_heads = pull_back((*merge, *branch), token, direction.without_constant())
        parts = row.parts.to(at_heads.rows.dtype)  # a kernel may run in another
        if per == "head":
            rows = split_heads(at_heads.rows, row.parts.shape[1])  # (K, B or 1, H, d)
            rows = rows.expand(-1, len(row.parts), -1, -1)
            maps = torch.einsum("kbhd,bhsd->kbhs", rows, parts)
        else:
            maps = at_heads.products(parts.transpose(1, 2).flatten(2))  # (K, B, s)
        added = run_steps(branch, to_float32(returned)).to(returned.dtype)
        extras.append(None if row.extra is None else at_heads.dot(row.extra))
        laws.append(_Along(row.name, direction, NOTHING, added))
        ways.append(at_heads)
        values.append(maps)
    scales = torch.stack([each.scale for each in ways])  # (L, B)
    maps = torch.stack(values)  # (L, K, B, ..., s)
    maps = maps * scales.view(len(ways), 1, -1, *[1] * (maps.ndim - 3))
    wholes = maps.flatten(3).sum(-1) + constants(ways)
    if any(extra is not None for extra in extras):
        wholes = wholes + torch.stack(
            [0 * w if e is None else e for w, e in zip(wholes, extras, strict=True)]
        )
    # the direction changes from layer to layer, so they are read from the top
    maps = maps if per is None else maps.flip(0)
    laws = [law._replace(whole=whole) for law, whole in zip(laws, wholes, strict=True)]
    _compare_along(record, [*others, *laws])
    return maps.sum(0) if per is None else maps.movedim(0, 2)


class _Along(NamedTuple):
    """The products (K', B) of all parts together, and the library's token (B, D) of these parts."""

    name: str
    direction: Direction
    whole: Tensor
    token: Tensor


def _compare_along(record: Recording, laws: Sequence[_Along]) -> None:
    """Compare the products of all parts with those of the library's tokens.

    Along the directions alone, so no further weights are read than the parts are made of.
    """
    for direction in {id(law.direction): law.direction for law in laws}.values():
        alike = [law for law in laws if law.direction is direction]
        tokens = torch.stack([law.token for law in alike], 1)  # (B, n, D)
        wide = to_float32(tokens)
        # numbers that differ at random differ by this along a vector
        size = torch.linalg.vector_norm(wide, dim=-1) * 4 * tokens.shape[-1] ** -0.5
        size = direction.length * size.T  # (n, B)
        wholes = torch.stack([law.whole for law in alike]).transpose(1, 2)  # (n, B, K')
        returned = direction.dots(wide).permute(2, 1, 0).to(tokens.dtype)
        record.compare_all([law.name for law in alike], wholes, returned, size[..., None])


@no_graph()
def decompose(embedded: PooledEmbedding, values: Tensor, directions: Tensor | None) -> Computed:
    """Products (n, B, s) or (n, B, L, H) of the unit embedding's parts, and of what is in none."""
    record = embedded.run.record
    unit = to_float32(detached(embedded.embedding)) * embedded.direction.scale[:, None]
    scored = record.scored.detach()  # which may be more than the tower's
    again = unit if scored.shape == unit.shape else torch.full_like(scored, torch.nan)
    record.compare("the embedding", again, F.normalize(scored, dim=-1))
    total = products(unit, directions)
    # some tokens have no place in a map
    span = record.span if values.ndim == 3 else slice(None)
    return embedded.run.computed(values, (total - values.flatten(2)[..., span].sum(-1)).T)


class AdditiveAttribution(ClipAttribution):
    """Base of the methods whose maps and rest add up to the score, with Captum's delta."""

    additive = multiplies_by_inputs = True

    def has_convergence_delta(self) -> bool:
        return True

    @torch.no_grad()
    @public("compute_convergence_delta")
    def compute_convergence_delta(
        self,
        attributions: Tensor | tuple[Tensor, ...],
        rest: Tensor,
        inputs: Tensor | tuple[Tensor, ...],
        target: Indices = None,
        additional_forward_args: Any = None,
    ) -> Tensor:
        r"""The sum of map and rest less each image's score, (B,), with Captum's sign.

        .. math:: \delta = \Bigl(\sum_j r_j + \text{rest}\Bigr) - y

        y comes from another call of the forward function, without hooks. For the maps that
        `attribute` returns, delta is rounding. It shows what a resized or changed map lost.

        Args:
            attributions: of one target, (B, 1, ...), or a tuple that holds them.
            rest: (B, 1), from ``return_rest=True``.
            inputs: as in `attribute`, and so are the others.
            target: index of a score, or one index per image.
            additional_forward_args: further arguments of the forward function.

        Raises:
            InputError: attributions or a rest of another number of images.
            TargetError: as `attribute`.
        """
        maps = attributions if isinstance(attributions, tuple) else (attributions,)
        images = inputs if isinstance(inputs, tuple) else (inputs,)
        scores: Tensor = self.forward_func(*images, *further_arguments(additional_forward_args))
        scores = scores.view(len(scores), -1)
        fits = rest.shape == (len(scores), 1) and [*map(len, maps)] == [len(scores)]
        expected = f"maps (B, 1, ...) and a rest (B, 1) of {len(scores)} images"
        expect(fits, expected, [*maps, rest], "return_rest=True gives both")
        column = one_column(target, *scores.shape).to(scores.device)
        return maps[0].flatten(1).sum(1) + rest[:, 0] - scores.gather(1, column.T)[:, 0]


@final
class ConservativePropagation(AdditiveAttribution):
    r"""Gradient times input with attention, norms and activations detached: signed, conservative.

    .. math:: r_j = x_j \cdot \frac{\partial \tilde y}{\partial x_j}

    with :math:`x_j` the projected patch before positions are added, and :math:`\tilde y` the score
    in which the attention's weights, the norms' standard deviations, the activations' gates
    :math:`f(x) / x` and the embedding's length are constants. What is left is linear, so relevance
    is neither made nor lost on the way: ``maps.sum((-2, -1)) + rest`` is the score, and the rest
    is the share of class token, positions and biases. A gated MLP (SwiGLU) keeps its gate.

    One forward, and a backward per target, several at once where memory allows. Evidence against
    the target is negative. With a forward function of your own the score's gradient is taken at the
    embedding, a constant of the score is in the rest, and `layer` matters, as for
    :class:`DirectContribution`. For transformers only.

    Option, keyword-only: ``return_rest``, to return the rest (B, K) as well.

    Source: Ali et al. 2022 (arXiv:2202.07304).
    """

    name = "conservative"
    towers = ("vit", "text")
    signed = differentiable = reads_projection = True
    _laws = ()  # its gradient goes through whatever is linear
    _tower: TransformerTower

    def _compute(self, call: Call) -> Computed:
        return propagated_to_patches(self._tower, call)


def propagated_to_patches(
    tower: TransformerTower, call: Call, *, centered: bool = False, directions: Tensor | None = None
) -> Computed:
    """Relevance of every projected patch; `centered` takes each patch less their mean.

    The scores are explained, or the unit embedding's products with `directions` (n, B or 1, E).
    """
    refuse_checkpointing(tower)
    run = call.run(record_held(tower, readout=call.readout))
    record, patches = run.record, run.record.input
    embedded = embedded_scores(tower, run, patches)
    if not embedded.embedding.requires_grad:
        raise CaptureError(
            f"no gradient leads from the embedding back to the {tower.noun}; remove what turns the "
            "graph off or keeps earlier results, or use direct."
        )

    def as_tokens(tensor: Tensor) -> Tensor:  # (..., B, N, D)
        if record.is_map(patches):
            tensor = tensor.movedim(-3, -1)
        return to_float32(tensor).flatten(1 + tensor.ndim - patches.ndim, -2)

    entered = as_tokens(detached(patches))
    if centered:
        span = slice(tower.prefix, tower.prefix + entered.shape[1])
        padded = F.pad(entered, (0, 0, tower.prefix, 0))
        entered = entered - record.pooled.mean(padded, span)
    direction = embedded.direction
    if directions is not None:
        direction = Direction.of(directions.expand(-1, record.batch, -1), direction.scale)
    rows = held(direction.dense()).to(embedded.embedding.dtype)  # (K', B, E)

    def shares(rows: Tensor, *, check: bool = False, **options: bool) -> tuple[Tensor]:
        options |= {"retain_graph": True, "create_graph": check or keeps_graph()}
        (gradient,) = torch.autograd.grad(embedded.embedding, patches, rows, **options)
        if check:  # what is linear has a gradient that does not depend on the patches
            refuse_nonlinear(gradient, patches, tower.noun)
        return ((as_tokens(detached(gradient)) * entered).sum(-1),)

    stacked = shares(rows[0], check=True)[0][None]  # (K', B, N)
    if len(rows) > 1:  # an MLP may be as wide as four tokens
        stacked = torch.cat([stacked, batched(shares, rows[1:], patches.expand(4, *patches.shape))])
    padded = F.pad(stacked, (tower.prefix, 0))
    if directions is not None:
        return decompose(embedded, padded, directions)
    return embedded.run.computed(padded, embedded.run.chosen - stacked.sum(-1).T)
