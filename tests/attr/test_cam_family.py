"""The classes of pytorch-grad-cam give their own maps, by name, and never touch the model."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from captum_clip import CamFamily, ClipGradCam, ClipSimilarity, explain, load_clip
from captum_clip import targets as target_module
from captum_clip.attr.registry import MethodChoice, methods_for
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError, UnsupportedModelError
from tests.attr import cases, state

# weights of gradients, of activations alone, and of further forwards
ON_FEATURES = ["GradCAM", "LayerCAM", "EigenCAM", "ScoreCAM"]


class Scores(nn.Module):
    """A model as the library wants it: pixels -> scores, all modules its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = copy.deepcopy(cases.built(name).model)

    def forward(self, pixels: Tensor) -> Tensor:
        embedding = cases.embed(self.model, pixels)
        return nn.functional.normalize(embedding, dim=-1) @ cases.embeddings().float().T


def resized(maps: Tensor, pixels: Tensor) -> Any:
    """Maps (B, h, w), scaled and resized as the library does with its own."""
    size = (pixels.shape[-1], pixels.shape[-2])
    return scale_cam_image(scale_cam_image(maps.numpy(), size))


COSTLY = ("ScoreCAM", "AblationCAM")  # a forward for every channel


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *(("timm_convnext", variant) for variant in ON_FEATURES),
        *(("open_clip_resnet", variant) for variant in ON_FEATURES if variant not in COSTLY),
    ],
)
def test_maps_are_the_librarys_own(name: str, variant: str) -> None:
    """As its documentation runs it, on a copy of the whole model."""
    pixels = cases.images(name)[: 1 if variant in COSTLY else 3]
    found = CamFamily(cases.similarity(name)).attribute_targets(pixels, variant=variant)
    assert found.shape[2:] == cases.adapter(name).grid(*pixels.shape[-2:])
    assert (found >= 0).all()
    assert found.any()
    whole = Scores(name)
    visual = whole.model.visual
    layer = visual.layer4 if name == "open_clip_resnet" else visual.trunk.stages[-1]
    for k in range(cases.COUNT):
        with getattr(pytorch_grad_cam, variant)(model=whole, target_layers=[layer]) as cam:
            wanted = cam(pixels.clone(), [ClassifierOutputTarget(k)] * len(pixels))
        assert abs(resized(found[:, k], pixels) - wanted).max() < 1e-3


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit_mean", "siglip"])
def test_grad_cam_on_tokens_equals_its_formula(name: str) -> None:
    """The patches that enter the last block, or with another pooling than CLS leave it."""
    model, pixels = cases.built(name, torch.float64).model, cases.images(name).double()
    tower = cases.adapter(name, torch.float64).tower
    seen: list[Tensor] = []

    def note(module: Any, args: Any, result: Any) -> Any:
        output = result[0] if isinstance(result, tuple) else result
        output = output.detach().requires_grad_()
        seen.append(output)
        return (output, *result[1:]) if isinstance(result, tuple) else output

    index = -2 if tower.pooling == "cls" else -1
    handle = tower.layers[index].block.register_forward_hook(note)
    scores = nn.functional.normalize(cases.embed(model, pixels), dim=-1) @ cases.embeddings().T
    handle.remove()
    function = cases.similarity(name, torch.float64)
    found = CamFamily(function).attribute_targets(pixels)
    own = CamFamily(cases.own_callable(name, torch.float64), model).attribute_targets(pixels)
    for k in range(cases.COUNT):
        (gradient,) = torch.autograd.grad(scores[:, k].sum(), seen[0], retain_graph=True)
        weights = gradient[:, tower.prefix :].mean(1, keepdim=True)
        wanted = (weights * seen[0][:, tower.prefix :]).sum(-1).clamp(min=0).detach()
        torch.testing.assert_close(found[:, k].flatten(1), wanted, rtol=1e-8, atol=1e-14)
        torch.testing.assert_close(own[:, k].flatten(1), 20 * wanted, rtol=1e-8, atol=1e-14)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", ON_FEATURES)
def test_every_class_that_means_something_on_tokens_runs(variant: str) -> None:
    method = CamFamily(cases.similarity("hf_vit"))
    found, scores = method.attribute_targets(
        cases.images("hf_vit"), variant=variant, return_scores=True
    )
    assert found.shape == (3, cases.COUNT, 4, 4)
    assert torch.isfinite(found).all()
    assert (found > 0).any()
    with torch.no_grad():
        torch.testing.assert_close(scores, method.forward_func(cases.images("hf_vit")))


@pytest.mark.parametrize("variant", ["AblationCAM", "HiResCAM"])
def test_a_class_that_means_nothing_on_tokens_is_refused(variant: str) -> None:
    method = CamFamily(cases.similarity("hf_vit"))
    with pytest.raises(UnsupportedModelError, match="meaningless on a vision transformer"):
        method.attribute(cases.images("hf_vit"), target=0, variant=variant)


def test_grad_cam_is_the_positive_map_of_our_own() -> None:
    function, pixels = cases.similarity("open_clip_resnet"), cases.images("open_clip_resnet")
    wanted = ClipGradCam(function).attribute_targets(pixels).clamp(min=0)
    found = CamFamily(function).attribute_targets(pixels)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    one = CamFamily(function).attribute(pixels, target=[2, 0, 1])
    torch.testing.assert_close(one[:, 0], found[torch.arange(3), torch.tensor([2, 0, 1])])


def test_a_class_is_named_wherever_a_method_is() -> None:
    """With options after another colon; it is not offered with the others."""
    chosen = MethodChoice.of("cam:variant=AblationCAM,ratio_channels_to_ablate=0.5,batch_size=4")
    assert chosen.method is CamFamily
    assert chosen.options == {
        "variant": "AblationCAM",
        "ratio_channels_to_ablate": 0.5,
        "batch_size": 4,
    }
    assert chosen.name == "cam:variant=AblationCAM,ratio_channels_to_ablate=0.5,batch_size=4"
    assert chosen.costly
    assert not chosen.signed
    assert MethodChoice.of(chosen.name) == chosen
    plain = MethodChoice.of("cam:variant=GradCAMPlusPlus")
    assert plain.name == "cam:variant=GradCAMPlusPlus"
    assert plain.needs_target
    assert not plain.costly
    assert not MethodChoice.of("cam:variant=EigenCAM").needs_target
    assert MethodChoice.of("cam").name == "cam"
    assert "cam" not in {*methods_for("vit"), *methods_for("resnet")}
    picture, clip = draw_scene(0).image, load_clip("demo/resnet")
    found = explain(picture, "a horse", model=clip, method="cam:variant=LayerCAM,eigen_smooth=True")
    assert found.maps["positive"].shape == (1, 1, 7, 7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "cam:variant=GradCam",
            "expected a class for cam of AblationCAM, EigenCAM, .*got 'GradCam'",
        ),
        (
            "cam:variant=LayerCAM,batch_size=2",
            "option for cam:variant=LayerCAM of eigen_smooth, got 'batch_size'",
        ),
        (
            "cam:variant=LayerCAM,eigen_smooth",
            "cannot read 'eigen_smooth' in 'cam:variant=LayerCAM,eigen_smooth'",
        ),
    ],
)
def test_a_name_that_is_none_is_said_before_any_work(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MethodChoice.of(name)


def test_without_the_library_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(InputError, match=r"pip install grad-cam"):
        MethodChoice.of("cam:variant=LayerCAM")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["hf_vit", "align"])
def test_forwards_through_the_library_leave_the_model_as_it_was(name: str) -> None:
    """Flags of training, gradients, hooks, buffers; also after a failure."""
    small = cases.BUILDERS[name]()
    method = CamFamily(ClipSimilarity(small.load(), target_module.embedding(cases.embeddings())))
    pixels = state.upset(small.model) and small.images(2)
    before = state.of_model(small.model)
    method.attribute_targets(pixels, [0], variant="ScoreCAM")
    with pytest.raises(InputError):
        method.attribute_targets(pixels, variant="NoCAM")
    state.assert_same(before, state.of_model(small.model))


def test_a_fork_that_keeps_gradients_by_a_hook_on_a_tensor_is_explained() -> None:
    """Also in the passes of the library, which have no graph."""
    name = "hf_vit"
    wanted = CamFamily(cases.similarity(name)).attribute(cases.images(name), 0, variant="ScoreCAM")
    clip = cases.built(name)
    last = clip.model.vision_model.encoder.layers[-1]

    def keep_gradient(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        hidden.register_hook(lambda gradient: None)

    handle = last.register_forward_hook(keep_gradient)
    try:
        method = CamFamily(cases.similarity(name))
        found = method.attribute(cases.images(name), 0, variant="ScoreCAM")
    finally:
        handle.remove()
    torch.testing.assert_close(found, wanted)
