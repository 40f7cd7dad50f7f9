"""The nine names of Mamooler's report lead to the architectures that OpenAI published."""

from __future__ import annotations

import open_clip
import pytest
import torch

from captum_clip.models import available
from captum_clip.models.published import named_model

# embedding dimension, resolution, vision layers, vision width: Tables I and II of the report, with
# the resolution of ViT-L/14@336px put right (the report writes 224)
MODELS = {
    "RN50": ("RN50-quickgelu", 1024, 224, [3, 4, 6, 3], 2048),
    "RN101": ("RN101-quickgelu", 512, 224, [3, 4, 23, 3], 2048),
    "RN50x4": ("RN50x4-quickgelu", 640, 288, [4, 6, 10, 6], 2560),
    "RN50x16": ("RN50x16-quickgelu", 768, 384, [6, 8, 18, 8], 3072),
    "RN50x64": ("RN50x64-quickgelu", 1024, 448, [3, 15, 36, 10], 4096),
    "ViT-B/32": ("ViT-B-32", 512, 224, 12, 768),
    "ViT-B/16": ("ViT-B-16", 512, 224, 12, 768),
    "ViT-L/14": ("ViT-L-14", 768, 224, 24, 1024),
    "ViT-L/14@336px": ("ViT-L-14-336", 768, 336, 24, 1024),
}
SPELLINGS = {
    "ResNet50": "RN50",
    "resnet50X4": "RN50x4",
    "rn50-quickgelu/openai": "RN50",
    "vit-b/32": "ViT-B/32",
    "ViT-L/14-336px": "ViT-L/14@336px",
}


def test_the_nine_names_are_there():
    assert [row.name for row in available() if row.checkpoint != "embedded"] == list(MODELS)
    assert named_model("ViT-B/8") is None
    assert named_model("openai/clip-vit-base-patch32") is None


def test_other_spellings_lead_to_the_same_model():
    for spelling, name in SPELLINGS.items():
        assert named_model(spelling) is named_model(name)


@pytest.mark.parametrize("name", MODELS)
def test_open_clips_architecture_has_the_sizes_of_the_tables(name):
    """For the ViTs, which load from transformers, it is an independent source."""
    architecture, dimension, size, layers, width = MODELS[name]
    row = named_model(name)
    assert row is not None
    if row.library == "open_clip":
        assert row.checkpoint == architecture
        assert "openai" in open_clip.list_pretrained_tags_by_model(architecture)
    with torch.device("meta"):
        visual = open_clip.CLIP(**open_clip.get_model_config(architecture)).visual
    assert (visual.output_dim, visual.image_size) in [(dimension, size), (dimension, (size, size))]
    if isinstance(layers, int):
        assert (len(visual.transformer.resblocks), visual.transformer.width) == (layers, width)
    else:
        stages = [getattr(visual, f"layer{i}") for i in range(1, 5)]
        assert [len(stage) for stage in stages] == layers
        assert visual.attnpool.c_proj.in_features == width
