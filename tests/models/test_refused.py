"""Towers that are not supported are refused by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from captum_clip import (
    ClipSimilarity,
    ConservativePropagation,
    DirectContribution,
    LastGradAttention,
    targets,
)
from captum_clip.errors import UnsupportedModelError
from captum_clip.models import load_clip, tower_of
from captum_clip.models.library import nondeterminism
from tests import timm_builders
from tests.models.small import small

REFUSED = {
    "CLIPForImageClassification": r"a classifier has no text tower.*captum\.attr\.Saliency\(",
    "SiglipForImageClassification": r"a classifier has no text tower.*captum\.attr\.Saliency\(",
    "XCLIPModel": "a text's embedding changes with the video; use a CLIP on single frames",
    "ClapModel": "texts with sounds, not images",
    "ViltForQuestionAnswering": "neither has an embedding to compare; use a CLIP or SigLIP",
    "ColPaliForRetrieval": "scored by its best patch; use captum_clip.apps.late_interaction",
}


def test_relatives_are_refused_with_a_reason_as_objects_and_as_folders(tmp_path):
    for name, reason in REFUSED.items():
        kind = getattr(transformers, name)
        model = type(name, (nn.Module,), {})()
        with pytest.raises(UnsupportedModelError, match=f"a {name} is not supported; .*{reason}"):
            load_clip(model)
        kind.config_class(architectures=[name]).save_pretrained(tmp_path)
        with pytest.raises(UnsupportedModelError, match=f"model of type '.*'; .*{reason}"):
            load_clip(tmp_path)


def test_the_clip_in_a_module_of_ones_own_is_named():
    inner = small("hf_vit").model
    for model, path in (
        (Wrap(inner), "model.inner"),
        (Wrap(nn.ModuleList([nn.Linear(2, 2), Wrap(inner)])), "model.inner[1].inner"),
    ):
        advice = f"its part `{path}` is a CLIPModel: pass that, or `layer={path}` to a method"
        for call in (load_clip, tower_of):
            with pytest.raises(UnsupportedModelError, match=f"a Wrap.*; {re.escape(advice)}"):
                call(model)


class Wrap(nn.Module):
    """A module of a user's own around one of the library's."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("hf_vit", "vision_model.encoder.layers.1"),
        ("hf_vit", "vision_model.encoder.layers.1.self_attn"),
        ("hf_vit", "vision_model.encoder"),
        ("hf_vit", "vision_model"),
        ("siglip", "vision_model.head"),
        ("align", "vision_model"),
        ("flava", "image_model.encoder.layer.0"),
    ],
)
def test_a_part_that_somebody_wrapped_is_refused(name, part):
    model = small(name).model
    owner, _, attribute = part.rpartition(".")
    setattr(model.get_submodule(owner), attribute, Wrap(model.get_submodule(part)))
    message = rf"a module of the {type(model).__name__} is not .*'Wrap'.*module back, and watch it"
    with pytest.raises(UnsupportedModelError, match=message):
        load_clip(model)
    with pytest.raises(UnsupportedModelError, match=message):
        tower_of(model)


def test_a_text_block_that_somebody_wrapped_is_refused_where_words_are_explained():
    model = small("hf_vit").model
    model.text_model.encoder.layers[1] = Wrap(model.text_model.encoder.layers[1])
    with pytest.raises(UnsupportedModelError, match="a module of the CLIPModel is not"):
        _ = load_clip(model).text_tower


def test_what_wraps_the_projection_is_called_and_refused_where_it_is_not_linear():
    model = small("hf_vit").model
    plain, maps = model.visual_projection, []
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for projection in (plain, Wrap(plain), nn.Sequential(plain, nn.Softsign())):
        model.visual_projection = projection
        forward = ClipSimilarity(load_clip(model), targets.embedding(torch.eye(24)[:1]))
        LastGradAttention(forward).attribute(images)
        if isinstance(projection, nn.Sequential):
            with pytest.raises(UnsupportedModelError, match=r"a Sequential follows the pooled"):
                DirectContribution(forward).attribute(images)
        else:
            maps.append(DirectContribution(forward).attribute(images))
    torch.testing.assert_close(*maps)


@pytest.mark.parametrize("pool", ["parallel", "cascade", True])
def test_open_clip_pools_that_read_several_queries_are_refused(pool):
    vision = {"attentional_pool": pool, "attn_pooler_heads": 4, "pool_type": "avg"}
    with pytest.raises(UnsupportedModelError, match=r"an attentional pool .*the first query"):
        tower_of(small("open_clip_vit", **vision).model)


TIMM: dict[str, dict[str, Any]] = {
    "timm has the pooling 'max'": {"global_pool": "max"},
    "has a DiffAttention in layer 0": {"attn_layer": "diff"},
    "a mean over its prefix tokens too": {"global_pool": "avg", "pool_include_prefix": True},
    "a pool that leaves out the prefix tokens": {"global_pool": "map"},
}


@pytest.mark.parametrize("what", TIMM)
def test_timm_parts_that_are_not_supported_are_named(what):
    with pytest.raises(UnsupportedModelError, match=what):
        tower_of(timm_builders.vision_transformer(**TIMM[what]).model)


def test_open_clip_timm_towers_are_refused_by_name():
    model = small("open_clip_vit").model

    class TimmModel(nn.Module):
        pass

    model.visual = TimmModel()
    with pytest.raises(
        UnsupportedModelError, match="visual tower of OpenCLIP's CLIP is a TimmModel"
    ):
        tower_of(model)


def test_a_tower_without_its_text_tower_is_refused_by_load_clip():
    model = small("hf_vit").model.vision_model
    with pytest.raises(UnsupportedModelError, match=r"has no text tower; pass the whole model, or"):
        load_clip(model)


def test_a_dual_encoder_with_another_vision_model_is_refused_by_name():
    model = small("dual_encoder").model
    model.vision_model = nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError, match=r"expected a CLIPVisionModel .*, got Linear"):
        tower_of(model)


def test_values_that_are_not_linear_in_the_tokens_are_refused_where_they_must_be():
    model = small("hf_vit").model
    attention = model.vision_model.encoder.layers[2].self_attn
    attention.v_proj = nn.Sequential(attention.v_proj, nn.Softsign())
    forward = ClipSimilarity(load_clip(model), targets.embedding(torch.eye(24)[:1]))
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    LastGradAttention(forward).attribute(images)
    with pytest.raises(UnsupportedModelError, match=r"is not linear in its tokens"):
        ConservativePropagation(forward).attribute(images)


def test_drop_path_in_training_is_named():
    tower = tower_of(timm_builders.eva(drop_path_rate=0.2).model)
    assert nondeterminism(tower.module) is None
    tower.module.train()
    assert nondeterminism(tower.module) == "DropPath 0.1"
