r"""Convolutional towers that average their last features before a head.

With the mean :math:`m = \frac{1}{hw} \sum_{ij} A_{ij}` and the embedding :math:`e = f(m)`, the
gradient of a shift of all positions is the vector-Jacobian product of the head f at m, whatever f
is made of: norm, projection, MLP or nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..errors import InputError
from .steps import Direction, Step, flattened, pull_back, run_steps
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
    def shift_gradient(
        self, features: Tensor, gradient: Tensor, *, detached: bool = False
    ) -> Tensor:
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


@dataclass(frozen=True, eq=False)
class TimmCNN(AveragePooledTower):
    """An OpenCLIP `TimmModel` whose trunk, a ConvNeXt or FastViT (MobileCLIP S), ends so."""

    module: Any
    runner_parts = ("trunk",)

    @override
    def grid(self, height: int, width: int) -> tuple[int, int]:
        # there are no positions, so any multiple of the strides will do
        stride = int(self.module.trunk.feature_info[-1]["reduction"])
        if height % stride or width % stride or not height or not width:
            native = self.module.image_size
            raise InputError(
                f"the tower cannot take images of {height} x {width} pixels: height and width must "
                f"be multiples of {stride}; resize or crop them, its native size is {native[0]} x "
                f"{native[1]}."
            )
        return height // stride, width // stride

    @property
    @override
    def embedding_dim(self) -> int:
        weight = next(self.module.parameters())
        with torch.no_grad():
            mean = weight.new_zeros(1, self.module.trunk.head.in_features)
            return run_steps(self.head_steps(), mean).shape[-1]

    @override
    def stages(self) -> dict[str, nn.Module]:
        trunk = self.module.trunk
        stages = {f"stage {i}": stage for i, stage in enumerate(trunk.stages)}
        if self.stage is not trunk.stages[-1]:
            stages["final_conv"] = self.stage
        return dict(reversed(stages.items()))

    @override
    def head_modules(self) -> Sequence[nn.Module]:
        return self.module.trunk.head, self.module.head

    @override
    def head_steps(self) -> Sequence[Step]:
        head = self.module.trunk.head
        parts = (getattr(head, name, None) for name in ("norm", "pre_logits", "drop", "fc"))
        return flattened([*(part for part in parts if part is not None), self.module.head])


def timm_tower_of(module: Any) -> TimmCNN | None:
    """The tower of a `TimmModel`; None where its trunk is no such network."""
    from timm.models.convnext import ConvNeXt
    from timm.models.fastvit import FastVit

    trunk = module.trunk
    if type(trunk) is ConvNeXt and isinstance(trunk.norm_pre, nn.Identity):
        stage = trunk.stages[-1]
    elif type(trunk) is FastVit and not trunk.fork_feat:
        stage = trunk.final_conv
    else:
        return None
    # the head of the trunk or of OpenCLIP may pool in another way
    averages = getattr(trunk.head.global_pool, "pool_type", None) == "avg"
    if not averages or hasattr(module.head, "pool"):
        return None
    return TimmCNN(module=module, stage=stage)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
