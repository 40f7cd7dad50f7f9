"""ALIGN of transformers: an EfficientNet whose average is the embedding, and a BERT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from typing_extensions import Self, override

from ..errors import InputError, UnsupportedModelError
from .average_pool import AveragePooledTower
from .huggingface import BertAdapter, PooledOutput, vision_of
from .steps import Step


@dataclass(frozen=True, eq=False)
class AlignTower(PooledOutput, AveragePooledTower):
    """An `AlignVisionModel`."""

    module: Any
    runner_parts = ("encoder", "pooler")

    @classmethod
    def found_in(cls, module: Any) -> Self:
        """The tower in an `AlignModel`; UnsupportedModelError where it takes a maximum."""
        inner = vision_of(module)
        if not isinstance(inner.pooler, nn.AvgPool2d):
            raise UnsupportedModelError(
                f"the AlignVisionModel pools with a {type(inner.pooler).__name__}; supported is "
                "the mean of the features (pooling_type='mean')."
            )
        return cls(module=inner, stage=inner.encoder.blocks[-1])

    @override
    def grid(self, height: int, width: int) -> tuple[int, int]:
        # any size, as the strided convolutions make it smaller
        rows, columns = _strided(height, 3, 0, 1), _strided(width, 3, 0, 1)
        for block in self.module.encoder.blocks:
            layer = block.depthwise_conv
            if layer.stride == 2:
                kernel = layer.depthwise_conv.kernel_size[0]
                left, right, top, bottom = layer.depthwise_conv_pad.padding
                rows = _strided(rows, kernel, top, bottom)
                columns = _strided(columns, kernel, left, right)
        if min(rows, columns) < 1:
            side = self.module.config.image_size
            raise InputError(
                f"the tower cannot take images of {height} x {width} pixels: nothing is left of "
                f"them after its strides; resize them, its native size is {side} x {side}."
            )
        return rows, columns

    @property
    @override
    def embedding_dim(self) -> int:
        return int(self.module.encoder.blocks[-1].projection.project_bn.num_features)

    @override
    def stages(self) -> dict[str, nn.Module]:
        blocks = enumerate(self.module.encoder.blocks)
        return dict(reversed([(f"block {i}", block) for i, block in blocks]))

    @override
    def head_modules(self) -> Sequence[nn.Module]:
        # the mean is the embedding
        return ()

    @override
    def head_steps(self) -> Sequence[Step]:
        return ()


def _strided(length: int, kernel: int, before: int, after: int) -> int:
    return (length + before + after - kernel) // 2 + 1


class AlignAdapter(BertAdapter):
    """An `AlignModel` of transformers."""

    tower: Any
    tower_class = AlignTower
    asks_to_interpolate = False
