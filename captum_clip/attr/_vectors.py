"""The embedding as a sum of vectors, one for each position, of which maps are products."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..maps import to_float32
from ..models.steps import Direction, push_forward, run_steps, split_heads
from ..models.text import PostNormLayer, TextTower
from ..models.towers import ResNetTower, Tower, TransformerTower
from ..recording import LayerRecord
from ..similarity import Similarity
from . import _attention as mha
from ._call import Call, Computed
from ._engine import PooledEmbedding, pooled_embedding

_TOGETHER = 64  # products of a convolutional tower at a time, which bounds the memory


def products(vectors: Tensor, directions: Tensor | None) -> Tensor:
    """Vectors (B, ..., E) times others (n, B or 1, E), by default the axes: (n, B, ...)."""
    if directions is None:
        return vectors.movedim(-1, 0)
    directions = directions.to(vectors).expand(-1, len(vectors), -1)
    return torch.einsum("nbe,b...e->nb...", directions, vectors)


def vectors_of_rows(
    tower: TransformerTower, call: Call, layers: range, centred: bool
) -> tuple[PooledEmbedding, Tensor]:
    """The share of each token in the embedding, (B, s, E), through the pooled row of each layer."""
    share: list[Any] = [0]  # in the pooled token so far, (B, s, D)

    @torch.no_grad()
    def visit(index: int, record: LayerRecord) -> None:
        attention, pooled = tower.attentions[index], record.pooled
        row = mha.compare_output(record)
        with mha.autocast_disabled(row):
            heads = mha.heads_output(record, row)
            values = mha.projected_heads(record, "value").transpose(1, 2)  # (B, s, H, d)
            if centred:
                mean = pooled.mean(values.flatten(2), record.span)
                values = values - split_heads(mean, attention.heads)
            parts = (values * row.transpose(1, 2)[..., None]).flatten(2)
            steps = (*attention.merge_steps(), *attention.branch())
            share[0] = share[0] + push_forward(steps, heads, parts)
            if isinstance(attention, PostNormLayer):
                attended = mha.merged(record, heads).to(record.tokens.dtype)
                stream = attention.entering(pooled.read(record.tokens), attended)
                for norm, token in zip(attention.stream_norms, stream, strict=True):
                    share[0] = push_forward((norm,), to_float32(token), share[0])

    stream = range(layers.start, min(layers.stop, len(tower.layers)))
    embedded = pooled_embedding(tower, call, (layers, visit), stream=stream)
    with torch.no_grad(), mha.autocast_disabled(embedded.token):
        return embedded, push_forward(embedded.head(tower), embedded.token, share[0])


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
        parts = push_forward(steps[:before], flat, parts[:, None]).view(*token.shape[:2], -1)
        vectors = push_forward(steps[before:], mean, parts * share)
        return embedded, F.pad(vectors, (0, 0, tower.prefix, 0))


def products_of_resnet(
    tower: ResNetTower, call: Call, directions: Tensor, centred: bool
) -> Computed:
    """The products of each position's share in the unit embedding with vectors (n, B or 1, E)."""
    embedded = pooled_embedding(tower, call)
    with torch.no_grad():
        parts = []
        for rows in torch.split(directions.to(embedded.token), _TOGETHER):
            direction = Direction.of(rows, embedded.direction.scale)
            maps = tower.contributions(embedded.token, direction, centred=centred)[0]
            parts.append(maps.sum(2))
        return decompose(tower, call, embedded, torch.cat(parts), directions)


@torch.no_grad()
def decompose(
    tower: Tower, call: Call, embedded: PooledEmbedding, values: Tensor, directions: Tensor | None
) -> Computed:
    """Products (n, B, s or h, w) of the unit embedding's parts, and those of what no part is in."""
    unit = to_float32(embedded.embedding.detach()) * embedded.direction.scale[:, None]
    if call.similarity is None:  # the model is changed, so more may follow the tower's end
        assert isinstance(call.forward, Similarity)
        text = isinstance(tower, TextTower)
        returned = call.embeddings() if text else call.forward.clip.image_features(*call.images)
        made = unit if returned.shape == unit.shape else torch.full_like(returned, torch.nan)
        embedded.run.record.compare("the embedding", made, F.normalize(returned, dim=-1))
    total = products(unit, directions)
    span = embedded.run.record.span if isinstance(tower, TransformerTower) else slice(None)
    inside = values.flatten(2)[..., span]
    return embedded.run.computed(values, (total - inside.sum(-1)).T)
