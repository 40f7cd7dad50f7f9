"""Which score belongs to which map: Captum's `target` as columns of a (B, K) score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import TargetError

Columns = Sequence[int] | Tensor | None


def one_column(target: Any, batch: int, count: int, names: Sequence[str] = ()) -> Tensor:
    """Captum's `target` -> (1, B), the score's column for each image.

    Args:
        target: None (only where there is one column), an index, or one index an image.
        batch: B.
        count: K.
        names: of the columns, for the message.

    Raises:
        TargetError: missing, out of range, or not one an image.
    """
    if target is None:
        if count != 1:
            raise TargetError(
                f"attribute: the forward function returns {count} scores an image{_named(names)}; "
                "say which with target=0, or take all with attribute_targets."
            )
        target = 0
    if isinstance(target, Tensor):
        target = target.tolist()
    if isinstance(target, (list, tuple)):
        flat = [t[0] if isinstance(t, (list, tuple)) and len(t) == 1 else t for t in target]
    else:
        flat = [target]
    if len(flat) == 1:
        flat = flat * batch
    if len(flat) != batch:
        images = f"{batch} image{'s' * (batch > 1)}"
        raise TargetError(
            f"attribute: got {len(flat)} targets for {images}; give one, or one an image. For "
            "several maps of an image call attribute_targets."
        )
    return _checked(flat, count, names)[None]


def many_columns(targets: Columns, batch: int, count: int, names: Sequence[str] = ()) -> Tensor:
    """Indices, or None for all -> (K', B), the same column for every image.

    Raises:
        TargetError: none, or one out of range.
    """
    if targets is None:
        flat: list[Any] = list(range(count))
    elif isinstance(targets, Tensor):
        flat = targets.reshape(-1).tolist()
    else:
        flat = [targets] if isinstance(targets, int) else list(targets)
    if not flat:
        raise TargetError("attribute_targets: targets is empty; leave it out to take all.")
    return _checked(flat, count, names)[:, None].expand(-1, batch)


def _checked(flat: list[Any], count: int, names: Sequence[str]) -> Tensor:
    for index in flat:
        if isinstance(index, bool) or not isinstance(index, int):
            raise TargetError(
                f"target: expected an index or one index an image, got {index!r} "
                f"({type(index).__name__})."
            )
        if not -count <= index < count:
            raise TargetError(
                f"target: {index} is out of range; there are {count} scores an image"
                f"{_named(names)}."
            )
    return torch.tensor(flat) % count


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return f" ({shown}{', ...' if len(names) > 8 else ''})" if names else ""
