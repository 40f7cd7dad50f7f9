"""SigLIP 2 NaFlex of transformers: patches as tokens, and for every image a grid of its own.

Images are tensors (B, 3, H, W) here as everywhere, of any size in multiples of the patch; they are
cut into patches for the model, without padding. So the images of one batch have one grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from typing_extensions import override

from ..errors import CaptureError, InputError
from .reading import Entry, Reading
from .siglip import SiglipAdapter, SiglipTower

MODELS = ("Siglip2Model",)
TOWERS = (*MODELS, "Siglip2VisionModel", "Siglip2VisionTransformer")


class NaFlexTower(SiglipTower):
    """The vision transformer of a `Siglip2Model`."""

    library = "siglip2"
    classes = TOWERS

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
        return Entry((rows * self.patch, columns * self.patch), len(shapes), Reading())


tower_of = NaFlexTower.found_in


class NaFlexAdapter(SiglipAdapter):
    """A `Siglip2Model` of transformers."""

    tower: NaFlexTower

    @override
    def _vision_inputs(self, images: Tensor) -> dict[str, Any]:
        patches = _cut(images, self.tower.patch)
        mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=images.device)
        grid = torch.tensor([self.grid(images.shape[-2], images.shape[-1])], device=images.device)
        shapes = grid.expand(len(images), -1)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": mask,
            "spatial_shapes": shapes,
        }

    @override
    def _process(self, images: list[Image.Image]) -> Tensor:
        processor = self._require_processor()
        inner = getattr(processor, "image_processor", processor)
        if "spatial_shapes" not in getattr(inner, "model_input_names", ()):
            return super()._process(images)
        found = inner(images=images, return_tensors="pt")
        shapes = found["spatial_shapes"]
        if (shapes != shapes[:1]).any():
            raise InputError(
                "preprocess: a NaFlex model sees every picture in its own shape, and these differ; "
                "preprocess and explain them one at a time, or crop them to one shape."
            )
        rows, columns = shapes[0].tolist()
        return _joined(found["pixel_values"][:, : rows * columns], rows, self.tower.patch).float()


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


ADAPTER = NaFlexAdapter
