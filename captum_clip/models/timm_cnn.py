"""Convolutional towers of timm in OpenCLIP: ConvNeXt, and FastViT (MobileCLIP S)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from .average_pool import AveragePooledTower, check_multiple
from .steps import Step, flattened, run_steps
from .unmodified import is_librarys


@dataclass(frozen=True, eq=False)
class TimmCNN(AveragePooledTower):
    """An OpenCLIP `TimmModel` whose trunk ends in an average pool."""

    module: Any

    @override
    def grid(self, height: int, width: int) -> tuple[int, int]:
        # there are no positions, so any multiple of the strides will do
        stride = int(self.module.trunk.feature_info[-1]["reduction"])
        check_multiple((height, width), stride, tuple(self.module.image_size))
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

    @property
    @override
    def is_unmodified(self) -> bool:
        parts = (part for head in self.head_modules() for part in head.modules())
        return all(map(is_librarys, (self.module, self.module.trunk, *parts)))


def tower_of(module: Any) -> TimmCNN | None:
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
