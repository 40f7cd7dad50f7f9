"""SigLIP 2 NaFlex of transformers: patches as tokens, and for every image a grid of its own.

Images are tensors (B, 3, H, W) here as everywhere, of any size in multiples of the patch; they are
cut into patches for the model, without padding. So the images of one batch have one grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import override

from ..errors import CaptureError, InputError
from .huggingface import embedding_of
from .huggingface_layers import HuggingFaceLayer, check_attention
from .reading import Entry, Reading
from .siglip import SiglipAdapter, SiglipTower, probe_of
from .unmodified import has_no_foreign_hooks, is_unmodified

MODELS = ("Siglip2Model",)
TOWERS = ("Siglip2Model", "Siglip2VisionModel")


@dataclass(frozen=True, eq=False, kw_only=True)
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
        return Entry((rows * self.patch, columns * self.patch), len(shapes), Reading())

    @property
    @override
    def is_unmodified(self) -> bool:
        from transformers.models.siglip2 import modeling_siglip2 as siglip2

        head: Any = getattr(self.module, "head", None)
        plain = getattr(siglip2, "Siglip2VisionTransformer", siglip2.Siglip2VisionModel)
        return (
            self.probe is not None
            and is_unmodified(self.module, (plain,))
            and is_unmodified(self.module.encoder, (siglip2.Siglip2Encoder,))
            and is_unmodified(head, (siglip2.Siglip2MultiheadAttentionPoolingHead,))
            and all(has_no_foreign_hooks(module) for module in head.modules())
        )


def tower_of(module: nn.Module) -> NaFlexTower | None:
    """The vision tower in a module of transformers; None where the module is none of `TOWERS`.

    Raises:
        UnsupportedModelError: its attention is not made of plain linear maps.
    """
    from transformers.models.siglip2 import modeling_siglip2 as siglip2

    plain = getattr(siglip2, "Siglip2VisionTransformer", siglip2.Siglip2VisionModel)
    if not isinstance(module, (plain, siglip2.Siglip2Model, siglip2.Siglip2VisionModel)):
        return None
    inner: Any = module
    while not isinstance(getattr(inner, "encoder", None), siglip2.Siglip2Encoder):
        inner = inner.vision_model
    for index, block in enumerate(inner.encoder.layers):
        check_attention(index, block.self_attn)
    probe = probe_of(inner)
    return NaFlexTower(
        module=inner,
        layers=tuple(HuggingFaceLayer(block) for block in inner.encoder.layers),
        pooling="mean" if probe is None else "probe",
        prefix=0,
        probe=probe,
    )


class NaFlexAdapter(SiglipAdapter):
    """A `Siglip2Model` of transformers."""

    tower: NaFlexTower

    @property
    @override
    def is_unmodified(self) -> bool:
        from transformers import Siglip2Model

        own = is_unmodified(self.model, (Siglip2Model,), "get_image_features")
        return own and self.tower.is_unmodified

    @override
    def image_features(self, images: Tensor) -> Tensor:
        grid = self.grid(*images.shape[-2:])
        patches = _cut(images, self.tower.patch)
        mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=images.device)
        shapes = torch.tensor([grid], device=images.device).expand(len(images), -1)
        features = self.model.get_image_features(
            pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes
        )
        return embedding_of(features)

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


def adapter_of(model: nn.Module, *, name: str, **processors: Any) -> NaFlexAdapter | None:
    """The adapter of a `Siglip2Model`; None where the model is something else."""
    from transformers import Siglip2Model

    tower = tower_of(model) if isinstance(model, Siglip2Model) else None
    return None if tower is None else NaFlexAdapter(model, tower, name=name, **processors)
