"""Regions of a map that are removed: windows of cells, and the cells of masks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import expect
from ..models.towers import Tower
from ..recording.records import Recording


def windows_of(tower: Tower, record: Recording, window: int | None, stride: int | None) -> Tensor:
    """The windows (W, N) of the cells of a grid, or of the tokens of a text."""
    assert record.size is not None
    is_text = tower.kind == "text"
    sides = record.size[1:] if is_text else tower.grid(*record.size)
    windows = torch.ones(1, 1, dtype=torch.bool, device="cpu")
    for side in sides:
        width = window or (1 if is_text else 2 * round(3 * side / 14 - 0.5) + 1)
        step = stride or (1 if is_text else -(-side // 7))
        expect(step <= width, f"a `stride` of at most the window's {width} cells", step)
        centers = torch.arange(step // 2, side, step, device="cpu")
        near = (torch.arange(side, device="cpu") - centers[:, None]).abs() <= width // 2
        windows = torch.kron(windows, near)
    return windows


def cells_of(tower: Tower, record: Recording, masks: Tensor) -> Tensor:
    """The cells (B or 1, M, N) of masks."""
    assert record.size is not None
    grid: Any = record.size[1:]  # of a text, whose masks are (B, M, T)
    sizes = {grid}
    if tower.kind != "text":
        grid = tower.grid(*record.size)
        sizes = {grid, record.size}
    batched = masks if masks.ndim == 2 + len(grid) else masks[None]
    fits = len(batched) in (1, record.batch) and batched.shape[2:] in sizes
    wanted = " or ".join(f"(B, M, {', '.join(map(str, size))})" for size in sizes)
    expect(fits and batched.ndim == 2 + len(grid), f"masks {wanted}, or without B", masks)
    if batched.shape[2:] != grid:
        covered = F.adaptive_avg_pool2d(batched.float(), grid)
        most = covered.amax((-2, -1), keepdim=True)
        batched = (covered >= most.clamp(max=0.5)) & (most > 0)
    return batched.flatten(2)


def mean_of(tokens: Tensor, left: Tensor) -> Tensor:
    """The mean (B, G, D) of the tokens (B, N, D) that are left (B, G, N); zero of none."""
    left = left.to(tokens)
    return left @ tokens / left.sum(-1, keepdim=True).clamp(min=1)


def region_mask(ids: Tensor, like: Tensor) -> Tensor:
    """Whether a token is at any of these positions (B, n), (B, 1, s) for values (B, G, s)."""
    return torch.zeros_like(like[:, :1]).scatter(2, ids[:, None], True)


def grouped(heads: Tensor, groups: Sequence[int]) -> Tensor:
    """What tokens have in each head (B, H, G n, d), group by group (B, H, G, n, d)."""
    return heads.reshape(*heads.shape[:2], *groups, -1)


def taken(tokens: Tensor, ids: Tensor) -> Tensor:
    """The tokens (B, n, D) at some places (B, n)."""
    return tokens.take_along_dim(ids[..., None], 1)
