"""An attention as it ran."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from ..maps import autocast_disabled, to_float32
from ..models.attentions import Attention, PooledToken
from .graph import detached, no_graph


def _ignore(*call: Any) -> None:
    """Compare with nothing, of a read that no recording has."""


@dataclass(eq=False)
class AttentionRead:
    """One attention as it ran: values, the heads' outputs, and its weights or what they are of.

    Attributes:
        value: (B, H, s, d); where heads share values, they are repeated.
        out: the heads' outputs (B, H, rows, d), of which all that follows is made.
        weights: A (B, H, rows, s) where a softmax showed it.
        query: (B, H, rows, d) and `key` (B, H, s, d) as they entered their product.
        scale: of a fused product, like `mask` and `causal`.
        extra: (B, H d), what keys without a token, such as a sink, gave the pooled row.
    """

    value: Tensor
    out: Tensor
    weights: Tensor | None = None
    query: Tensor | None = None
    key: Tensor | None = None
    mask: Tensor | None = None
    causal: bool = False
    scale: float | None = None
    extra: Tensor | None = None
    # where it ran, which the recording fills in; `output` (B, rows, D) is what the module returned
    output: Tensor = field(init=False)
    attention: Attention = field(init=False)
    name: str = field(init=False, default="an attention")
    pooled: PooledToken = field(init=False, default_factory=PooledToken)
    span: slice = field(init=False, default_factory=lambda: slice(None))
    features: Tensor = field(init=False)  # (B, C, h, w), which a ResNet's pool reads
    compare: Callable[..., None] = field(init=False, default=_ignore)
    watched: Callable[[Tensor], object] = field(init=False, default=_ignore)

    def select(self, rows: Tensor) -> Tensor:
        """The pooled row (..., B, H, x) of values (..., B, H, rows, x), a pool's first one."""
        index = None if self.attention.is_pool else self.pooled.rows
        if index is None:
            return rows[..., 0, :]
        return rows[..., torch.arange(len(index), device=index.device), :, index, :].movedim(
            0, rows.ndim - 4
        )

    def cut(self, count: int) -> None:
        """Leave out the keys beyond `count`, which are no tokens, such as a sink, for what follows.

        The weights are made first, since a softmax is over all keys.
        """
        row, self.weights = detached(self.row), self.matrix()
        self.extra = torch.einsum(
            "bhs,bhsd->bhd", row[..., count:], self.value[:, :, count:].to(row)
        )
        self.extra = self.extra.flatten(1)
        self.__dict__["row"], self.weights = row[..., :count], self.weights[..., :count]
        self.value, self.compare = self.value[:, :, :count], _ignore

    def detach(self) -> "AttentionRead":
        """Take it out of its graph."""
        for name in ("value", "out", "weights", "query", "key", "mask"):
            tensor = getattr(self, name)
            setattr(self, name, None if tensor is None else detached(tensor))
        return self

    def watch(self) -> None:
        """See that nothing changes in place what is read later."""
        for tensor in (self.value, self.query, self.key, self.weights, self.mask):
            if tensor is not None:
                self.watched(tensor)

    def alone(self) -> "AttentionRead":
        """The same without a graph, and without the recording that it is of."""
        alone = copy(self).detach()
        alone.compare = alone.watched = _ignore
        return alone

    def without_weights(self) -> "AttentionRead":
        """The same with its values alone, which are all that a sum over tokens needs."""
        alone = copy(self)
        alone.weights = alone.query = alone.key = alone.mask = None
        alone.out = alone.value  # so that no more is kept
        alone.__dict__.pop("row", None)
        return alone

    @cached_property
    def row(self) -> Tensor:
        """The pooled row of A, (B, H, s), in at least float32; compared with what ran."""
        row = self.any_row()
        made = torch.einsum("bhs,bhsd->bhd", row, to_float32(self.value.detach()))
        self.compare(self.name, made.flatten(1), self.select(self.out).flatten(1))
        return row

    @no_graph()
    def any_row(self) -> Tensor:
        """The same, of which what it makes of the values is to be compared elsewhere."""
        with autocast_disabled(self.out):
            if self.weights is not None:
                return to_float32(self.select(detached(self.weights)))
            query, key, factor = self.product()
            # one row as a sum over channels: a product of matrices would be made for all rows
            logits = (key * (self.select(query) * factor)[..., None, :]).sum(-1)
            bias = self._bias(logits.dtype)
            return softmax_over_keys(logits, None if bias is None else self.select(bias))

    @no_graph()
    def matrix(self, *, compare: bool = True) -> Tensor:
        """A (B, H, rows, s), in at least float32, compared with what ran by one random vector."""
        with autocast_disabled(self.out):
            if self.weights is not None:
                matrix = to_float32(detached(self.weights))
            else:
                query, key, factor = self.product()
                logits = (query * factor) @ key.mT
                matrix = softmax_over_keys(logits, self._bias(logits.dtype))
            if not compare:
                return matrix
            # two matrices that agree along a random vector are the same, at the price of one column
            value, out = to_float32(self.value), to_float32(self.out)
            vector = _any_vector(value.shape[-1]).to(value)
            made = (matrix @ (value @ vector)[..., None])[..., 0].flatten(1)
            returned = (out @ vector).to(self.out.dtype).flatten(1)
            self.compare(self.name, made, returned, out.flatten(1))
            return matrix

    @torch.no_grad()
    def asked(self, query: Tensor, hidden: Tensor, own: tuple[Tensor, ...] | None = None) -> Tensor:
        """The heads' outputs (B, H, G, n, d) for other queries (B, H, G, n, d), of G groups.

        A query sees what the pooled row saw, without the tokens `hidden` (B or 1, G, s) of its
        group. It also sees its group's `own` keys and values (B, H, G, n, d) of tokens at some
        places (B, n), without hidden ones (B, G, n).
        """
        factor, bias = self._pooled_bias
        with autocast_disabled(query):
            assert self.key is not None
            rows, shape = to_float32(query) * factor, query.shape[:4]
            logits = (rows.flatten(2, 3) @ to_float32(self.key).mT).reshape(*shape, -1)
            logits = logits + bias[:, :, None, None]
            logits = logits.masked_fill(hidden[:, None, :, None], -torch.inf)
            count = logits.shape[-1]
            if own is not None:
                key, value, shut, places = own
                beside = rows @ to_float32(key).mT
                beside = beside + bias.take_along_dim(places[:, None], 2)[:, :, None, None]
                beside = beside.masked_fill(shut[:, None, :, None], -torch.inf)
                logits = torch.cat([logits, beside], -1)
            unseen = logits.isneginf().all(-1, keepdim=True)
            weights = logits.softmax(-1).masked_fill(unseen, 0)
            others = weights[..., :count].flatten(2, 3) @ to_float32(self.value)
            out = others.reshape(*shape, -1)
            return out if own is None else out + weights[..., count:] @ to_float32(value)

    @cached_property
    def _pooled_bias(self) -> tuple[float, Tensor]:
        """The factor of the pooled row's products, and what is added to them (B, H, s)."""
        if self.query is None or self.key is None:
            raise UnsupportedModelError(
                f"{self.name} shows no queries and keys, so it cannot be computed again; use "
                "another method, such as direct."
            )
        query, key, factor = self.product()
        bias = query.new_zeros((*key.shape[:2], key.shape[2]))
        if self.weights is None:
            addend = self._bias(query.dtype)
            return factor, bias if addend is None else self.select(addend)
        # written-out attention shows its weights, and not the scale of its products
        row = self.any_row()
        unseen = row <= 0
        products = (key * self.select(query)[..., None, :]).sum(-1)
        count = (~unseen).sum(-1, keepdim=True)
        pair = (each.masked_fill(unseen, 0) for each in (products, row.log()))
        made, logits = (
            (each - each.sum(-1, keepdim=True) / count).masked_fill(unseen, 0) for each in pair
        )
        factor = float((made * logits).sum() / made.square().sum().clamp(min=1e-30))
        return factor, bias.masked_fill(unseen, -torch.inf)

    def product(self) -> tuple[Tensor, Tensor, float]:
        """Queries, keys and the factor of their products."""
        assert self.query is not None
        assert self.key is not None
        factor = self.query.shape[-1] ** -0.5 if self.scale is None else self.scale
        return to_float32(self.query), to_float32(self.key), factor

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        """The addend of the products, (B, H, rows, s)."""
        shape = (*self.out.shape[:3], self.value.shape[2])
        bias = self.mask
        if bias is not None and bias.dtype == torch.bool:
            zeros = torch.zeros(bias.shape, dtype=dtype, device=bias.device)
            bias = zeros.masked_fill(~bias, -torch.inf)
        if self.causal:
            bias = torch.full(shape[2:], -torch.inf, dtype=dtype, device=self.out.device).triu(1)
        return None if bias is None else bias.to(dtype).expand(shape)


def softmax_over_keys(logits: Tensor, bias: Tensor | None) -> Tensor:
    """Over keys, and zero where a row sees none, as in torch's fused attention."""
    if bias is None:
        return logits.softmax(-1)
    weights = (logits + bias).softmax(-1)
    return weights.masked_fill(bias.isneginf().all(-1, keepdim=True), 0)


@cache
def _any_vector(width: int) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(0), device="cpu")
