"""Parts of a tower that run once more on other tokens, read as they were the first time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..models.towers import TransformerTower
from .hooks import Arguments, Hooks, uncompiled
from .observe import plan_attention
from .reads import AttentionRead
from .records import Recording
from .watch import Watch


@torch.no_grad()
def read_pool(record: Recording, tokens: Tensor) -> AttentionRead:
    """Run a tower's pooling head on tokens (B, s, D) as a block returns them, and read it."""
    tower, reads = record.transformer, list[AttentionRead]()
    head, watch, kind = tower.pooling_head, Watch(tower.noun), tokens.device.type
    assert head is not None
    watch.enter(head, "the pooling head", reads.append)
    try:
        with torch.autocast(kind, record.autocast, enabled=record.autocast is not None):
            head.pool(tokens)
    finally:
        watch.remove()
    watch.leave()
    return reads[0]


Arrivals = dict[int, tuple[Arguments, dict[str, Any]]]
"""The arguments that each block got, by layers."""


@contextmanager
def arrivals(tower: TransformerTower) -> Iterator[Arrivals]:
    """Keep what the blocks get as arguments in a forward that runs inside the ``with``."""
    hooks, kept = Hooks(), Arrivals()

    def keep(index: int, args: Arguments, kwargs: dict[str, Any]) -> None:
        layer = tower.layers[index]
        # of the later blocks the tokens are not needed
        tokens = layer.residual(args, kwargs)
        tokens = tokens.detach().clone() if index == 0 else tokens[:, :0].detach()
        kept[index] = layer.with_residual(args, kwargs, tokens)

    try:
        for index, layer in enumerate(tower.layers):
            hooks.before(layer.block, partial(keep, index))
        yield kept
    finally:
        hooks.remove()


@torch.no_grad()
def run_blocks(
    record: Recording,
    arrived: Arrivals,
    tokens: Tensor,
    attend: Callable[[int, AttentionRead], Tensor],
) -> Tensor:
    """Run a recorded tower's blocks on other tokens (B, n, D), attended to as a function says.

    It gives the heads' outputs (B, H, n, d) of a layer for what was read of its attention.
    """
    tower, kind = record.transformer, tokens.device.type
    again = Recording(tower, record.size, len(tokens), tokens.shape[1])
    hooks, watch = Hooks(), Watch(tower.noun)
    try:
        hooks.handles.append(watch)
        for index in range(len(tower.layers)):
            plan_attention(hooks, again, watch, index, attend)
        with uncompiled, torch.autocast(kind, record.autocast, enabled=record.autocast is not None):
            for index, layer in enumerate(tower.layers):
                args, kwargs = layer.with_residual(*arrived[index], tokens)
                tokens = layer.output(layer.block(*args, **kwargs))
    finally:
        hooks.remove()
    return tokens
