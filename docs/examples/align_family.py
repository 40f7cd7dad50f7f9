"""ALIGN of transformers as a family of your own: an EfficientNet whose last features are averaged.

Import it before `load_clip`. Source: Jia et al. 2021 (arXiv:2102.05918).
"""

from __future__ import annotations

from typing import Any

from torch import nn
from typing_extensions import Self

from captum_clip.errors import InputError, UnsupportedModelError
from captum_clip.models import ResNetTower, register_family
from captum_clip.models.huggingface import TextLayout, transformers_family, vision_of


class AlignTower(ResNetTower):
    """An `AlignVisionModel`."""

    embedding_index = 1  # the pooled output
    asks_to_interpolate = False

    @classmethod
    def from_module(cls, module: Any) -> Self:
        """The tower in an `AlignModel`."""
        inner = vision_of(module)
        if not isinstance(inner.pooler, nn.AvgPool2d):
            raise UnsupportedModelError("an AlignVisionModel with pooling_type='mean' is expected.")
        blocks = [(f"block {i}", block) for i, block in enumerate(inner.encoder.blocks)]
        return cls(
            module=inner,
            native=(inner.config.image_size,) * 2,
            patch=(1, 1),
            stages=dict(reversed(blocks)),  # from the last to the first
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a map."""
        # each strided convolution halves it, rounded by the library's padding
        rows, columns = height // 2, width // 2
        for layer in (block.depthwise_conv for block in self.module.encoder.blocks):
            if layer.stride == 2:
                left, right, *_ = layer.depthwise_conv_pad.padding
                up = int(left == right)
                rows, columns = (rows + up) // 2, (columns + up) // 2
        if min(rows, columns) < 1:
            raise InputError(f"nothing is left of {height} x {width} pixels; take larger images.")
        return rows, columns

    @property
    def embedding_dim(self) -> int:
        """Length of an image embedding."""
        return int(self.module.encoder.blocks[-1].projection.project_bn.num_features)


register_family(transformers_family("align", "Align", tower=AlignTower, text=TextLayout()))
