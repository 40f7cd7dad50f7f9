"""What enters modules and leaves them: which tokens of a tower are read, and see which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PooledToken:
    """Which token of every sequence is read, and which tokens attend to which."""

    rows: Tensor | None = None  # (B,), the token that is read; None for the first one everywhere
    visible: Tensor | None = None  # (B, s, s), whether a row attends to a column; None for all

    def read(self, tokens: Tensor) -> Tensor:
        """The token that is read, (..., B, s, D) -> (..., B, D)."""
        if self.rows is None:
            return tokens[..., 0, :]
        return tokens[..., torch.arange(len(self.rows), device=self.rows.device), self.rows, :]

    def row_of(self, like: Tensor) -> Tensor:
        """1 at the token that is read and 0 elsewhere, (B, s), for values (B, s)."""
        row = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
        if self.rows is None:
            row[:, 0] = 1
            return row
        return row.scatter_(1, self.rows[:, None], 1)

    def hidden(self) -> Tensor | None:
        """The tokens that the row that is read does not see, (B, s); None where it sees all."""
        return None if self.visible is None else ~self.read(self.visible)

    def masked(self, products: Tensor) -> Tensor:
        """Queries times keys, (B, H, s) of the row that is read or (B, H, s, s), before softmax."""
        if self.visible is None:
            return products
        visible = self.read(self.visible) if products.ndim == 3 else self.visible
        # minus infinity would make NaN of a row that sees nothing, such as one of padding
        return products.masked_fill(~visible[:, None], torch.finfo(products.dtype).min)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """The same as what is added to the products, (B, 1, s, s)."""
        if self.visible is None:
            return None
        return self.masked(torch.zeros_like(self.visible, dtype=dtype)[:, None])

    def mean(self, tokens: Tensor, span: slice) -> Tensor:
        """Mean (B, 1, D) of the tokens of a span, of those that the row sees."""
        if self.visible is None:
            return tokens[:, span].mean(1, keepdim=True)
        seen = self.read(self.visible)[:, span, None].to(tokens.dtype)
        return (tokens[:, span] * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)


class Entry(NamedTuple):
    """What entered a tower."""

    size: tuple[int, int]  # height and width of images; (1, T) for texts
    batch: int
    pooled: PooledToken


def first_part(result: Any) -> Tensor:
    """The first of what a module returned, which may be a tuple."""
    part: Tensor = result[0] if isinstance(result, tuple) else result
    return part


def with_first_part(result: Any, part: Tensor) -> Any:
    """`result` with `part` in the place of its first."""
    return (part, *result[1:]) if isinstance(result, tuple) else part


def argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], index: int, name: str) -> Tensor:
    """An argument of a call, however it was handed over."""
    value: Tensor = args[index] if len(args) > index else kwargs[name]
    return value
