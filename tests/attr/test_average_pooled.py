"""Grad-CAM on convolutional towers that average their features: Captum's, at a fraction of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from captum_clip import ClipSimilarity, attr, targets
from captum_clip.errors import InputError, UnsupportedModelError
from captum_clip.models import load_clip, tower_of
from tests import builders
from tests.attr import cases
from tests.attr.laws import rounding

SIZES = {"timm_convnext": (64, 128), "align": (50, 91)}


@pytest.mark.parametrize("name", ["timm_convnext", "align"])
def test_maps_equal_captums_also_at_another_size(name):
    """All targets from one pass that ends after the last stage, to rounding in float64."""
    forward = cases.similarity(name, torch.float64)
    generator = torch.Generator().manual_seed(0)
    for size in (None, SIZES[name]):
        pixels = cases.images(name, torch.float64)
        if size is not None:
            pixels = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
        found = attr.ClipGradCam(forward).attribute_targets(pixels)
        assert found.shape[-2:] == forward.clip.grid(*pixels.shape[-2:])
        captums = LayerGradCam(forward, cases.adapter(name, torch.float64).tower.stage)
        wanted = [captums.attribute(pixels, target=k).detach() for k in range(cases.COUNT)]
        cases.assert_maps_close(found, torch.cat(wanted, 1), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["timm_convnext"])
def test_half_precision_towers_give_maps_in_float32(name, dtype):
    small = builders.BUILDERS[name]()
    small.model.to(dtype)
    forward = ClipSimilarity(small.load(), targets.embedding(cases.embeddings()))
    maps, scores = attr.ClipGradCam(forward).attribute_targets(small.images(), return_scores=True)
    wanted = cases.expected(name, cases.Case("ClipGradCam", {}), batch=2)
    assert maps.dtype == scores.dtype == torch.float32
    error = (maps - wanted).abs().amax((2, 3)) / wanted.abs().amax((2, 3))
    bound = 0.05 if dtype == torch.float16 else 0.3
    assert error.max() < max(bound, 2 * rounding(small, small.images(dtype=dtype)))


@pytest.mark.parametrize("name", ["timm_convnext"])
def test_sizes_that_the_strides_do_not_divide_are_refused(name):
    with pytest.raises(InputError, match=r"100 x 96 pixels: .* multiples of 32 x 32, .* 96 x 96"):
        cases.adapter(name).grid(100, 96)
    odd = replace(cases.adapter(name).tower, native=(100, 96))  # strides may round its rows up
    with pytest.raises(InputError, match=r"multiples of 32 x 32, .* 100 x 96"):
        odd.grid(100, 96)


def test_an_image_that_vanishes_in_the_strides_is_refused():
    with pytest.raises(InputError, match=r"nothing is left of 1 x 40 pixels"):
        cases.adapter("align").grid(1, 40)


@pytest.mark.parametrize("name", ["timm_convnext"])
def test_a_head_with_a_hook_is_explained_as_it_is(name):
    """The short way is not taken, and the map is that of what the model computes."""
    small = builders.BUILDERS[name]()
    model = small.model.double()
    head = model.vision_model.pooler if name == "align" else model.visual.head
    head.register_forward_hook(lambda *call: call[-1].square())
    clip = small.load()
    forward = ClipSimilarity(clip, targets.embedding(cases.embeddings()))
    pixels = small.images(2, torch.float64)
    found = attr.ClipGradCam(forward).attribute(pixels, target=1)
    wanted = LayerGradCam(forward, clip.tower.stage).attribute(pixels, target=1).detach()
    cases.assert_maps_close(found, wanted, 1e-10)


def test_other_networks_of_timm_are_refused_by_name():
    model = builders.timm_convnext(timm_model_name="test_resnet", timm_pool="avg").model
    with pytest.raises(UnsupportedModelError, match=r"tower of OpenCLIP's .* is a ResNet; supp"):
        tower_of(model)


def test_a_convnext_with_another_pool_is_refused():
    model = builders.timm_convnext(timm_pool="max").model
    with pytest.raises(UnsupportedModelError, match=r"ConvNeXt and FastVit with average pooling"):
        load_clip(model)


def test_an_align_that_pools_the_maximum_is_refused():
    model = builders.align().model
    model.vision_model.pooler = nn.MaxPool2d(24, ceil_mode=True)
    with pytest.raises(UnsupportedModelError, match=r"AlignVisionModel with pooling_type"):
        load_clip(model)
