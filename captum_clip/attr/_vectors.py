"""The embedding as a sum of vectors, of positions or heads; maps are products of the former."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UnsupportedModelError
from ..maps import to_float32
from ..models.attentions import AttentionLayer
from ..models.steps import Direction, Step, flattened, push_forward, run_steps, split_heads
from ..models.text import PostNormLayer
from ..models.towers import ResNetTower, Tower, TransformerTower
from ..recording import AttentionRead, Recording
from . import _attention as mha
from ._call import Call, Computed
from ._engine import PooledEmbedding, pooled_embedding

_TOGETHER = 64  # products of a convolutional tower at a time, which bounds the memory


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
    """The pooled row of an attention, and what is made of it."""

    read: AttentionRead  # without queries and keys
    weights: Tensor  # (B, H, s)
    heads: Tensor  # (B, H d), their outputs

    @classmethod
    def of(cls, _: int, read: AttentionRead) -> "PooledRow":
        """Take what is needed of a layer that was visited."""
        read.watched(read.value)
        row = read.row if read.extra is not None else read.any_row()
        return cls(read.without_weights(), row, mha.heads_output(read))


def pooled_rows(tower: TransformerTower, call: Call, layers: range) -> PooledEmbedding:
    """An embedding, whose record has visited layers, a `PooledRow` each, and the stream there."""
    stream = range(layers.start, min(layers.stop, len(tower.layers)))
    return pooled_embedding(tower, call, (layers, PooledRow.of), stream=stream)


def steps_onwards(
    record: Recording, index: int, mlps: bool
) -> list[tuple[tuple[Step, ...], Tensor, Tensor]]:
    """The steps of the pooled token after a layer's attention, what enters them and comes out.

    Without the `mlps` they are the norms on the stream, if there are any.
    """
    layer = record.transformer.attentions[index]
    if not isinstance(layer, AttentionLayer if mlps else PostNormLayer):
        return []
    (stream, returned), steps = record.stream[index], flattened(layer.after_attention())
    token = to_float32(stream)
    if mlps:
        return [(steps, token, returned)]
    normed = run_steps(steps[:1], token)
    return [(steps[:1], token, normed), (steps[2:], run_steps(steps[1:2], normed), returned)]


def _heads_and_steps(pooled: PooledRow, returned: Tensor) -> tuple[Tensor, tuple[Step, ...]]:
    """The outputs (B, H d) of a layer's heads for the pooled row, and their steps to the stream."""
    read, _, heads = pooled
    attention = read.attention
    read.compare(read.name, to_float32(mha.merged(attention, heads)), returned)
    return heads, (*attention.merge_steps(), *attention.branch())


def parts_of_heads(record: Recording, layers: range) -> Tensor:
    """What the heads, and then the MLP of each layer add to the pooled token, (B, n (H + 1), D)."""
    parts = []
    for index in layers:
        attention = record.transformer.attentions[index]
        if isinstance(attention, PostNormLayer):
            what = "norms lie between the layers of this text tower, so no sum has its heads"
            raise UnsupportedModelError(f"{what}; leave out `per`.")
        heads, steps = _heads_and_steps(record.visited[index], record.returned[index])
        # each head with zeros in place of the others
        apart = torch.diag_embed(split_heads(heads, attention.heads).mT, dim1=1, dim2=2).flatten(2)
        parts.append(push_forward(steps, heads, apart)[1])
        if isinstance(attention, AttentionLayer):  # the MLP of a pool follows all of its heads
            stream, returned = map(to_float32, record.stream[index])
            parts.append((returned - stream)[:, None])
    return torch.cat(parts, 1)


def pushed_rows(record: Recording, layers: range, centred: bool, mlps: bool) -> Tensor:
    """The share of each patch or word in the pooled token, (B, s, D), through all layers' rows.

    Zero for other tokens, such as CLS, which are in no map.
    """
    span: slice = record.span
    share: Any = 0
    for index in layers:
        visited, row, _ = record.visited[index]
        heads, steps = _heads_and_steps(record.visited[index], record.returned[index])
        values = to_float32(visited.value).transpose(1, 2)  # (B, s, H, d)
        made = torch.einsum("bhs,bshd->bhd", row, values).flatten(1)
        made = made if visited.extra is None else made + visited.extra
        visited.compare(visited.name, made, heads.to(visited.value.dtype))
        if centred:
            mean = record.pooled.mean(values.flatten(2), span)
            values = values - split_heads(mean, visited.attention.heads)
        parts = (values * row.transpose(1, 2)[..., None])[:, span].flatten(2)
        share = share + push_forward(steps, heads, parts)[1]
        for steps, token, returned in steps_onwards(record, index, mlps):
            made, share = push_forward(steps, token, share)
            record.compare(f"what follows the attention of layer {index}", made, returned)
    return F.pad(share, (0, 0, span.start, row.shape[-1] - span.stop))


def vectors_of_rows(
    tower: TransformerTower, call: Call, layers: range, shares: Callable[..., Tensor]
) -> tuple[PooledEmbedding, Tensor]:
    """The embedding's vectors (B, n, E) of shares (B, n, D) of the pooled row of each layer."""
    embedded = pooled_rows(tower, call, layers)
    token, record = embedded.token, embedded.run.record
    with torch.no_grad(), mha.autocast_disabled(token):
        return embedded, push_forward(embedded.head(tower), token, shares(record, layers))[1]


def vectors_of_mean(
    tower: TransformerTower, call: Call, centred: bool
) -> tuple[PooledEmbedding, Tensor]:
    """The share of each token in the embedding, (B, s, E), where their mean is pooled."""
    embedded = pooled_embedding(tower, call)
    token, before, pooled = embedded.token, tower.steps_before_mean, embedded.run.record.pooled
    steps = embedded.head(tower)
    with torch.no_grad(), mha.autocast_disabled(token):
        share = mha.initial_row("mean", token[..., 0], 0, pooled)[..., None]  # (B, N, 1)
        mean = pooled.mean(run_steps(steps[:before], token), slice(None))[:, 0]
        entered = token - pooled.mean(token, slice(None)) if centred else token
        flat, parts = (each.flatten(0, 1) for each in (token, entered))  # (B N, D)
        _, parts = push_forward(steps[:before], flat, parts[:, None])
        parts = parts.view(*token.shape[:2], -1)
        _, vectors = push_forward(steps[before:], mean, parts * share)
        return embedded, F.pad(vectors, (0, 0, tower.prefix, 0))


def products_of_resnet(
    tower: ResNetTower, call: Call, directions: Tensor, centred: bool, by_head: bool
) -> Computed:
    """The products of each position's or head's share in the unit embedding with (n, B or 1, E)."""
    embedded = pooled_embedding(tower, call)
    with torch.no_grad():
        parts = []
        for rows in torch.split(directions.to(embedded.token), _TOGETHER):
            direction = Direction.of(rows, embedded.direction.scale)
            maps = tower.contributions(embedded.token, direction, centred=centred)[0]
            parts.append(maps.sum((3, 4))[:, :, None] if by_head else maps.sum(2))
        return decompose(tower, call, embedded, torch.cat(parts), directions)


@torch.no_grad()
def decompose(
    tower: Tower, call: Call, embedded: PooledEmbedding, values: Tensor, directions: Tensor | None
) -> Computed:
    """Products (n, B, s or h, w) of the unit embedding's parts, and those of what no part is in."""
    record = embedded.run.record
    unit = to_float32(embedded.embedding.detach()) * embedded.direction.scale[:, None]
    scored = record.scored.detach()  # which may be more than the tower's
    made = unit if scored.shape == unit.shape else torch.full_like(scored, torch.nan)
    record.compare("the embedding", made, F.normalize(scored, dim=-1))
    total = products(unit, directions)
    # some tokens have no place in a map
    span = record.span if values.ndim == 3 else slice(None)
    inside = values.flatten(2)[..., span]
    return embedded.run.computed(values, (total - inside.sum(-1)).T)
