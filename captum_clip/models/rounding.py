"""Whether numbers that were computed twice agree: one comparison, and one table of bounds."""

from typing import Final

import torch
from torch import Tensor

from ..maps import to_float32

ROUNDING: Final = {
    torch.float64: 1e-6,  # A softmax or a norm may be computed in single precision.
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 3e-2,
}
"""The relative difference that computing something once more may make, by type of numbers."""


def bound_of(*dtypes: torch.dtype | None) -> float:
    """The bound of the coarsest of some types; None stands for no type."""
    return max(ROUNDING[dtype] for dtype in dtypes if dtype is not None)


def difference(computed: Tensor, expected: Tensor, *, dim: int | None = None) -> Tensor:
    """The length of the difference of two tensors, in at least float32; of each row with `dim`."""
    off: Tensor = to_float32(computed - expected).norm(dim=dim)
    return off


def size_of(*tensors: Tensor, dim: int | None = None) -> Tensor:
    """The lengths of some tensors together, in at least float32; of each row with `dim`."""
    lengths = [to_float32(each).norm(dim=dim) for each in tensors]
    return lengths[0] if len(lengths) == 1 else torch.stack(lengths).sum(0)


def is_rounding(off: Tensor, size: Tensor, bound: float) -> Tensor:
    """Where differences are at most a share of some sizes.

    A difference that is no number is no rounding. Where a size overflows, the caller decides.
    """
    return off <= bound * size


def agree(
    computed: Tensor, expected: Tensor, *sizes: Tensor, bound: float, dim: int | None = None
) -> Tensor:
    """Where tensors agree within the bound, relative to `expected` and to `sizes` together."""
    off = difference(computed, expected, dim=dim)
    return is_rounding(off, size_of(expected, *sizes, dim=dim), bound)
