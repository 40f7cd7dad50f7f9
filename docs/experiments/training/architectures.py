"""The demo models before training: CLIP's ViT and SigLIP in transformers, a ResNet in OpenCLIP."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from captum_clip.demo.catalog import CONTEXT_LENGTH, END, PAD, START, VOCAB_SIZE

IMAGE_SIZE: Final = 224
MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)
_WIDTH: Final = 128


@dataclass(frozen=True)
class Architecture:
    """How one demo model is built and run.

    Args:
        name: ``"vit"``, ``"siglip"`` or ``"resnet"``.
        build: () -> the model with fresh weights.
        encode_image: (model, (B, 3, H, W)) -> (B, D), not normalized.
        encode_text: (model, (N, up to 16) tokens) -> (N, D), not normalized.
        memory_format: of its images.
        description: of the model, for its card.
        opened_with: code that loads its folder, for its card.
    """

    name: str
    build: Callable[[], nn.Module]
    encode_image: Callable[[Any, torch.Tensor], torch.Tensor]
    encode_text: Callable[[Any, torch.Tensor], torch.Tensor]
    memory_format: torch.memory_format
    description: str
    opened_with: str


def normalize_pixels(
    images: npt.NDArray[np.uint8],
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 with CLIP's mean and standard deviation."""
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    pixels = pixels.contiguous(memory_format=memory_format).float()
    std = torch.tensor(STD, device=device)[:, None, None]
    mean = torch.tensor(MEAN, device=device)[:, None, None]
    return pixels.mul_(1 / (255 * std)).sub_(mean / std)


def trim(tokens: torch.Tensor) -> torch.Tensor:
    """Cut the columns (N, T) that only pad; under a causal mask no encoding changes."""
    return tokens[:, : int((tokens != PAD).sum(dim=1).max())]


def unit(rows: torch.Tensor) -> torch.Tensor:
    """L2-normalize embeddings (N, D) in single precision."""
    return F.normalize(rows.float(), dim=-1)


_BLOCKS: Final = {
    "hidden_size": _WIDTH,
    "intermediate_size": 4 * _WIDTH,
    "num_attention_heads": 4,
    "projection_dim": _WIDTH,
}
_TEXT: Final = {
    **_BLOCKS,
    "num_hidden_layers": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": CONTEXT_LENGTH,
    "pad_token_id": PAD,
    "bos_token_id": START,
    "eos_token_id": END,
}
_VISION: Final = {**_BLOCKS, "num_hidden_layers": 6, "image_size": IMAGE_SIZE, "patch_size": 32}


def _build_vit() -> nn.Module:
    config = CLIPConfig(text_config=_TEXT, vision_config=_VISION, projection_dim=_WIDTH)
    model: nn.Module = CLIPModel(config)
    return model


def _vit_image(model: Any, images: torch.Tensor) -> torch.Tensor:
    features: torch.Tensor = model.visual_projection(model.vision_model(pixel_values=images)[1])
    return features


def _vit_text(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    rows = model.text_model(input_ids=trim(tokens))[1]
    features: torch.Tensor = model.text_projection(rows)
    return features


def _build_siglip() -> nn.Module:
    model: Any = SiglipModel(SiglipConfig(text_config=_TEXT, vision_config=_VISION))
    with torch.no_grad():  # where CLIP's starts
        model.logit_scale.fill_(math.log(1 / 0.07))
        model.logit_bias.fill_(-5.0)
    built: nn.Module = model
    return built


def _siglip_image(model: Any, images: torch.Tensor) -> torch.Tensor:
    features: torch.Tensor = model.vision_model(pixel_values=images).pooler_output
    return features


def _siglip_text(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    rows = model.text_model(input_ids=tokens)  # not trimmed: the last position is read, a pad
    features: torch.Tensor = rows.pooler_output
    return features


RESNET_CONFIG: Final[dict[str, Any]] = {
    "embed_dim": _WIDTH,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": IMAGE_SIZE,
        "layers": [1, 1, 2, 2],
        "width": 16,
        "head_width": 64,  # 16 * 32 / 64 = 8 heads in the attention pool
        "patch_size": None,
    },
    "text_cfg": {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": VOCAB_SIZE,
        "width": _WIDTH,
        "heads": 4,
        "layers": 2,
        "hf_tokenizer_name": "captum_clip/demo/resnet",  # read from the exported folder
    },
}
"""The ``model_cfg`` of OpenCLIP."""


def _build_resnet() -> nn.Module:
    model: nn.Module = CLIP(**RESNET_CONFIG)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _resnet_image(model: Any, images: torch.Tensor) -> torch.Tensor:
    features: torch.Tensor = model.encode_image(images)
    return features


def _resnet_text(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    tokens = trim(tokens)
    length = tokens.shape[1]  # model.encode_text reads full-length texts only
    rows = model.token_embedding(tokens) + model.positional_embedding[:length]
    rows = model.transformer(rows, attn_mask=model.attn_mask[:length, :length])
    ends = model.ln_final(rows)[torch.arange(len(tokens)), tokens.argmax(dim=1)]
    features: torch.Tensor = ends @ model.text_projection
    return features


ARCHITECTURES: Final[dict[str, Architecture]] = {
    "vit": Architecture(
        "vit",
        _build_vit,
        _vit_image,
        _vit_text,
        torch.contiguous_format,
        "transformers `CLIPModel`: vision tower of width 128, 6 layers, 4 heads, patch 32 at\n"
        "  224 x 224 (a 7 x 7 grid). Its text tower has width 128 and 2 layers",
        "transformers.CLIPModel.from_pretrained(folder)",
    ),
    "siglip": Architecture(
        "siglip",
        _build_siglip,
        _siglip_image,
        _siglip_text,
        torch.contiguous_format,
        "transformers `SiglipModel`: vision tower of width 128, 6 layers, 4 heads, patch 32 at\n"
        "  224 x 224 (a 7 x 7 grid), read by a pooling head. Its text tower has width 128 "
        "and 2 layers",
        "transformers.SiglipModel.from_pretrained(folder)",
    ),
    "resnet": Architecture(
        "resnet",
        _build_resnet,
        _resnet_image,
        _resnet_text,
        torch.channels_last,
        "OpenCLIP `CLIP` with a `ModifiedResNet`: layers (1, 1, 2, 2), width 16, attention\n"
        "  pool with 8 heads at 224 x 224 (a 7 x 7 grid). Its text tower has width 128 and "
        "2 layers",
        'open_clip.create_model_from_pretrained(f"local-dir:{folder}")',
    ),
}
