"""SigLIP of transformers, and SigLIP 2 of fixed size and NaFlex.

A NaFlex model takes patches as tokens, and for every image a grid of its own. Images are tensors
(B, 3, H, W) here as everywhere, of any size in multiples of the patch; they are cut into patches
for the model, without padding. So the images of one batch have one grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from typing_extensions import Self, override

from ..errors import CaptureError, InputError
from .huggingface import HuggingFaceAdapter, HuggingFaceTower
from .huggingface_layers import SIGLIP_TEXT
from .multihead import MultiheadPoolingHead
from .pooled import Entry, PooledToken
from .processors import image_processor
from .steps import Residual, Step
from .text import TextPooling


class SiglipPoolingHead(MultiheadPoolingHead):
    """The pooling head of a SigLIP vision model, with one learned query."""

    @override
    def embedded_query(self) -> Tensor:
        query: Tensor = self.head.probe[0, 0]
        return query


class SiglipTower(HuggingFaceTower):
    """The vision transformer of a `SiglipModel`: patches only, read by the head's probe.

    The head ends in the space of the texts. Without one (`vision_use_head=False`) the callable that
    uses the tower takes the patches' mean.
    """

    @classmethod
    @override
    def of(cls, module: Any, **parts: Any) -> Self:
        head, norm, probe = getattr(module, "head", None), module.post_layernorm, None
        if head is not None:
            where = f"the pooling head of the {type(module).__name__}"
            probe = SiglipPoolingHead(head, head.attention, norm, (norm, head), where)
        parts |= {
            "pooling": "attention" if probe else "mean",
            "prefix": 0,
            "pooling_head": probe,
        }
        return super().of(module, steps_before_mean=1, **parts)  # transformers norms every patch

    @property
    @override
    def head(self) -> tuple[Step, ...]:
        if self.pooling_head is None:
            return (self.module.post_layernorm,)
        head, mlp = self.module.head, self.module.head.mlp
        return (Residual((head.layernorm, mlp.fc1, mlp.activation_fn, mlp.fc2)),)


class SiglipAdapter(HuggingFaceAdapter):
    """A `SiglipModel` of transformers."""

    tower_class = SiglipTower
    # the last position is read, so with other padding it is another embedding
    text_pooling = TextPooling("last", causal=False, padding="max_length")
    text_layout = SIGLIP_TEXT

    @override
    def text_inputs(self, texts: str | Sequence[str]) -> tuple[Tensor, None]:
        # it was trained without a mask, which the tokenizers of SigLIP 2 give
        return super().text_inputs(texts)[0], None


class NaFlexTower(SiglipTower):
    """The vision transformer of a `Siglip2Model`."""

    @property
    @override
    def native(self) -> tuple[int, int]:
        side = int(self.module.config.num_patches**0.5) * self.patch
        return side, side

    @property
    def patch(self) -> int:
        """Height and width of a patch."""
        return int(self.module.config.patch_size)

    @override
    def enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Entry:
        names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        shapes = given["spatial_shapes"]
        rows, columns = shapes[0].tolist()
        if (shapes != shapes[:1]).any() or rows * columns != given["pixel_values"].shape[1]:
            raise CaptureError(
                "The forward function ran the vision tower on images with different grids or on "
                "padded patches; explain images of one grid at a time, without padding: "
                "clip.image_features(images) of load_clip(model) cuts them so."
            )
        return Entry((rows * self.patch, columns * self.patch), len(shapes), PooledToken())


class NaFlexAdapter(SiglipAdapter):
    """A `Siglip2Model` of transformers."""

    tower: NaFlexTower
    tower_class = NaFlexTower

    @override
    def _vision_inputs(self, images: Tensor) -> dict[str, Any]:
        patches = _cut(images, self.tower.patch)
        grid = torch.tensor([self.grid(images.shape[-2], images.shape[-1])], device=images.device)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": patches.new_ones(patches.shape[:2], dtype=torch.int32),
            "spatial_shapes": grid.expand(len(images), -1),
        }

    @override
    def _process(self, images: list[Image.Image]) -> Tensor:
        processor = image_processor(self._require_processor())
        if "spatial_shapes" not in getattr(processor, "model_input_names", ()):
            return super()._process(images)
        processed = processor(images=images, return_tensors="pt")
        shapes = processed["spatial_shapes"]
        if (shapes != shapes[:1]).any():
            raise InputError(
                "preprocess: a NaFlex model sees every picture in its own shape, and these differ; "
                "preprocess and explain them one at a time, or crop them to one shape."
            )
        rows, columns = shapes[0].tolist()
        patches = processed["pixel_values"][:, : rows * columns]
        return _joined(patches, rows, self.tower.patch).float()


def _cut(images: Tensor, side: int) -> Tensor:
    """Images (B, 3, H, W) as patches (B, h w, side side 3), as the library orders them."""
    batch, channels, height, width = images.shape
    pieces = images.reshape(batch, channels, height // side, side, width // side, side)
    return pieces.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side * channels)


def _joined(patches: Tensor, rows: int, side: int) -> Tensor:
    """The images of such patches."""
    batch, count, _ = patches.shape
    pieces = patches.reshape(batch, rows, count // rows, side, side, -1)
    return pieces.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * side, count // rows * side)
