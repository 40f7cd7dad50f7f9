"""The first table in docs/appendix/support.md: ``python -m tests.support`` writes it.

Every cell is run, on a small model of each tower.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_clip import ClipSimilarity, load_clip, targets
from captum_clip.errors import UnsupportedModelError
from tests import builders, timm_builders
from tests.attr import cases
from tests.samples import normal

TABLES = Path(__file__).parents[1] / "docs" / "appendix" / "tables"
METHODS: dict[str, Any] = cases.OWN
COLUMNS = [*METHODS]  # a method that the page lacks fails tests/test_support.py


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
    "transformers SigLIP": lambda: builders.siglip().model,
    "transformers SigLIP 2 NaFlex": lambda: builders.naflex().model,
    "transformers MetaClip2": lambda: builders.BUILDERS["metaclip2"]().model,
    "transformers AltCLIP": lambda: builders.BUILDERS["altclip"]().model,
    "transformers ChineseCLIP": lambda: builders.BUILDERS["chinese_clip"]().model,
    "transformers CLIPSeg": lambda: builders.BUILDERS["clipseg"]().model,
    "transformers OwlViT": lambda: builders.BUILDERS["owlvit"]().model,
    "transformers Owlv2": lambda: builders.BUILDERS["owlv2"]().model,
    "transformers VisionTextDualEncoder": lambda: builders.BUILDERS["dual_encoder"]().model,
    "transformers BLIP, retrieval head": lambda: builders.blip().model,
    "transformers AIMv2": lambda: builders.aimv2().model,
    "transformers TIPSv2": lambda: builders.tipsv2().model,
    "OpenCLIP ViT, CLS pooling": open_clip_vit,
    "OpenCLIP ViT, own attention, LayerScale": lambda: builders.open_clip_custom_vit().model,
    "OpenCLIP ViT, qk_norm": partial(open_clip_vit, qk_norm=True),
    "OpenCLIP ViT, inner_norm": partial(open_clip_vit, scale_attn_inner=True),
    "OpenCLIP ViT, mean pooling": lambda: builders.open_clip_vit_mean().model,
    "OpenCLIP ViT, attention pooling": partial(
        open_clip_vit, attentional_pool=True, attn_pooler_heads=4
    ),
    "OpenCLIP CoCa": lambda: builders.coca().model,
    "OpenCLIP ResNet": lambda: builders.open_clip_resnet().model,
    "OpenCLIP SigLIP, SigLIP 2": lambda: timm_builders.timm_siglip().model,
    "OpenCLIP EVA01": lambda: timm_builders.eva01().model,
    "OpenCLIP EVA02": lambda: timm_builders.eva02().model,
    "OpenCLIP EVA02-E": lambda: timm_builders.eva02_e().model,
    "OpenCLIP PE-Core": lambda: timm_builders.pe_core().model,
    "OpenCLIP MobileCLIP-B, MobileCLIP2-L": lambda: timm_builders.mobileclip().model,
    "OpenCLIP ViTamin": lambda: timm_builders.vitamin().model,
    "OpenCLIP gap_256": lambda: timm_builders.timm_gap().model,
    "OpenCLIP ConvNeXt": lambda: builders.timm_convnext().model,
    "OpenCLIP FastViT (MobileCLIP S)": lambda: builders.timm_fastvit().model,
    "OpenCLIP ViT, no pooling": partial(open_clip_vit, pool_type="none"),
    "OpenCLIP ViT, scale_heads": partial(open_clip_vit, scale_heads=True),
    "OpenCLIP relpos": partial(timm_tower, "vit_relpos_medium_patch16_cls_224"),
    "OpenCLIP Swin": partial(timm_tower, "swin_base_patch4_window7_224"),
}


def similarity_of(model: Any) -> tuple[ClipSimilarity, Tensor]:
    """The cosine with two random rows, and images of the model's size."""
    clip = load_clip(model)
    vision: Any = clip.vision
    size = getattr(vision if hasattr(vision, "image_size") else vision.config, "image_size", 32)
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


def table(cells_of: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """The whole table from each tower's cells: a row for all that have the same."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, cells in cells_of.items():
        groups.setdefault(tuple(cells), []).append(name)
    rows = [["; ".join(names), *cells] for cells, names in groups.items()]
    return [["tower", *(f"`{method}`" for method in COLUMNS)], *rows]


def main() -> None:
    """Write the table in its place."""
    models = {name: build() for name, build in TOWERS.items()}
    cells = {name: [what_happens(model, m) for m in COLUMNS] for name, model in models.items()}
    with (TABLES / "towers.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table(cells))


if __name__ == "__main__":
    main()
