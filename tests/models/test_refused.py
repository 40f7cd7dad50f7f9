"""Towers that are not supported are refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from captum_clip.errors import UnsupportedModelError
from captum_clip.models import load_clip, tower_of
from tests import builders


def small(name, dtype=torch.float32, **vision):
    built = builders.BUILDERS[name](**vision)
    built.model.to(dtype)
    return built


def test_tower_of_names_what_it_does_not_know():
    with pytest.raises(
        UnsupportedModelError, match=r"in a Linear.*CLIPVisionModel, .*ModifiedResNet"
    ):
        tower_of(nn.Linear(2, 2))


def test_siglip_head_with_more_than_a_linear_map_is_refused():
    model = small("siglip").model
    model.vision_model.head.attention.out_proj = nn.Sequential(nn.Linear(24, 24))
    with pytest.raises(UnsupportedModelError, match=r"pooling head .* no torch\.nn\.Linear;.*LoRA"):
        tower_of(model)


@pytest.mark.parametrize("option", ["qk_norm", "scaled_cosine_attn", "scale_heads"])
def test_open_clip_attention_variants_are_refused_by_name(option):
    what = {"scaled_cosine_attn": "scaled_cosine"}.get(option, option)
    with pytest.raises(UnsupportedModelError, match=rf"layer 0 .* attention with {what};"):
        tower_of(small("open_clip_vit", **{option: True}).model)


def test_open_clip_inner_norm_is_refused_by_name():
    with pytest.raises(UnsupportedModelError, match="attention with inner_norm;"):
        tower_of(small("open_clip_vit", scale_attn_inner=True).model)


def test_open_clip_separate_weights_are_refused():
    model = small("open_clip_vit").model
    model.visual.transformer.resblocks[1].attn = nn.MultiheadAttention(32, 4, kdim=32, vdim=16)
    with pytest.raises(UnsupportedModelError, match=r"layer 1 .* separate query, key and value"):
        tower_of(model)


def test_open_clip_attentional_pool_is_refused():
    with pytest.raises(UnsupportedModelError, match="an attentional pool"):
        tower_of(small("open_clip_vit", attentional_pool=True, attn_pooler_heads=4).model)


def test_open_clip_without_pooling_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"no single pooled token.*'none'"):
        tower_of(small("open_clip_vit", pool_type="none").model)


def test_open_clip_timm_towers_are_refused_by_name():
    model = small("open_clip_vit").model

    class TimmModel(nn.Module):
        pass

    model.visual = TimmModel()
    with pytest.raises(UnsupportedModelError, match="CLIP has a TimmModel as its visual tower"):
        tower_of(model)


def test_a_tower_without_its_text_tower_is_refused_by_load_clip():
    model = small("hf_vit").model.vision_model
    with pytest.raises(UnsupportedModelError, match=r"has no text tower; pass the whole model, or"):
        load_clip(model)


def test_naflex_is_refused_with_what_would_run_instead():
    from transformers import Siglip2Model

    model = Siglip2Model.__new__(Siglip2Model)
    nn.Module.__init__(model)
    for ask in (load_clip, tower_of):
        with pytest.raises(
            UnsupportedModelError, match=r"Siglip2Model.*NaFlex.*take .*patch16-224"
        ):
            ask(model)


def test_a_dual_encoder_with_another_vision_model_is_refused_by_name():
    model = small("dual_encoder").model
    model.vision_model = nn.Linear(2, 2)
    with pytest.raises(
        UnsupportedModelError, match=r"a Linear as its vision model; supported is C"
    ):
        tower_of(model)


def test_transformers_attention_of_other_modules_is_refused():
    model = small("hf_vit").model
    model.vision_model.encoder.layers[2].self_attn.v_proj = nn.Sequential(nn.Linear(32, 32))
    with pytest.raises(UnsupportedModelError, match=r"layer 2 .* Sequential as v_proj.*LoRA"):
        tower_of(model)
