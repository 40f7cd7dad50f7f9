"""What somebody runs a method inside of: FLOP counters, vmap, compiled functions, meta weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from captum_clip import ClipSimilarity, attr, load_clip
from captum_clip.errors import CaptureError, InputError, UnsupportedModelError
from tests.attr import cases

METHODS = ["conservative", "direct", "last-grad", "removal"]


@pytest.fixture
def clean_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("tower", ["hf_vit"])
@pytest.mark.parametrize("method", METHODS)
def test_maps_are_the_same_while_somebody_counts_flops(method: str, tower: str) -> None:
    """Whose counter asks each tensor that needs a gradient for its place in the graph."""
    forward, model = cases.own_callable(tower), cases.built(tower).model
    explainer = attr.METHODS[method](forward, model)
    plain = explainer.attribute_targets(cases.images(tower))
    with FlopCounterMode(display=False) as counter:
        counted = explainer.attribute_targets(cases.images(tower))
    assert counter.get_total_flops() > 0
    torch.testing.assert_close(counted, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("method", ["direct"])
def test_a_forward_function_under_vmap_is_refused_by_name(method: str) -> None:
    """The batch that it hides is the one that hooks would see."""
    model = cases.built("hf_vit").model

    def one(image: Tensor) -> Tensor:
        result: Tensor = model.get_image_features(image[None]).pooler_output[0, :3]
        return result

    explainer = attr.METHODS[method](torch.vmap(one), model)
    with pytest.raises(CaptureError, match=r"ran the vision tower under torch\.vmap.*whole batch"):
        explainer.attribute_targets(cases.images("hf_vit"))


def test_what_is_called_inside_vmap_is_refused_by_name() -> None:
    """A method, and what the adapter offers to a forward function."""
    explainer, clip = attr.DirectContribution(cases.similarity("hf_vit")), cases.adapter("hf_vit")
    calls: list[Callable[..., Any]] = [
        lambda image: explainer.attribute(image[None], target=0)[0],
        lambda image: clip.encode_image(image[None])[0],
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"inside torch\.vmap, which hides the batch.*without"):
            torch.vmap(call)(cases.images("hf_vit"))


@pytest.mark.usefixtures("clean_compiler")
@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="without stances")
def test_attribute_inside_a_compiled_function_is_refused_by_name() -> None:
    """And the next call outside of it works, with what is compiled elsewhere run as written."""
    explainer, images = attr.DirectContribution(cases.similarity("hf_vit")), cases.images("hf_vit")
    compiled = torch.compile(lambda x: explainer.attribute(x, target=0), backend="eager")
    with pytest.raises(CaptureError, match=r"torch\.compile compiled.*torch\.compiler\.disable"):
        compiled(images)
    assert explainer.attribute(images, target=0).shape[:2] == (len(images), 1)
    ran = []

    def backend(module: Any, _: Any) -> Any:
        ran.append(module)
        return module

    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert ran  # no stance is left behind


@pytest.mark.parametrize("method", ["direct"])
def test_weights_on_the_meta_device_are_said_to_have_no_values(method: str) -> None:
    """As after from_pretrained on that device, before the weights are there."""
    model = copy.deepcopy(cases.built("hf_vit").model).to("meta")
    explainer = attr.METHODS[method](lambda x: model.get_image_features(x).pooler_output, model)
    with pytest.raises(UnsupportedModelError, match=r"on the meta device, so.*assign=True"):
        explainer.attribute_targets(cases.images("hf_vit"))
    similarity = ClipSimilarity(load_clip(model), cases.similarity("hf_vit").target)
    with pytest.raises(UnsupportedModelError, match="on the meta device"):
        attr.METHODS[method](similarity).attribute_targets(cases.images("hf_vit"))


def test_a_forward_that_runs_parts_of_the_tower_is_told_to_call_it() -> None:
    """timm's `forward_features` passes the hooks of the module by."""
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, depth=2).eval()
    attribution = attr.DirectContribution(lambda x: model.forward_features(x)[:, 0, :3], model)
    with pytest.raises(CaptureError, match=r"runs parts of .*forward_features.*call the module"):
        attribution.attribute(torch.randn(1, 3, 64, 64), target=0)


def test_a_siglip_without_its_head_is_explained_by_its_patches() -> None:
    """Its score reads the mean of the patches, since there is no pooled output."""
    config = transformers.SiglipVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8, vision_use_head=False,
    )  # fmt: skip
    model = transformers.SiglipVisionModel(config).eval()
    maps = attr.LastGradAttention(
        lambda images: model(images).last_hidden_state.mean(1)[:, :3], model
    ).attribute_targets(torch.randn(2, 3, 32, 32))
    assert maps.shape == (2, 3, 4, 4)
    assert (maps > 0).any()
