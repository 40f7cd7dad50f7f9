"""The embedding as a sum of vectors, of positions or heads; maps are products of the former."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UnsupportedModelError
from ..maps import autocast_disabled, to_float32
from ..models.attentions import Attention
from ..models.steps import (
    Direction,
    Step,
    flattened,
    needs_token,
    pull_back,
    push_forward,
    run_steps,
    split_heads,
)
from ..models.text import PostNormLayer
from ..models.towers import Tower
from ..recording import AttentionRead, Recording
from ..recording.graph import detached, no_graph
from . import _attention as mha
from ._call import Call, Computed
from ._engine import PooledEmbedding, Visits, pooled_embedding


class HeadVectors(NamedTuple):
    """What each head of n attentions adds to the unit embeddings; all fields add up to these.

    Attributes:
        heads: (B, n, H, E), each summed over all tokens that the pooled one attends to; of a
            ResNet's pool over the positions.
        mlps: (B, n, E), of the same layers; (B, 0, E) of a pool, whose MLP the heads' vectors pass.
        rest: (B, E), of the pooled token's embedding, of biases, and of the layers below.
    """

    heads: Tensor
    mlps: Tensor
    rest: Tensor

    @property
    def embeddings(self) -> Tensor:
        """The unit embeddings, (B, E)."""
        return self.heads.sum((1, 2)) + self.mlps.sum(1) + self.rest


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
    extra: Tensor | None  # (B, H d), what no token adds
    heads: Tensor  # (B, H d), their outputs
    attention: Attention | None = None

    @classmethod
    def of(cls, _: int, read: AttentionRead, *, centered: bool) -> "PooledRow":
        """That of an attention that was visited; `centered` takes values less their mean."""
        with no_graph(), autocast_disabled(read.value):
            # the sum of the parts is compared with what ran; what a sink adds is not a part
            row = read.row if read.extra is not None else read.any_row()
            value, extra = to_float32(read.value), read.extra
            if read.attention.positions is not None:
                parts, extra = _spread(read, row, value, centered)
            else:
                if centered:  # the value of a mean token is the mean of the values
                    mean = read.pooled.mean(value.transpose(1, 2).flatten(2), read.span)
                    mean = split_heads(mean, value.shape[1]).transpose(1, 2)  # (B, H, 1, d)
                    value = value - mean
                    added = (row.sum(-1, keepdim=True) * mean[:, :, 0]).flatten(1)
                    extra = added if extra is None else extra + added
                parts = value * row[..., None]
        return cls(read.name, parts, extra, mha.heads_output(read), read.attention)


def _spread(
    read: AttentionRead, row: Tensor, value: Tensor, centered: bool
) -> tuple[Tensor, Tensor]:
    r"""The parts and the extra of a ResNet's pool, whose mean token is spread over the positions.

    .. math:: a_j \, v_j + \frac{a_0}{N} (v_j - c_j), \qquad c_j = W_V p_j + b_V

    with p the positions, which no image changes; :math:`a_0 c_0` is of no position.
    """
    positions: Any = read.attention.positions
    count = len(positions) - 1
    # a mixture of the tokens goes along, to see that the values are those of the features
    mixed, returned, _ = mha.features_mixture(read)
    mapped = read.attention.input_maps()[2](torch.cat([positions.to(value.dtype), mixed]))
    read.compare(read.name, mapped[1 + count :], returned)
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
    return F.pad(parts, (0, 0, 1, 0)), extra.flatten(1)


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
    heads = (run_steps(steps, tokens) * share).sum(1)
    parts = F.pad(parts, (0, 0, tower.prefix, 0))
    return PooledRow("the mean of the tokens", parts[:, None], extra, heads)


class Rows(NamedTuple):
    """The pooled rows of some attentions, and the way from them to the embedding."""

    embedded: PooledEmbedding
    rows: dict[int, PooledRow]
    token: Tensor  # (B, D), what is pooled
    head: tuple[Step, ...]  # from there to the embedding

    @property
    def record(self) -> Recording:
        """The recording of the forward."""
        return self.embedded.run.record


def pooled_rows(
    tower: Tower, call: Call, layers: range, centered: bool, visit: Visits | None = None
) -> Rows:
    """Run once, and read the pooled row of the attentions of some layers, or a mean.

    A `visit` of your own returns None for other layers.
    """
    stream = range(layers.start, min(layers.stop, len(tower.layers)))
    visit = visit or (layers, partial(PooledRow.of, centered=centered))
    return rows_of(tower, pooled_embedding(tower, call, visit, stream=stream), centered)


def rows_of(tower: Tower, embedded: PooledEmbedding, centered: bool) -> Rows:
    """The rows that a forward has visited, or that of a mean."""
    visited = embedded.run.record.visited.items()
    rows = {index: row for index, row in visited if row is not None}
    head, token = embedded.head(tower), embedded.token
    if tower.pooling == "mean":
        with no_graph(), autocast_disabled(token):
            row = _mean_row(tower, embedded, centered)
            head, token = head[tower.steps_before_mean :], row.heads
            rows = {len(tower.layers): row}  # after all of them
    return Rows(embedded, rows, token, head)


def steps_onwards(
    record: Recording, index: int, mlps: bool
) -> list[tuple[tuple[Step, ...], Tensor, Tensor]]:
    """The steps of the pooled token after a layer's attention, what enters them and comes out.

    Without the `mlps` they are the norms on the stream, if there are any.
    """
    layer = dict(enumerate(record.tower.layers)).get(index)  # None of a pool
    if layer is None or not (mlps or isinstance(layer, PostNormLayer)):
        return []
    (stream, returned), steps = record.stream[index], flattened(layer.after_attention())
    token = to_float32(stream)
    if mlps:
        return [(steps, token, returned)]
    normed = run_steps(steps[:1], token)
    return [(steps[:1], token, normed), (steps[2:], run_steps(steps[1:2], normed), returned)]


def _steps_and_output(
    pooled: Rows, index: int
) -> tuple[tuple[Step, ...], tuple[Step, ...], Tensor]:
    """The output map of a row and the branch that follows it, and what ran between them (B, D)."""
    row = pooled.rows[index]
    if row.attention is None:
        return (), (), row.heads
    return row.attention.merge_steps(), row.attention.branch(), pooled.record.returned[index]


def parts_of_heads(pooled: Rows) -> Tensor:
    """What the heads, and then the MLP of each layer add to the pooled token, (B, n (H + 1), D)."""
    parts, record = [], pooled.record
    for index, row in pooled.rows.items():
        layer = dict(enumerate(record.tower.layers)).get(index)
        if isinstance(layer, PostNormLayer):
            what = "this text tower has norms between its layers, so heads do not add up"
            raise UnsupportedModelError(f"{what}; leave out `per`.")
        # each head with zeros in place of the others
        # one matrix product for all heads: their columns of the output map are disjoint
        apart = torch.diag_embed(row.parts.sum(2).mT, dim1=1, dim2=2).flatten(2)
        parts.append(_pushed_row(pooled, index, apart))
        if layer is not None:  # the MLP of a pool follows all of its heads
            stream, returned = map(to_float32, record.stream[index])
            parts.append((returned - stream)[:, None])
    return torch.cat(parts, 1)


def _pushed_row(pooled: Rows, index: int, vectors: Tensor) -> Tensor:
    """Parts (B, n, H d) of the heads' outputs of a row in the stream (B, n, D)."""
    row, record, dtype = pooled.rows[index], pooled.record, pooled.embedded.dtype
    merge, branch, returned = _steps_and_output(pooled, index)
    whole = row.parts.sum(2).flatten(1)
    whole = whole if row.extra is None else whole + row.extra
    record.compare(row.name, whole, row.heads.to(dtype))
    output, vectors = push_forward(merge, row.heads, vectors)
    record.compare(row.name, output, returned)
    return push_forward(branch, output, vectors)[1]


def pushed_rows(pooled: Rows, mlps: bool) -> Tensor:
    """The share of each patch or word in the pooled token, (B, s, D), through all layers' rows.

    Zero for other tokens, such as CLS, which are in no map.
    """
    share: Any = 0
    record = pooled.record
    span: slice = record.span
    for index, row in pooled.rows.items():
        share = share + _pushed_row(pooled, index, row.parts[:, :, span].transpose(1, 2).flatten(2))
        for steps, token, returned in steps_onwards(record, index, mlps):
            made, share = push_forward(steps, token, share)
            record.compare(f"what follows the attention of layer {index}", made, returned)
    return F.pad(share, (0, 0, span.start, row.parts.shape[2] - span.stop))


def pulled_rows(
    pooled: Rows, direction: Direction, *, by_layer: bool, by_head: bool, mlps: bool
) -> Tensor:
    """The maps (K, B, ..., s) along directions on the pooled token, from the last layer down."""
    values, record = [], pooled.record
    for index, row in reversed(pooled.rows.items()):
        for steps, token, returned in reversed(steps_onwards(record, index, mlps)):
            above = direction
            direction = pull_back(steps, token, above.without_constant())
            what = f"what follows the attention of layer {index}"
            whole = direction.dot(token) + direction.constant
            _compare_along(record, what, above, whole, returned)
        merge, branch, returned = _steps_and_output(pooled, index)
        # linear steps are the same for every token
        token = row.heads if needs_token((*merge, *branch)) else direction.rows[0]
        at_heads = pull_back((*merge, *branch), token, direction.without_constant())
        if by_head:
            rows = split_heads(at_heads.rows, row.parts.shape[1])  # (K, B or 1, H, d)
            rows = rows.expand(-1, len(row.parts), -1, -1)
            maps = torch.einsum("kbhd,bhsd->kbhs", rows, row.parts)
            maps = maps * at_heads.scale[:, None, None]
        else:
            maps = at_heads.dots(row.parts.transpose(1, 2).flatten(2))  # (K, B, s)
        whole = maps.flatten(2).sum(-1) + at_heads.constant
        whole = whole if row.extra is None else whole + at_heads.dot(row.extra)
        added = run_steps(branch, to_float32(returned)).to(returned.dtype)
        _compare_along(record, row.name, direction, whole, added)
        values.append(maps)
    # the direction changes from layer to layer, so they are read from the top
    values.reverse()
    return torch.stack(values, 2) if by_layer else torch.stack(values).sum(0)


def _compare_along(
    record: Recording, what: str, direction: Direction, whole: Tensor, token: Tensor
) -> None:
    """Compare the products (K', B) of all parts together with those of the library's token (B, D).

    Along the directions alone, so no further weights are read than the parts are made of.
    """
    wide = to_float32(token)
    # numbers that differ at random differ by this along a vector
    size = direction.length * torch.linalg.vector_norm(wide, dim=-1) * 4 * token.shape[-1] ** -0.5
    record.compare(what, whole.T, direction.dot(wide).T.to(token.dtype), size[:, None])


@no_graph()
def decompose(
    tower: Tower, call: Call, embedded: PooledEmbedding, values: Tensor, directions: Tensor | None
) -> Computed:
    """Products (n, B, s) or (n, B, L, H) of the unit embedding's parts, and of what is in none."""
    record = embedded.run.record
    unit = to_float32(detached(embedded.embedding)) * embedded.direction.scale[:, None]
    scored = record.scored.detach()  # which may be more than the tower's
    made = unit if scored.shape == unit.shape else torch.full_like(scored, torch.nan)
    record.compare("the embedding", made, F.normalize(scored, dim=-1))
    total = products(unit, directions)
    # some tokens have no place in a map
    span = record.span if values.ndim == 3 else slice(None)
    inside = values.flatten(2)[..., span]
    return embedded.run.computed(values, (total - inside.sum(-1)).T)
