"""Bad images and bad targets get one clear error, from a `ClipSimilarity` and from a callable."""

from __future__ import annotations

import re

import pytest
import torch

from captum_clip import attr
from captum_clip.checks import describe
from captum_clip.errors import InputError, TargetError
from tests.attr import cases

METHODS = [("ConservativePropagation", "hf_vit"), ("ClipGradCam", "open_clip_resnet")]


@pytest.fixture(params=["similarity", "callable, layer=model"])
def forward(request):
    """The forward function and the layer of a tower, by its name."""
    return lambda name: cases.FORWARDS[request.param](name, torch.float32)


def with_one(images, value):
    """Images with one value that is none."""
    images = images.clone()
    images[1, 2, 3, 4] = value
    return images


SHAPE = r"shape \(B, 3, H, W\)(, none of them empty)?, got Tensor "
BAD = {
    "nan": (lambda images: with_one(images, float("nan")), "hold NaN or infinity"),
    "inf": (lambda images: with_one(images, float("inf")), "hold NaN or infinity"),
    "3-D": (lambda images: images[0], SHAPE + r"\(3, \d+, \d+\).*images\[None\]"),
    "5-D": (lambda images: images[None], SHAPE + r"\(1, 3, 3, \d+, \d+\)"),
    "gray": (lambda images: images[:, :1], SHAPE + r"\(3, 1,.*preprocess"),
    "alpha": (
        lambda images: torch.cat([images, images[:, :1]], 1),
        SHAPE + r"\(3, 4,.*preprocess",
    ),
    "integers": (
        lambda images: images.to(torch.uint8),
        r"images as a floating-point tensor, got Tensor .* of torch.uint8; .*preprocess",
    ),
    "none": (lambda images: images[:0], SHAPE + r"\(0, 3,"),
}


@pytest.mark.parametrize(
    ("method", "name", "what"),
    [
        *(("LastGradAttention", "hf_vit", what) for what in BAD),
        ("ClipGradCam", "open_clip_resnet", "nan"),
    ],
    ids=str,
)
def test_bad_images_are_named(method, name, what, forward):
    """Shape, channels, type and values are checked before the tower sees the images."""
    function, layer = forward(name)
    found = cases.METHODS[method](function, layer)
    spoil, message = BAD[what]
    images = spoil(cases.images(name))
    with pytest.raises(InputError, match=message):
        found.attribute(images, target=0)
    with pytest.raises(InputError, match=message):
        found.attribute_targets(images)
    if layer is None:  # a `ClipSimilarity` alone refuses them too
        with pytest.raises(InputError, match=message):
            function(images)


@pytest.mark.parametrize(("method", "name"), METHODS, ids=str)
def test_size_that_the_tower_cannot_take_is_named(method, name):
    """The size, and what would fit."""
    found = cases.METHODS[method](cases.similarity(name))
    images = cases.images(name)[:, :, :-1]
    height, width = images.shape[-2:]
    message = f"cannot take images of {height} x {width} pixels.* {width} x {width}"
    with pytest.raises(InputError, match=message):
        found.attribute(images, target=0)


@pytest.mark.parametrize("name", ["open_clip_vit"])
def test_open_clip_takes_no_other_size(name):
    """OpenCLIP's towers take their native size only."""
    images = torch.cat([cases.images(name)] * 2, -1)
    with pytest.raises(InputError, match=r"32 x 64 pixels.*native size only, here 32 x 32"):
        attr.LastGradAttention(cases.similarity(name)).attribute(images, target=0)


@pytest.mark.parametrize("images", ["horse.png", [torch.zeros(1, 3, 32, 32)]], ids=str)
def test_what_is_no_tensor_is_named(images, forward):
    """What was given, and what makes a tensor of it."""
    found = attr.LastGradAttention(*forward("hf_vit"))
    given = re.escape(describe(images))
    with pytest.raises(InputError, match=f"a tensor of images, got {given}; clip.preprocess"):
        found.attribute(images, target=0)


BAD_TARGETS = [
    (4, "target: 4 is out of range; there are 4 scores"),
    (-5, "target: -5 is out of range"),
    ([0, 1, 4], "target: 4 is out of range"),
    (torch.tensor([0, 1, 9]), "target: 9 is out of range"),
    ([0, 1], r"one target, or one for each of 3 images, got \[0, 1\]; for several"),
    (None, "returns 4 scores per image.*target=0.*attribute_targets"),
    (True, r"an index or one index per image, got True"),
    ([0, 1, 2.0], r"got 2.0"),
    ("a horse", r"got 'a horse'"),
]


@pytest.mark.parametrize(("target", "message"), BAD_TARGETS, ids=str)
def test_bad_target_is_named(target, message):
    """The value, and how many there are."""
    found = attr.LastGradAttention(cases.similarity("hf_vit"))
    with pytest.raises(TargetError, match=message):
        found.attribute(cases.images("hf_vit"), target=target)


@pytest.mark.parametrize(("method", "name"), METHODS)
def test_every_method_checks_its_target(method, name):
    """Also where its formula would not fail."""
    found = cases.METHODS[method](cases.similarity(name))
    with pytest.raises(TargetError, match="target: 4 is out of range"):
        found.attribute(cases.images(name), target=4)
    with pytest.raises(TargetError, match="target: 4 is out of range"):
        found.attribute_targets(cases.images(name), [0, 4])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([0, 4], "target: 4 is out of range; there are 4 scores"),
        ([], "targets is empty; leave it out to take all"),
        ([0.5], r"got 0.5"),
    ],
    ids=str,
)
def test_bad_targets_are_named(wanted, message):
    """The same for `attribute_targets`."""
    found = attr.LastGradAttention(cases.similarity("hf_vit"))
    with pytest.raises(TargetError, match=message):
        found.attribute_targets(cases.images("hf_vit"), wanted)


@pytest.mark.parametrize("target", [None, [0, 1, 2]])
def test_rollout_and_attention_need_no_target(target):
    """What no target changes is the same for all of them."""
    images = cases.images("hf_vit")
    for method in (attr.AttentionRollout, attr.LayerAttention):
        found = method(cases.similarity("hf_vit"))
        one = found.attribute(images, target=target)
        assert torch.equal(one.expand(-1, 4, -1, -1), found.attribute_targets(images))


def test_gradient_of_a_layer_needs_a_target():
    """It does depend on the target."""
    method = attr.LayerAttention(cases.similarity("hf_vit"))
    with pytest.raises(TargetError, match=r"returns 4 scores per image"):
        method.attribute(cases.images("hf_vit"), of="gradient")


def test_single_score_needs_no_target():
    """Where K is 1, the target may be left out."""
    method = attr.LastGradAttention(cases.similarity("hf_vit", count=1))
    images = cases.images("hf_vit")
    assert torch.equal(method.attribute(images), method.attribute(images, target=0))
