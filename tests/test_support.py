"""What docs/support.md says of models and methods is what happens: every cell is run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import captum.attr
import pytest
import torch
from torch import Tensor

from captum_clip import ClipSimilarity, attr, load_clip, targets
from captum_clip.errors import UnsupportedModelError
from captum_clip.models import tower_of
from tests import builders, timm_builders
from tests.samples import normal

PAGE = Path(__file__).parents[1] / "docs" / "support.md"
METHODS: dict[str, Any] = attr.METHODS


def table_of(*columns: str) -> dict[str, dict[str, str]]:
    """The rows of the page's table that has these columns: first cell -> column -> cell."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [[c.strip().strip("`") for c in line.strip("|").split("|")] for line in lines]
    start = next(i for i, row in enumerate(cells) if set(columns) <= set(row))
    rows = {}
    for row in cells[start + 2 :]:
        if len(row) != len(cells[start]):
            break
        rows[row[0].replace("`", "")] = dict(zip(cells[start][1:], row[1:], strict=True))
    return rows


def open_clip_vit(**vision: Any) -> Any:
    return builders.open_clip_vit(**vision).model


def timm_tower(name: str) -> Any:
    from open_clip import CLIP

    vision = {"timm_model_name": name, "image_size": 224, "timm_proj": "linear"}
    with torch.device("meta"):
        return CLIP(embed_dim=24, vision_cfg=vision, text_cfg=dict(builders.TEXT_CONFIG))


TOWERS: dict[str, Callable[[], Any]] = {
    "demo/vit": lambda: load_clip("demo/vit").model,
    "demo/resnet": lambda: load_clip("demo/resnet").model,
    "transformers CLIP": lambda: builders.hf_vit().model,
    "OpenCLIP ViT, CLS pooling": open_clip_vit,
    "OpenCLIP ViT, own attention, LayerScale": lambda: builders.open_clip_custom_vit().model,
    "OpenCLIP ViT, mean pooling": lambda: builders.open_clip_vit_mean().model,
    "OpenCLIP ResNet": lambda: builders.open_clip_resnet().model,
    "OpenCLIP ConvNeXt": lambda: builders.timm_convnext().model,
    "OpenCLIP FastViT (MobileCLIP S)": lambda: builders.timm_fastvit().model,
    "transformers ALIGN": lambda: builders.align().model,
    "OpenCLIP ViT, attention pooling": partial(
        open_clip_vit, attentional_pool=True, attn_pooler_heads=4
    ),
    "OpenCLIP ViT, no pooling": partial(open_clip_vit, pool_type="none"),
    "OpenCLIP ViT, qk_norm": partial(open_clip_vit, qk_norm=True),
    "OpenCLIP ViT, scaled_cosine": partial(open_clip_vit, scaled_cosine_attn=True),
    "OpenCLIP ViT, scale_heads": partial(open_clip_vit, scale_heads=True),
    "OpenCLIP ViT, inner_norm": partial(open_clip_vit, scale_attn_inner=True),
    "OpenCLIP SigLIP, SigLIP 2": lambda: timm_builders.timm_siglip().model,
    "OpenCLIP EVA01": lambda: timm_builders.eva01().model,
    "OpenCLIP EVA02": lambda: timm_builders.eva02().model,
    "OpenCLIP EVA02-E": lambda: timm_builders.eva02_e().model,
    "OpenCLIP PE-Core": lambda: timm_builders.pe_core().model,
    "OpenCLIP MobileCLIP-B, MobileCLIP2-L": lambda: timm_builders.mobileclip().model,
    "OpenCLIP ViTamin": lambda: timm_builders.vitamin().model,
    "OpenCLIP gap_256": lambda: timm_builders.timm_gap().model,
    "OpenCLIP relpos": partial(timm_tower, "vit_relpos_medium_patch16_cls_224"),
    "OpenCLIP Swin": partial(timm_tower, "swin_base_patch4_window7_224"),
    "OpenCLIP CoCa": lambda: builders.coca().model,
    "transformers SigLIP": lambda: builders.siglip().model,
}


def similarity_of(model: Any) -> tuple[ClipSimilarity, Tensor]:
    """The cosine with two random rows, and images of the model's size."""
    clip = load_clip(model)
    vision: Any = clip.vision
    size = (vision if hasattr(vision, "image_size") else vision.config).image_size
    side = size[0] if isinstance(size, tuple) else size
    images = normal(1, 3, side, side, seed=0)
    with torch.no_grad():
        width = clip.encode_image(images).shape[1]
    rows = normal(2, width, seed=1)
    return ClipSimilarity(clip, targets.embedding(rows)), images


def what_happens(model: Any, method: str) -> str:
    """The cell of a model and a method, by running it."""
    try:
        forward, images = similarity_of(model)
        found = METHODS[method](forward).attribute_targets(images)
    except UnsupportedModelError:
        return "raises"
    assert found.shape[:2] == (1, 2)
    assert torch.isfinite(found).all()
    return "yes"


@pytest.mark.parametrize("name", TOWERS)
def test_table_of_models_says_what_happens(name):
    """Every cell of the row, and no tower is refused by one way in and taken by another."""
    model = TOWERS[name]()
    said = table_of(*METHODS)[name]
    assert {method: what_happens(model, method) for method in METHODS} == said
    with nullcontext() if "yes" in said.values() else pytest.raises(UnsupportedModelError):
        tower_of(model)


def test_table_of_models_is_whole():
    """Every tower is tested, every method has a column."""
    rows = table_of(*METHODS)
    assert set(rows) == set(TOWERS)
    assert all(set(row) == set(METHODS) for row in rows.values())


@pytest.mark.parametrize("name", ["demo/vit", "demo/resnet"])
def test_table_of_captums_methods_says_what_happens(name):
    """Maps of the images' shape, or Captum's own error."""
    forward, images = similarity_of(TOWERS[name]())
    half = images.shape[-1] // 2
    options: dict[str, dict[str, Any]] = {
        "IntegratedGradients": {"n_steps": 2},
        "GradientShap": {"baselines": torch.zeros_like(images), "n_samples": 2},
        "Occlusion": {"sliding_window_shapes": (3, half, half), "strides": (3, half, half)},
        "FeatureAblation": {"feature_mask": torch.zeros(images.shape, dtype=torch.long)},
    }
    for method, row in table_of("method", name).items():
        explain = getattr(captum.attr, method)(forward).attribute
        pixels = images.clone().requires_grad_()
        if row[name] == "raises":
            with pytest.raises(TypeError, match="has no rule defined"):
                explain(pixels, target=0)
        else:
            assert row[name] == "yes"
            found = explain(pixels, target=0, **options.get(method, {}))
            assert found.shape == images.shape
