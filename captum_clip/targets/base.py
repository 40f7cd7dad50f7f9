"""Target: K directions in CLIP's embedding space, each with a name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..checks import is_integer, show
from ..errors import TargetError
from ..maps import unusable

Source = Literal["text", "image"]
_ZERO = 1e-6  # a direction this short, next to unit encodings, is rounding


@dataclass(frozen=True, eq=False)
class Target:
    """K target directions.

    Attributes:
        embeddings: unit rows (K, D), L2-normalised after all arithmetic.
        norms: lengths (K,) that the rows had before; a word whose row is short hardly matters.
        names: one name per row.
        source: "text" or "image" where all rows come from embeddings of such; None elsewhere.

    ``-t`` negates (negative saliency), ``a - b`` subtracts unit rows, ``t[i]`` picks rows (an
    index, a slice, a list or a name), ``len(t)`` is K. There is no ``+``: several targets go side
    by side with :func:`captum_clip.targets.concatenate`.
    """

    embeddings: Tensor
    norms: Tensor
    names: tuple[str, ...]
    source: Source | None = None

    def __post_init__(self) -> None:
        # Made under inference_mode, tensors could never take part in a gradient; copies can.
        with torch.inference_mode(False):
            for part in ("embeddings", "norms"):
                tensor = getattr(self, part)
                if tensor.is_inference():
                    object.__setattr__(self, part, tensor.clone())

    @classmethod
    def of(cls, rows: Tensor, names: Sequence[str], source: Source | None = None) -> Target:
        """A target of rows (K, D) of any length; kept detached, in at least float32.

        Raises:
            TargetError: not (K, D), not finite, a row without direction, or not K names.
        """
        if not isinstance(rows, Tensor) or rows.ndim != 2 or 0 in rows.shape:
            shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise TargetError(f"Target: expected rows of shape (K, D), got {shape}.")
        if reason := unusable(rows):
            raise TargetError(f"Target: expected rows of plain numbers, got {reason}.")
        if len(names) != len(rows):
            raise TargetError(f"Target: {len(rows)} rows need as many names, got {len(names)}.")
        zero = max(_ZERO, torch.finfo(rows.dtype).eps if rows.is_floating_point() else 0)
        rows = rows.detach().to(torch.promote_types(rows.dtype, torch.float32))
        norms = rows.norm(dim=1)
        for name, norm in zip(names, norms.tolist(), strict=True):
            if not norm < float("inf"):
                raise TargetError(f"Target: the row of {name!r} holds NaN or infinity.")
            if norm < zero:
                raise TargetError(
                    f"Target: {name!r} has no direction (length {norm:.1e}); with it and without "
                    "it the model sees the same, so there is nothing to explain."
                )
        return cls(rows / norms[:, None], norms, tuple(names), source)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Target]:
        return (self[index] for index in range(len(self)))

    def __neg__(self) -> Target:
        names = tuple(f"not {name}" for name in self.names)
        return Target(-self.embeddings, self.norms, names, self.source)

    def __sub__(self, other: Target) -> Target:
        if not isinstance(other, Target):
            return NotImplemented
        if len(other) not in (1, len(self)) and len(self) != 1:
            raise TargetError(
                f"Target: cannot subtract {len(other)} rows from {len(self)}; the counts must be "
                "equal, or one of them 1."
            )
        _check_sizes("Target", [self, other])
        rows = self.embeddings - other.embeddings.to(self.embeddings.device)
        left = self.names if len(self) == len(rows) else self.names * len(rows)
        right = other.names if len(other) == len(rows) else other.names * len(rows)
        names = [f"{a} - {b}" for a, b in zip(left, right, strict=True)]
        return Target.of(rows, names, _common_source([self, other]))

    def __getitem__(self, key: int | str | slice | Sequence[int] | Tensor) -> Target:
        chosen = self._positions(key)
        names = tuple(self.names[index] for index in chosen)
        return Target(self.embeddings[chosen], self.norms[chosen], names, self.source)

    def _positions(self, key: int | str | slice | Sequence[int] | Tensor) -> list[int]:
        if isinstance(key, slice):
            chosen = list(range(len(self)))[key]
        elif isinstance(key, str):
            chosen = [index for index, name in enumerate(self.names) if name == key]
        else:
            listed = key.tolist() if isinstance(key, (Tensor, np.ndarray, np.integer)) else key
            several = listed if isinstance(listed, Iterable) else [listed]
            chosen = [i.item() if isinstance(i, np.integer) else i for i in several]
            if not all(is_integer(index) for index in chosen):
                raise TargetError(f"Target: expected indices, a slice or a name, got {show(key)}.")
            if any(not -len(self) <= index < len(self) for index in chosen):
                raise IndexError(f"Target: index {show(key)} is out of range for {len(self)} rows.")
            chosen = [index % len(self) for index in chosen]
        if not chosen:
            raise TargetError(
                f"Target: {show(key)} picks no row; the names are {list(self.names)}."
            )
        return chosen

    def to(self, device: torch.device | str) -> Target:
        """The same target on another device."""
        return Target(self.embeddings.to(device), self.norms.to(device), self.names, self.source)

    def __repr__(self) -> str:
        return f"Target({list(self.names)})"


def _common_source(targets: Sequence[Target]) -> Source | None:
    sources = {target.source for target in targets}
    return sources.pop() if len(sources) == 1 else None


def _check_sizes(caller: str, targets: Sequence[Target]) -> None:
    sizes = sorted({target.embeddings.shape[1] for target in targets})
    if len(sizes) > 1:
        raise TargetError(
            f"{caller}: the targets come from different models, with rows of {sizes} numbers."
        )


def concatenate(targets: Sequence[Target]) -> Target:
    """Several targets as one, their rows one after the other.

    Raises:
        TargetError: nothing was given, or the rows differ in length.
    """
    targets = list(targets)
    if not targets or not all(isinstance(target, Target) for target in targets):
        raise TargetError(f"concatenate: expected one or more Targets, got {targets!r}.")
    _check_sizes("concatenate", targets)
    device = targets[0].embeddings.device
    return Target(
        torch.cat([target.embeddings.to(device) for target in targets]),
        torch.cat([target.norms.to(device) for target in targets]),
        tuple(name for target in targets for name in target.names),
        _common_source(targets),
    )
