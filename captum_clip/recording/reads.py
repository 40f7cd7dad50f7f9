"""An attention as it ran, and what follows from it; nothing of a read is filled in later."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from ..maps import autocast_disabled, to_float32
from ..models.attentions import Attention, PooledToken
from ..models.rounding import agree
from .graph import detached, no_graph

_SOURCES: Final = ("value", "query", "key", "weights", "mask")


@dataclass(frozen=True, eq=False)
class AttentionRead:
    """One attention as it ran: values, the heads' outputs, and its weights or what they are of.

    Attributes:
        value: (B, H, s, d); where heads share values, they are repeated.
        out: the heads' outputs (B, H, rows, d), of which all that follows is made.
        weights: A (B, H, rows, s) where a softmax showed it.
        query: (B, H, rows, d) and `key` (B, H, s, d) as they entered their product.
        scale: of a fused product, like `mask` and `causal`.
        extra: (B, H d), what keys without a token, such as a sink, gave the pooled row.
        attention: the module that it ran in, called `name` in messages.
        pooled: the token whose row is read.
        span: the patches or words among the tokens.
        features: (B, C, h, w), which a ResNet's pool reads.
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
    attention: Attention = field(kw_only=True)
    name: str = field(kw_only=True, default="an attention")
    pooled: PooledToken = field(kw_only=True, default_factory=PooledToken)
    span: slice = field(kw_only=True, default_factory=lambda: slice(None))
    features: Tensor = field(kw_only=True, default_factory=lambda: torch.empty(0))

    def select(self, rows: Tensor) -> Tensor:
        """The pooled row (..., B, H, x) of values (..., B, H, rows, x), a pool's first one."""
        index = None if self.attention.is_pool else self.pooled.rows
        if index is None:
            return rows[..., 0, :]
        return rows[..., torch.arange(len(index), device=index.device), :, index, :].movedim(
            0, rows.ndim - 4
        )

    def without_extra_keys(self, count: int) -> "AttentionRead":
        """The same with its first keys alone: those after them, such as a sink, are no tokens."""
        # the weights are made first, since a softmax is over all keys
        row = detached(self.row())
        extra = torch.einsum(
            "bhs,bhsd->bhd", row[..., count:], self.value[:, :, count:].to(row)
        ).flatten(1)
        weights, value = self.matrix()[..., :count], self.value[:, :, :count]
        key = None if self.key is None else self.key[:, :, :count]
        return replace(self, weights=weights, value=value, key=key, mask=None, extra=extra)

    def alone(self) -> "AttentionRead":
        """The same without a graph."""
        parts = {name: getattr(self, name) for name in ("out", *_SOURCES)}
        alone: dict[str, Any] = {n: detached(x) for n, x in parts.items() if x is not None}
        return replace(self, **alone)

    @property
    def sources(self) -> list[Tensor]:
        """The tensors that it is computed from later, which nothing may change in place."""
        return [x for name in _SOURCES if (x := getattr(self, name)) is not None]

    def row(self) -> Tensor:
        """The pooled row of A, (B, H, s), in at least float32."""
        return self._weights(self.select)

    def matrix(self) -> Tensor:
        """A (B, H, rows, s), in at least float32."""
        return self._weights(lambda rows: rows)

    @no_graph()
    def _weights(self, selected: Callable[[Tensor], Tensor]) -> Tensor:
        with autocast_disabled(self.out):
            if self.weights is not None:
                return to_float32(selected(detached(self.weights)))
            query, key = self.shown
            query, key = to_float32(selected(query)) * self.factor, to_float32(key)
            # of one row a product with one column, since one with a matrix would be made for all
            is_row = query.ndim < key.ndim
            logits = (key @ query[..., None])[..., 0] if is_row else query @ key.mT
            bias = self._bias(logits.dtype)
            return _softmax_over_keys(logits, None if bias is None else selected(bias))

    @torch.no_grad()
    def obeys(self, bound: float) -> bool:
        """Whether the heads' outputs are what A v gives, in every row."""
        out = to_float32(self.out)
        with autocast_disabled(out):
            recomputed = self.matrix() @ to_float32(self.value)
        return bool(agree(recomputed, out, bound=bound))

    @torch.no_grad()
    def attend(
        self, query: Tensor, seen: Tensor, own: tuple[Tensor, Tensor, Tensor] | None = None
    ) -> Tensor:
        """The heads' outputs (B, H, G, n, d) for other queries (B, H, G, n, d), of G groups.

        A query sees what the pooled row saw. It also sees its group's `own` keys and values
        (B, H, G, m, d) of tokens at some positions (B, G or 1, m). To its products `seen` is added,
        (B or 1, 1, G, 1, s + m), infinity less for what its group does not see.
        """
        with autocast_disabled(query):
            (_, keys), (factor, bias) = self.shown, self._pooled_bias()
            rows, shape = to_float32(query) * factor, query.shape[:4]
            bias = None if bias is None else bias[:, :, None].expand(-1, -1, shape[2], -1)
            logits = (rows.flatten(2, 3) @ to_float32(keys).mT).view(*shape, -1)
            count = logits.shape[-1]
            if own is not None:
                # groups before heads, as they lie in memory
                key = to_float32(own[0]).transpose(1, 2)
                beside = (rows.transpose(1, 2) @ key.mT).transpose(1, 2)
                logits = torch.cat([logits, beside], -1)
                if bias is not None:
                    bias = torch.cat([bias, bias.take_along_dim(own[2][:, None], 3)], -1)
            logits = (logits if bias is None else logits + bias[:, :, :, None]) + seen
            weights = logits.softmax(-1)
            if self.attention.is_pool:  # a token always sees itself
                weights = weights.masked_fill(logits.isneginf().all(-1, keepdim=True), 0)
            out = weights[..., :count].flatten(2, 3) @ to_float32(self.value).to(weights)
            out = out.view(*shape, -1)
            if own is None:
                return out
            beside, value = weights[..., count:], to_float32(own[1]).to(weights)
            if beside.shape[-1] == 1:  # one kernel
                return torch.addcmul(out, beside, value)
            return out + beside @ value

    @torch.no_grad()
    def sees_by_head(self) -> bool:
        """Whether the heads' pooled rows see different keys, as where weights choose them."""
        _, bias = self._pooled_bias()
        if bias is None:
            return False
        seen = (self.row() > 0).any(1, keepdim=True)
        return bool((bias.isneginf() & seen).any())

    @property
    def shown(self) -> tuple[Tensor, Tensor]:
        """Queries (B, H, rows, d) and keys (B, H, s, d), or UnsupportedModelError without them."""
        if self.query is None or self.key is None or self.extra is not None:
            raise UnsupportedModelError(
                f"{self.name} shows no queries and keys of its tokens alone, so it cannot be "
                "computed again; use another method, such as direct."
            )
        return self.query, self.key

    def _pooled_bias(self) -> tuple[float, Tensor | None]:
        """The factor of the pooled row's products, and what is added to them (B, H, s)."""
        query, key = map(to_float32, self.shown)
        if self.weights is None:
            bias = self._bias(key.dtype)
            return self.factor, None if bias is None else self.select(bias)
        # written-out attention shows its weights, and not the scale of its products
        row = self.row()
        products = (key * self.select(query)[..., None, :]).sum(-1)
        unseen, pair = row <= 0, (products, row.log())
        count = (~unseen).sum(-1, keepdim=True)
        means = [x.masked_fill(unseen, 0).sum(-1, keepdim=True) / count for x in pair]
        spread, logits = (
            (x - mean).masked_fill(unseen, 0) for x, mean in zip(pair, means, strict=True)
        )
        factor = float((spread * logits).sum() / spread.square().sum().clamp(min=1e-30))
        # a weight may be too small for its type, and grows where others are hidden
        least = math.log(torch.finfo(self.weights.dtype).tiny)
        unseen &= factor * (products - means[0]) + means[1] > least
        return factor, torch.zeros_like(row).masked_fill(unseen, -torch.inf)

    @property
    def factor(self) -> float:
        """The factor of the products of queries and keys."""
        width: Any = self.shown[0].shape[-1]
        return float(width**-0.5 if self.scale is None else self.scale)

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


def _softmax_over_keys(logits: Tensor, bias: Tensor | None) -> Tensor:
    """Over keys, and zero where a row sees none, as in torch's fused attention."""
    if bias is None:
        return logits.softmax(-1)
    return (logits + bias).softmax(-1).masked_fill(bias.isneginf().all(-1, keepdim=True), 0)
