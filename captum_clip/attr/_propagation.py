"""Steps that the methods share once gradients and attention are known."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..models.towers import Pooling
from ._attention import exact


def weighted(gradient: Tensor, attention: Tensor, *, dim: int) -> Tensor:
    """E_h[(gradient * attention)^+], the heads at `dim`.

    Attention is never negative, so the ReLU may as well be taken of the gradient alone.
    """
    return (gradient.clamp(min=0) * attention).mean(dim)


def weighted_rows(gradient: Tensor, rows: Tensor) -> Tensor:
    """The same for K targets and L layers at once, as products of small matrices.

    Args:
        gradient: (K, B, H, s).
        rows: the CLS attention of the layers, (L, B, H, s).

    Returns:
        (L, K, B, s).
    """
    with exact(gradient):
        steps = torch.einsum("kbhs,lbhs->lkbs", gradient.clamp(min=0), rows)
    return steps / gradient.shape[2]


def pooled_row(pooling: Pooling, like: Tensor) -> Tensor:
    """The row that a tower's output reads, (B, s): e_CLS, or the mean of the patches' rows."""
    row = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
    if pooling == "cls":
        row[:, 0] = 1
    else:
        row[:, 1:] = 1 / (row.shape[1] - 1)
    return row


def start_row(gradient: Tensor) -> Tensor:
    """The row to read, (B, s), given the gradient (B, s, D) of the last attention's output.

    e_CLS wherever the score depends on the CLS token, else the mean of the patches' rows.
    """
    like = gradient[..., 0]
    cls, mean = pooled_row("cls", like), pooled_row("mean", like)
    return torch.where(gradient[:, 0].any(-1, keepdim=True), cls, mean)


def read_row(row: Tensor, matrix: Tensor) -> Tensor:
    """Row (B, s) times matrix (B, s, s)."""
    with exact(matrix):
        return torch.einsum("bi,bij->bj", row.to(matrix.dtype), matrix)


def propagated(row: Tensor, matrices: Iterable[Tensor]) -> Tensor:
    """Apply v <- v + v M, one matrix (B, s, s) after the other, from the top layer down."""
    for matrix in matrices:
        row = row + read_row(row, matrix)
    return row
