"""An attention as it ran, and the weights and outputs that follow from it.

A read is complete when it is made: nothing is filled in later.
"""

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
    """One attention as it ran: values, head outputs, and its weights or the tensors that make them.

    Attributes:
        value: values (B, H, s, d); if heads share values, they are repeated.
        out: head outputs (B, H, rows, d), from which the rest of the forward is computed.
        weights: A (B, H, rows, s), if a softmax showed it.
        query: queries (B, H, rows, d) as they entered the product with the keys.
        key: keys (B, H, s, d), likewise.
        mask: the mask that a fused attention got.
        causal: whether a fused attention let rows see only the keys up to their own.
        scale: the scale that a fused attention got.
        extra: the part (B, H d) of the pooled row's output from keys without a token, such as a
            sink.
        attention: the attention that ran, called `name` in messages.
        pooled: the token whose row is read.
        span: the patches or words among the tokens.
        features: the features (B, C, h, w) that a ResNet's pool reads.
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
        """The pooled row (..., B, H, x) of values (..., B, H, rows, x); for a pool, the first."""
        index = self.pooled.rows
        if index is None or self.attention.is_pool:
            return rows[..., 0, :]
        sequences = torch.arange(len(index), device=index.device)
        # Two index tensors with a slice between them put their dimension first.
        selected = rows[..., sequences, :, index, :]
        return selected.movedim(0, rows.ndim - 4)

    def without_extra_keys(self, count: int) -> "AttentionRead":
        """The read of the first keys alone; the later ones, such as a sink, are no tokens."""
        # The weights are made before the keys are cut, since the softmax is over all keys.
        weights = self.matrix()[..., :count]
        row = detached(self.row())
        extra_values = self.value[:, :, count:].to(row)
        extra = torch.einsum("bhs,bhsd->bhd", row[..., count:], extra_values).flatten(1)
        value = self.value[:, :, :count]
        key = None if self.key is None else self.key[:, :, :count]
        return replace(self, weights=weights, value=value, key=key, mask=None, extra=extra)

    def alone(self) -> "AttentionRead":
        """The read without a graph, unless maps are to lie in it."""
        tensors: dict[str, Any] = {}
        for name in ("out", *_SOURCES):
            tensor = getattr(self, name)
            if tensor is not None:
                tensors[name] = detached(tensor)
        return replace(self, **tensors)

    @property
    def sources(self) -> list[Tensor]:
        """The tensors that are read later, so nothing may change them in place until then."""
        tensors = [getattr(self, name) for name in _SOURCES]
        return [tensor for tensor in tensors if tensor is not None]

    def row(self) -> Tensor:
        """The pooled row of A, (B, H, s), in at least float32."""
        return self._weights(self.select)

    def matrix(self) -> Tensor:
        """A (B, H, rows, s), in at least float32."""
        return self._weights(lambda rows: rows)

    @no_graph()
    def _weights(self, select: Callable[[Tensor], Tensor]) -> Tensor:
        """The weights of the rows that a function selects of values (B, H, rows, x)."""
        with autocast_disabled(self.out):
            if self.weights is not None:
                return to_float32(select(detached(self.weights)))
            query, key = self.shown
            query = to_float32(select(query)) * self.factor
            key = to_float32(key)
            if query.ndim == key.ndim:
                logits = query @ key.mT
            else:
                # `query @ key.mT` would take the heads of a single row (B, H, d) for rows.
                column = query[..., None]
                logits = (key @ column)[..., 0]
            bias = self._bias(logits.dtype)
            if bias is None:
                return logits.softmax(-1)
            bias = select(bias)
            weights = (logits + bias).softmax(-1)
            # The softmax of a row that sees no key is NaN. Torch's fused attention has zeros there.
            return weights.masked_fill(bias.isneginf().all(-1, keepdim=True), 0)

    @torch.no_grad()
    def obeys(self, bound: float) -> bool:
        """Whether the head outputs equal A v within a bound, in every row."""
        out = to_float32(self.out)
        with autocast_disabled(out):
            recomputed = self.matrix() @ to_float32(self.value)
        return bool(agree(recomputed, out, bound=bound))

    @torch.no_grad()
    def attend(
        self, query: Tensor, group_bias: Tensor, beside: tuple[Tensor, Tensor, Tensor] | None = None
    ) -> Tensor:
        """The head outputs (B, H, G, n, d) for other queries (B, H, G, n, d), in G groups.

        A query sees the s keys that the pooled row saw. It also sees the m keys and values
        (B, H, G, m, d) that its group has `beside` these, of tokens at positions (B, G or 1, m).

        `group_bias` (B or 1, 1, G, 1, s + m) is added to the logits: minus infinity at the keys
        that a group does not see, and 0 elsewhere.
        """
        with autocast_disabled(query):
            _, keys = self.shown
            factor, bias = self._pooled_bias()  # (B, H, s)
            shape = query.shape[:4]  # (B, H, G, n)
            rows = to_float32(query) * factor
            logits = (rows.flatten(2, 3) @ to_float32(keys).mT).view(*shape, -1)
            count = logits.shape[-1]
            if bias is not None:
                bias = bias[:, :, None].expand(-1, -1, shape[2], -1)  # (B, H, G, s)
            if beside is not None:
                keys_beside, values_beside, positions = beside
                # With the groups before the heads, the keys are used as they lie in memory.
                by_group = to_float32(keys_beside).transpose(1, 2)
                products = (rows.transpose(1, 2) @ by_group.mT).transpose(1, 2)
                logits = torch.cat([logits, products], -1)
                if bias is not None:
                    bias_beside = bias.take_along_dim(positions[:, None], 3)
                    bias = torch.cat([bias, bias_beside], -1)
            if bias is not None:
                logits = logits + bias[:, :, :, None]
            logits = logits + group_bias
            weights = logits.softmax(-1)
            # The query of a pool may see no key at all, but a token always sees itself.
            if self.attention.is_pool:
                weights = weights.masked_fill(logits.isneginf().all(-1, keepdim=True), 0)
            out = weights[..., :count].flatten(2, 3) @ to_float32(self.value).to(weights)
            out = out.view(*shape, -1)
            if beside is None:
                return out
            weights_beside = weights[..., count:]
            values_beside = to_float32(values_beside).to(weights)
            # For a single key, one kernel multiplies and adds.
            if weights_beside.shape[-1] == 1:
                return torch.addcmul(out, weights_beside, values_beside)
            return out + weights_beside @ values_beside

    @torch.no_grad()
    def sees_by_head(self) -> bool:
        """Whether the pooled rows of the heads see different keys, as if weights chose the keys."""
        _, bias = self._pooled_bias()
        if bias is None:
            return False
        seen = (self.row() > 0).any(1, keepdim=True)
        return bool((bias.isneginf() & seen).any())

    @property
    def shown(self) -> tuple[Tensor, Tensor]:
        """Queries (B, H, rows, d) and keys (B, H, s, d); UnsupportedModelError without them."""
        if self.query is None or self.key is None or self.extra is not None:
            raise UnsupportedModelError(
                f"{self.name} shows no queries and keys of its tokens alone, so it cannot be "
                "computed again; use another method, such as direct."
            )
        return self.query, self.key

    def _pooled_bias(self) -> tuple[float, Tensor | None]:
        """The factor of the pooled row's products, and the bias (B, H, s) that is added to them."""
        query, key = map(to_float32, self.shown)
        if self.weights is None:
            bias = self._bias(key.dtype)
            if bias is not None:
                bias = self.select(bias)
            return self.factor, bias
        # An attention that is written out shows its weights, but not the factor of its products.
        # The logarithm of a row of weights is factor times products, less a number for each row.
        row = self.row()
        products = (key * self.select(query)[..., None, :]).sum(-1)
        unseen = row <= 0
        factor, fitted = _fit_rows(products, row.log(), unseen)
        # A weight may be 0 only because its type has no smaller number. It grows when other keys
        # are hidden, so this key is seen.
        least = math.log(torch.finfo(self.weights.dtype).tiny)
        unseen &= fitted > least
        return factor, torch.zeros_like(row).masked_fill(unseen, -torch.inf)

    @property
    def factor(self) -> float:
        """The factor of the products of queries and keys."""
        query, _ = self.shown
        if self.scale is not None:
            return float(self.scale)
        return float(query.shape[-1] ** -0.5)

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        """The mask as numbers (B, H, rows, s) to add to the products; None without a mask."""
        shape = (*self.out.shape[:3], self.value.shape[2])
        if self.causal:
            bias = torch.full(shape[2:], -torch.inf, dtype=dtype, device=self.out.device).triu(1)
            return bias.expand(shape)
        mask = self.mask
        if mask is None:
            return None
        if mask.dtype == torch.bool:
            zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            mask = zeros.masked_fill(~mask, -torch.inf)
        return mask.to(dtype).expand(shape)


def _fit_rows(x: Tensor, y: Tensor, left_out: Tensor) -> tuple[float, Tensor]:
    """Fit y = slope * x + intercept by least squares, with one slope but an intercept for each row.

    Entries where `left_out` is true do not count. Returns the slope and the fitted y.
    """
    count = (~left_out).sum(-1, keepdim=True)
    x_mean = x.masked_fill(left_out, 0).sum(-1, keepdim=True) / count
    y_mean = y.masked_fill(left_out, 0).sum(-1, keepdim=True) / count
    x_offset = (x - x_mean).masked_fill(left_out, 0)
    y_offset = (y - y_mean).masked_fill(left_out, 0)
    slope = float((x_offset * y_offset).sum() / x_offset.square().sum().clamp(min=1e-30))
    return slope, slope * (x - x_mean) + y_mean
