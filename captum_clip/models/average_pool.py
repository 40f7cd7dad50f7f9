r"""Convolutional towers that average their last features before a head.

With the mean :math:`m = \frac{1}{hw} \sum_{ij} A_{ij}` and the embedding :math:`e = f(m)`, the
gradient of a shift of all positions is the vector-Jacobian product of the head f at m, whatever f
is made of: norm, projection, MLP or nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from ..errors import InputError
from .steps import Direction, Step, pull_back, run_steps
from .towers import ResNetTower


@dataclass(frozen=True, eq=False)
class AveragePooledTower(ResNetTower):
    """A convolutional tower whose embedding is a function of the mean of its last features."""

    @abstractmethod
    def head_steps(self) -> Sequence[Step]:
        """What the mean of the features (B, C) goes through to be the embedding (B, E)."""

    @override
    def contributions(
        self, features: Tensor, direction: Direction, *, centred: bool
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(features.device.type, enabled=False):
            positions, mean = _widened(features.detach()).flatten(2), self._mean(features)
            direction = pull_back(self.head_steps(), mean, direction)
            total = direction.along(mean) + direction.constant
            if centred:
                positions = positions - mean[..., None]
            dense = direction.dense()
            maps = torch.einsum("kbc,bcs->kbs", dense, positions) / positions.shape[-1]
            rest = total - maps.sum(-1)
            return maps.reshape(*maps.shape[:2], 1, *features.shape[-2:]), rest

    @override
    def pool(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return _widened(self._embed(self._mean(features)))

    @override
    def shift_gradient(self, features: Tensor, gradient: Tensor) -> Tensor:
        with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
            mean = self._mean(features).requires_grad_()
            embedding = _widened(self._embed(mean))
            (shift,) = torch.autograd.grad(embedding, mean, gradient, is_grads_batched=True)
        return shift

    def _mean(self, features: Tensor) -> Tensor:
        # of half precision in float32: a sum over many positions
        return _widened(features.detach()).mean((-2, -1))

    def _embed(self, mean: Tensor) -> Tensor:
        # under autocast the features have another type than the head's weights
        return run_steps(self.head_steps(), mean.to(next(self.module.parameters()).dtype))


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_multiple(size: tuple[int, int], stride: int, native: tuple[int, int]) -> None:
    """Refuse image sizes that the strides do not divide.

    Raises:
        InputError: height or width is no multiple of the stride.
    """
    if any(length % stride or not length for length in size):
        raise InputError(
            f"the tower cannot take images of {size[0]} x {size[1]} pixels: height and width must "
            f"be multiples of {stride}; resize or crop them, its native size is {native[0]} x "
            f"{native[1]}."
        )
