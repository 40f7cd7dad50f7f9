"""Towers of true size with random weights, and the plain forward of each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from captum_clip import ClipSimilarity, load_clip, targets
from captum_clip.models import ClipAdapter

from .timing import Run


@dataclass(frozen=True, eq=False)
class Tower:
    """A model whose image tower is measured; its text tower is never run."""

    name: str
    model: Any
    library: Literal["transformers", "OpenCLIP"]
    size: int = 224  # height and width of the images it was made for
    large: bool = False  # a graph through all its layers, at batch 16, takes tens of gigabytes

    @cached_property
    def clip(self) -> ClipAdapter:
        """The adapter."""
        return load_clip(self.model)

    @property
    def reads_a_token(self) -> bool:
        """Whether the image embedding is made of one of the last block's tokens."""
        return getattr(self.clip.tower, "pooling", None) == "cls"

    @cached_property
    def width(self) -> int:
        """Numbers in an image embedding."""
        with torch.no_grad():
            return self.clip.image_features(self.images(1, seed=0)).shape[1]

    def images(self, batch: int, seed: int, size: int | None = None) -> Tensor:
        """Random images (B, 3, H, W) as the model takes them."""
        side = size or self.size
        random = torch.Generator().manual_seed(seed)
        images = torch.randn(batch, 3, side, side, generator=random)
        return images.to(self.clip.device, self.clip.dtype)

    def embeddings(self, count: int, seed: int) -> Tensor:
        """Random rows (K, D), of the model's type."""
        random = torch.Generator().manual_seed(seed + 1)
        rows = torch.randn(count, self.width, generator=random)
        return rows.to(self.clip.device, self.clip.dtype)

    def similarity(self, count: int, seed: int) -> ClipSimilarity:
        """The forward function of as many targets."""
        return ClipSimilarity(self.clip, targets.embedding(self.embeddings(count, seed)))

    def plain(self, images: Tensor) -> Run:
        """The library's own fastest forward."""
        if self.library == "OpenCLIP":
            return torch.inference_mode()(lambda: self.model.encode_image(images))
        resized = images.shape[-1] != self.size
        return torch.no_grad()(
            lambda: self.model.get_image_features(images, interpolate_pos_encoding=resized)
        )


def transformers_vit(
    name: str, *, patch: int = 32, layers: int = 12, width: int = 768, size: int = 224
) -> Tower:
    """A `CLIPModel` of ViT-B/32, or of another size; its text tower is small."""
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "patch_size": patch,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // 64,
        "image_size": size,
    }
    config = CLIPConfig(
        text_config={"num_hidden_layers": 1}, vision_config=vision, projection_dim=width * 2 // 3
    )
    return Tower(f"{name}, transformers", CLIPModel(config).eval(), "transformers", size)


def transformers_siglip(name: str, *, patch: int = 16, size: int = 224) -> Tower:
    """A `SiglipModel` of base size; its text tower is small."""
    from transformers import SiglipConfig, SiglipModel

    config = SiglipConfig(
        text_config={"num_hidden_layers": 1},
        vision_config={"patch_size": patch, "image_size": size},
    )
    return Tower(f"{name}, transformers", SiglipModel(config).eval(), "transformers", size)


def open_clip_tower(architecture: str, name: str, *, size: int = 224) -> Tower:
    """An architecture that OpenCLIP lists."""
    import open_clip

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that the weights are random is meant
    try:
        model = open_clip.create_model(architecture, force_image_size=size)
    finally:
        logging.disable(before)
    return Tower(f"{name}, OpenCLIP", model.eval(), "OpenCLIP", size)


TOWERS: dict[str, Callable[[], Tower]] = {
    "ViT-B/32, transformers": lambda: transformers_vit("ViT-B/32"),
    "ViT-B/32, OpenCLIP": lambda: open_clip_tower("ViT-B-32-quickgelu", "ViT-B/32"),
    "RN101, OpenCLIP": lambda: open_clip_tower("RN101-quickgelu", "RN101"),
    "SigLIP B/16, transformers": lambda: transformers_siglip("SigLIP B/16"),
    "EVA02-B/16, OpenCLIP": lambda: open_clip_tower("EVA02-B-16", "EVA02-B/16"),
    "PE-Core-B/16, OpenCLIP": lambda: open_clip_tower("PE-Core-B-16", "PE-Core-B/16"),
    "ConvNeXt-B, OpenCLIP": lambda: open_clip_tower("convnext_base", "ConvNeXt-B"),
}
LARGE: dict[str, Callable[[], Tower]] = {
    "ViT-L/14@336px, transformers": lambda: replace(
        transformers_vit("ViT-L/14@336px", patch=14, layers=24, width=1024, size=336), large=True
    ),
}
"""Towers too slow to be timed here; their memory is measured."""


def built(make: Callable[[], Tower], seed: int, device: torch.device, dtype: torch.dtype) -> Tower:
    """The tower with weights of this seed, where and as it is to run."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tower = make()
    tower.model.to(device, dtype)
    return tower
