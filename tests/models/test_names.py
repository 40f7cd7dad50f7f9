"""The nine names lead to the architectures of the tables."""

from __future__ import annotations

from functools import lru_cache

import open_clip
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from captum_clip.models.names import PUBLISHED, published

RESNETS = ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"]
VITS = {  # OpenCLIP's own architectures are an independent source for the ViTs
    "ViT-B/32": ("ViT-B-32", "openai/clip-vit-base-patch32"),
    "ViT-B/16": ("ViT-B-16", "openai/clip-vit-base-patch16"),
    "ViT-L/14": ("ViT-L-14", "openai/clip-vit-large-patch14"),
    "ViT-L/14@336px": ("ViT-L-14-336", "openai/clip-vit-large-patch14-336"),
}


@lru_cache
def architecture(name):
    with torch.device("meta"):
        return open_clip.CLIP(**open_clip.get_model_config(name))


def own(name):
    row = published(name)
    assert row is not None
    model = architecture(row.checkpoint if row.library == "open_clip" else VITS[name][0])
    return row, model


def test_the_nine_names_are_there():
    assert [row.name for row in PUBLISHED] == [*RESNETS, *VITS]


@pytest.mark.parametrize("name", [*RESNETS, *VITS])
def test_columns_for_the_text_encoder(name):
    row, model = own(name)
    assert row.text_layers == len(model.transformer.resblocks)
    assert row.text_width == model.transformer.width
    assert row.text_heads == model.transformer.resblocks[0].attn.num_heads
    assert row.embedding_dim == model.text_projection.shape[1]


@pytest.mark.parametrize("name", RESNETS)
def test_columns_for_the_resnets(name):
    row, model = own(name)
    visual = model.visual
    stages = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
    assert row.kind == "resnet"
    assert row.vision_layers == tuple(len(stage) for stage in stages)
    assert row.vision_width == visual.attnpool.q_proj.in_features
    assert row.vision_heads == visual.attnpool.num_heads
    assert row.input_resolution == visual.image_size
    assert row.embedding_dim == visual.output_dim


@pytest.mark.parametrize("name", VITS)
def test_columns_for_the_vits(name):
    row, model = own(name)
    visual = model.visual
    assert row.kind == "vit"
    assert row.vision_layers == len(visual.transformer.resblocks)
    assert row.vision_width == visual.transformer.width
    assert row.vision_heads == visual.transformer.resblocks[0].attn.num_heads
    assert (row.input_resolution,) * 2 == visual.image_size
    assert row.embedding_dim == visual.output_dim
    assert row.checkpoint == VITS[name][1]


@pytest.mark.parametrize("name", VITS)
def test_transformers_builds_the_same_vits(name):
    row, model = own(name)
    patch = int(name.partition("/")[2].partition("@")[0])
    config = CLIPConfig(
        projection_dim=row.embedding_dim,
        text_config={
            "hidden_size": row.text_width,
            "intermediate_size": 4 * row.text_width,
            "num_hidden_layers": row.text_layers,
            "num_attention_heads": row.text_heads,
        },
        vision_config={
            "hidden_size": row.vision_width,
            "intermediate_size": 4 * row.vision_width,
            "num_hidden_layers": row.vision_layers,
            "num_attention_heads": row.vision_heads,
            "image_size": row.input_resolution,
            "patch_size": patch,
        },
    )
    with torch.device("meta"):
        same = CLIPModel(config)
    counts = [sum(p.numel() for p in m.parameters()) for m in (same, model)]
    assert counts[0] == counts[1]


def test_quick_gelu_architectures_are_listed_with_openais_weights():
    for row in PUBLISHED:
        if row.library == "open_clip":
            assert row.checkpoint.endswith("-quickgelu")
            assert "openai" in open_clip.list_pretrained_tags_by_model(row.checkpoint)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("ResNet50", "RN50"),
        ("ResNet101", "RN101"),
        ("ResNet50x4", "RN50x4"),
        ("ResNet50x16", "RN50x16"),
        ("ResNet50x64", "RN50x64"),
        ("ViT-L/14-336px", "ViT-L/14@336px"),
        ("vit-b/32", "ViT-B/32"),
    ],
)
def test_other_spellings_lead_to_the_same_row(spelling, name):
    row = published(spelling)
    assert row is not None
    assert row.name == name


def test_other_names_lead_nowhere():
    assert published("ViT-B/8") is None
    assert published("openai/clip-vit-base-patch32") is None
