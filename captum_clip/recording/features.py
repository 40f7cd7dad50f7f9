"""A forward whose graph begins at the last features, laid out on their grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from ..models.towers import ResNetTower, ViTTower
from .hooks import Hooks
from .records import Recording, as_leaf, recording


@contextmanager
def record_features(
    tower: ViTTower | ResNetTower, *, through: Callable[[Tensor], Tensor] = as_leaf
) -> Iterator[Recording]:
    """Record the features (B, C, h, w), and go on with what `through` makes of them.

    They are a ResNet's last stage; the patches that enter the last block of a tower that reads CLS,
    since those that leave it are read by nobody; the patches that leave it in another one.

    Args:
        tower: the tower; its forward runs inside the ``with``.
        through: what the features pass; without it they are the leaf of the graph.
    """

    def plan(hooks: Hooks, record: Recording) -> None:
        def passed(features: Tensor) -> Tensor:
            record.features = through(features)
            return record.features

        if isinstance(tower, ResNetTower):
            hooks.after(tower.stage, passed)
            return
        layer = tower.layers[-2 if tower.pooling == "cls" else -1]

        def leave(result: Any) -> Any:
            output = layer.leaving(result)
            assert record.size is not None
            prefix, grid = tower.prefix, tower.grid(*record.size)
            expected = prefix + grid[0] * grid[1]
            if output.shape[1] != expected:
                raise UnsupportedModelError(
                    f"the vision tower ran on {output.shape[1]} tokens where {expected} were "
                    "expected; remove what adds or drops tokens, such as prompts."
                )
            patches = output[:, prefix:].transpose(1, 2).reshape(len(output), -1, *grid)
            tokens = passed(patches).flatten(2).transpose(1, 2)
            return layer.left(result, torch.cat([output[:, :prefix], tokens], 1))

        hooks.after(layer.block, leave)

    with recording(tower, plan, gradient=through is as_leaf) as record:
        yield record
