"""A `ClipSimilarity` is an ordinary forward function for Captum's own methods."""

from __future__ import annotations

import inspect
import pydoc
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import transformers
from captum import attr as captum_attr
from PIL import Image
from torch import Tensor

from captum_clip import attr
from captum_clip.errors import InputError, TargetError, UnsupportedModelError
from tests import builders
from tests.attr import cases

LIBRARIES = ["hf_vit", "open_clip_resnet"]


@pytest.fixture(params=LIBRARIES)
def setting(request):
    """A forward function and two images."""
    return cases.similarity(request.param), cases.images(request.param, batch=2)


@pytest.mark.parametrize("target", [1, [2, 0]])
def test_integrated_gradients_add_up_to_the_difference(setting, target):
    """Completeness: the attributions sum to the score less the baseline's."""
    forward, images = setting
    method = captum_attr.IntegratedGradients(forward)
    maps, delta = method.attribute(images, target=target, n_steps=24, return_convergence_delta=True)
    assert maps.shape == images.shape
    rows = torch.arange(2)
    with torch.no_grad():
        gain = (forward(images) - forward(torch.zeros_like(images)))[rows, target]
    torch.testing.assert_close(maps.sum((1, 2, 3)) - gain, delta.float(), atol=1e-4, rtol=0)
    assert torch.isfinite(delta).all()


def test_saliency_is_the_gradient(setting):
    """Saliency equals autograd on the similarity."""
    forward, images = setting
    leaf = images.clone().requires_grad_()
    found = captum_attr.Saliency(forward).attribute(leaf, target=[2, 0], abs=False)
    (wanted,) = torch.autograd.grad(forward(leaf)[torch.arange(2), [2, 0]].sum(), leaf)
    torch.testing.assert_close(found, wanted)


def test_occlusion_runs(setting):
    """Occlusion of one channel block equals the drop of the score."""
    forward, images = setting
    size = images.shape[-1] // 2
    window = (3, size, size)
    maps = captum_attr.Occlusion(forward).attribute(images, window, window, target=1)
    covered = images.clone()
    covered[:, :, :size, :size] = 0
    with torch.no_grad():
        drop = (forward(images) - forward(covered))[:, 1]
    torch.testing.assert_close(maps[:, 0, 0, 0].float(), drop, atol=1e-5, rtol=1e-4)


NAME = "open_clip_resnet"


def grad_cams(layer):
    """Ours and Captum's on one layer of the ResNet."""
    forward = cases.similarity(NAME)
    return attr.ClipGradCam(forward, layer), captum_attr.LayerGradCam(forward, layer)


@pytest.mark.parametrize("path", ["layer3", "layer4.0.conv2"])
@pytest.mark.parametrize(
    ("relu", "summed", "of_input"), [(True, True, False), (False, False, True)]
)
def test_grad_cam_of_another_layer_is_captums(path, relu, summed, of_input):
    """With any other module the same numbers, bit by bit."""
    layer = cases.built(NAME).model.visual.get_submodule(path)
    ours, captums = grad_cams(layer)
    images = cases.images(NAME)
    options = {
        "target": [2, 0, 1],
        "attribute_to_layer_input": of_input,
        "relu_attributions": relu,
        "attr_dim_summation": summed,
    }
    found, wanted = ours.attribute(images, **options), captums.attribute(images, **options)
    assert torch.equal(found, wanted)
    found = ours.attribute((images,), **options)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("relu", [False, True])
def test_grad_cam_of_the_last_stage_equals_captums(relu):
    """The short way and Captum's way agree."""
    stage = cases.built(NAME).model.visual.layer4
    ours, captums = grad_cams(stage)
    short = attr.ClipGradCam(cases.similarity(NAME))
    images = cases.images(NAME)
    wanted = captums.attribute(images, target=[2, 0, 1], relu_attributions=relu)
    for method in (ours, short):
        found = method.attribute(images, target=[2, 0, 1], relu_attributions=relu)
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    "options",
    [
        {"grad_kwargs": {"retain_graph": True}},
        {"attribute_to_layer_input": True, "attr_dim_summation": False},
    ],
    ids=str,
)
def test_grad_cam_passes_captums_options_on(options):
    """What the short way does not offer, Captum computes on the last stage."""
    stage = cases.built(NAME).model.visual.layer4
    captums = captum_attr.LayerGradCam(cases.similarity(NAME), stage)
    images = cases.images(NAME)
    found = attr.ClipGradCam(cases.similarity(NAME)).attribute(images, target=1, **options)
    wanted = captums.attribute(images, target=1, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)


def test_grad_cam_of_another_layer_needs_no_clip():
    """Any convolutional network with any layer, as in Captum, without image checks."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(64, 2)
    )
    inputs = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    found = attr.ClipGradCam(net, net[0]).attribute(inputs, target=1)
    assert torch.equal(found, captum_attr.LayerGradCam(net, net[0]).attribute(inputs, target=1))


def classifier():
    """An image classifier of transformers, whose output is no tensor."""
    config = transformers.ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8)
    return transformers.ResNetForImageClassification(config).eval()


def test_grad_cam_of_a_stage_of_a_classifier_is_captums():
    """The stage is the layer, and nothing stays behind in the network."""
    net = classifier()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    arguments = (lambda pixels: net(pixels).logits), net.resnet.encoder.stages[-1]
    found = attr.ClipGradCam(*arguments).attribute(images, target=1)
    wanted = captum_attr.LayerGradCam(*arguments).attribute(images, target=1)
    torch.testing.assert_close(found, wanted)
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("path", ["heads", None])
def test_grad_cam_refuses_a_layer_without_places(path):
    """A classifier's head, a network whose patches become tokens, one that returns no tensor."""
    net, forward = torchvision.models.VisionTransformer(64, 16, 1, 2, 16, 16).eval(), None
    if path is None:
        net, path = classifier(), ""
        forward = lambda pixels: net(pixels).logits  # noqa: E731
    method = attr.ClipGradCam(forward or net, layer=net.get_submodule(path))
    with pytest.raises(UnsupportedModelError, match=r"does not return \(B, C, h, w\); pass a conv"):
        method.attribute(torch.zeros(1, 3, 64, 64), target=1)


def test_an_argument_of_other_methods_is_refused_with_those_that_there_are():
    """Those of IntegratedGradients, by the class that has none of them."""
    method = attr.DirectContribution(cases.similarity("hf_vit"))
    message = (
        r"^DirectContribution.attribute takes no n_steps, baselines; it takes inputs, .* depth"
    )
    with pytest.raises(TypeError, match=message):
        method.attribute(cases.images("hf_vit"), target=0, n_steps=50, baselines=0)
    with pytest.raises(TypeError, match=r"cannot be called like this \(missing .*'inputs'"):
        method.attribute()


@pytest.mark.parametrize("argument", ["attribute_to_layer_input", "grad_kwargs"])
def test_an_argument_of_captums_layer_methods_is_refused_with_the_reason(argument: str) -> None:
    method = attr.LastGradAttention(cases.similarity("hf_vit"))
    message = (
        rf"takes no {argument} \((a map is one of positions|the method itself chooses).*\); it"
    )
    with pytest.raises(TypeError, match=message):
        method.attribute(cases.images("hf_vit"), target=0, **{argument: None})


ADDITIVE = [attr.DirectContribution, attr.ConservativePropagation]


@pytest.mark.parametrize("method", [*ADDITIVE, attr.LastGradAttention, attr.ClipGradCam])
def test_methods_have_a_delta_where_their_maps_add_up(method: Any) -> None:
    explainer = method(cases.similarity("hf_vit" if "vit" in method.towers else NAME))
    assert explainer.has_convergence_delta() == (method in ADDITIVE) == method.additive
    assert explainer.multiplies_by_inputs == (method in ADDITIVE)


@pytest.mark.parametrize("method", ADDITIVE)
def test_the_delta_is_what_map_and_rest_leave_of_the_score(method: Any) -> None:
    """Of each image; Captum's NoiseTunnel has that of each noisy copy."""
    forward, images = cases.similarity("hf_vit", torch.float64), cases.images("hf_vit").double()
    explainer, call = method(forward), {"target": [2, 0, -1]}
    maps, rest, delta = explainer.attribute(
        (images,), return_rest=True, return_convergence_delta=True, **call
    )
    assert delta.shape == (3,)
    assert delta.abs().max() < 1e-6
    half = explainer.compute_convergence_delta(maps[0] / 2, 0 * rest, images, **call)
    scores = forward(images).detach()[torch.arange(3), torch.tensor([2, 0, 3])]
    # As Captum has it: the sum of the attributions less what they should add up to.
    torch.testing.assert_close(half, (scores - rest[:, 0]) / 2 - scores, rtol=0, atol=1e-6)
    noisy = captum_attr.NoiseTunnel(explainer).attribute(
        images, nt_samples=2, return_convergence_delta=True, **call
    )
    assert noisy[1].shape == (6,)
    assert noisy[1].abs().max() < 1e-6


def test_a_delta_names_what_it_needs() -> None:
    explainer, images = ADDITIVE[0](cases.similarity("hf_vit")), cases.images("hf_vit")
    maps, rest = explainer.attribute(images, target=1, return_rest=True)
    with pytest.raises(InputError, match=r"a rest \(B, 1\) of 3 images, got .* return_rest=True"):
        explainer.compute_convergence_delta(maps, rest[:2], images, target=1)
    with pytest.raises(InputError, match=r"a rest \(B, 1\) of 3 images, got .* return_rest=True"):
        explainer.compute_convergence_delta((maps, maps), rest, images, target=1)
    with pytest.raises(TargetError, match="returns 4 scores per image"):
        explainer.compute_convergence_delta(maps, rest, images)
    with pytest.raises(InputError, match="`return_convergence_delta` of True or False, got 1"):
        explainer.attribute(images, target=1, return_convergence_delta=1)


def test_help_of_a_method_is_its_own():
    """Its constructor's arguments are not those of Captum, and it says what it returns."""
    assert "device_ids" not in pydoc.render_doc(attr.DirectContribution)
    one = inspect.signature(attr.LastGradAttention.attribute).return_annotation
    several = inspect.signature(attr.DirectContribution.attribute).return_annotation
    assert str(one) == "~TensorOrTuple"
    assert "tuple[~TensorOrTuple, ...]" in str(several)


@pytest.mark.parametrize("method", ["LastGradAttention"])
def test_methods_are_layer_attributions(method):
    """Captum's `interpolate` comes with the class, and `layer` is the tower."""
    found = cases.METHODS[method](cases.similarity("hf_vit"))
    assert isinstance(found, captum_attr.LayerAttribution)
    assert found.layer is cases.adapter("hf_vit").vision
    maps = torch.rand(1, 1, 4, 4)
    assert found.interpolate(maps, (32, 32)).shape == (1, 1, 32, 32)


@pytest.mark.parametrize("path", ["layer3", "layer4"])
@pytest.mark.parametrize("mode", [torch.inference_mode])
def test_captums_way_works_in_every_mode(path, mode):
    """Also on images that were made in the mode."""
    layer = cases.built(NAME).model.visual.get_submodule(path)
    method = attr.ClipGradCam(cases.similarity(NAME), layer)
    options = {"target": 1, "attr_dim_summation": False}
    wanted = method.attribute(cases.images(NAME), **options)
    with mode():
        images = cases.images(NAME).clone()
        assert torch.equal(method.attribute(images, **options), wanted)
        assert torch.equal(method.attribute((images,), **options), wanted)


def language_models() -> list[Any]:
    """A small LLaVA and a small PaliGemma, whose image tokens are id 259."""
    import transformers as hf

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads: dict[str, Any] = {**sizes, "num_attention_heads": 4}
    text = {**heads, "vocab_size": 260, "num_key_value_heads": 4, "pad_token_id": 0}
    vision = {**heads, "image_size": 32, "patch_size": 8}
    llava = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**vision),
        text_config=hf.LlamaConfig(**text),
        image_token_index=259,
        image_seq_length=16,
    )
    pali = hf.PaliGemmaConfig(
        vision_config={**vision, "model_type": "siglip_vision_model"},
        text_config={**text, "head_dim": 8, "model_type": "gemma"},
        image_token_index=259,
        projection_dim=32,
        hidden_size=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = [
            hf.LlavaForConditionalGeneration(llava),
            hf.PaliGemmaForConditionalGeneration(pali),
        ]
    return [model.eval() for model in models]


@pytest.mark.parametrize("index", [0, 1], ids=["llava", "paligemma"])
@pytest.mark.filterwarnings("ignore:.*Skipping this token:UserWarning")  # Captum's, of bytes
def test_a_vision_language_model_is_explained_by_captums_own_way(index: int) -> None:
    """The recipe of docs/captum.md, whose cache would show every region the first image."""
    from captum.attr import FeatureAblation, ImageMaskInput, LLMAttribution

    model, tokenizer = language_models()[index], builders.byte_tokenizer()

    def inputs(image: Any) -> dict[str, Tensor]:
        ids = torch.tensor([[259] * 16 + tokenizer("what", add_special_tokens=False).input_ids])
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}

    drawn = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    cells = torch.arange(16).view(4, 4).repeat_interleave(8, 0).repeat_interleave(8, 1)
    regions = ImageMaskInput(Image.fromarray(drawn), mask=cells, processor_fn=inputs)
    attribution = LLMAttribution(FeatureAblation(model), tokenizer)
    result = attribution.attribute(regions, target="dog", use_cached_outputs=False)
    assert result.seq_attr.shape == (16,)
    assert (result.seq_attr != 0).all()


def test_grad_cam_is_a_layer_grad_cam():
    """Code that asks for Captum's class finds it."""
    method = attr.ClipGradCam(cases.similarity(NAME))
    assert isinstance(method, captum_attr.LayerGradCam)
    assert method.layer is cases.built(NAME).model.visual.layer4
