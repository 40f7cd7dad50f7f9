"""The adapter gives what the library gives, and names what it lacks."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import Compose
from transformers import CLIPVisionModel

from captum_clip.errors import InputError, UnsupportedModelError
from captum_clip.models import load_clip
from tests import builders
from tests.attr.cases import CONVOLUTIONAL
from tests.samples import picture

ALL = list(builders.BUILDERS)
KINDS = ["hf_vit", "siglip", "aimv2", "align", "open_clip_vit", "open_clip_resnet", "timm_convnext"]
TEXTS = ["a horse", "a dog and a red house."]


def own_image_features(built, images):
    if hasattr(built.model, "vision_proj"):  # BLIP
        return built.model.vision_proj(built.model.vision_model(images)[0][:, 0])
    if hasattr(built.model, "image_model"):  # FLAVA
        return built.model.image_projection(built.model.image_model(images)[0][:, 0])
    if hasattr(built.model, "visual_projection"):
        size = images.shape[-2:]
        out = built.model.vision_model(images, interpolate_pos_encoding=size != (32, 32))
        return built.model.visual_projection(out.pooler_output)
    if hasattr(built.model, "vision_model"):
        return built.model.vision_model(images).pooler_output
    return built.model.encode_image(images)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_image_embeddings_are_the_librarys_own_in_unit_length(name):
    built = builders.BUILDERS[name]()
    images = built.images(3)
    embeddings = built.load().encode_image(images)
    expected = F.normalize(own_image_features(built, images), dim=-1)
    torch.testing.assert_close(embeddings, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(3))


@torch.no_grad()
def test_image_embeddings_of_other_sizes_in_transformers():
    built = builders.hf_vit()
    images = torch.randn(2, 3, 24, 40)
    expected = F.normalize(own_image_features(built, images), dim=-1)
    torch.testing.assert_close(built.load().encode_image(images), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.bfloat16) for name in KINDS), ("hf_vit", torch.float16)]
)
@torch.no_grad()
def test_half_precision_models_work(name, dtype):
    built = builders.BUILDERS[name]()
    clip = built.load()
    pictures = [picture(), picture(seed=1)]
    images, texts = clip.encode_image(clip.preprocess(pictures)), clip.encode_text(TEXTS)
    built.model.to(dtype)
    assert clip.dtype == dtype
    preprocessed = clip.preprocess(pictures)
    assert preprocessed.dtype == torch.float32
    half = clip.encode_image(preprocessed)
    assert half.dtype == dtype
    assert (half.float() * images).sum(-1).min() > 0.99
    assert (clip.encode_text(TEXTS).float() * texts).sum(-1).min() > 0.99


@pytest.mark.parametrize("name", ["open_clip_vit", "open_clip_resnet"])
@torch.no_grad()
def test_open_clips_mixed_precision_works(name):
    from open_clip.model import convert_weights_to_lp
    from open_clip.transformer import LayerNorm, LayerNormFp32

    built = builders.BUILDERS[name]()
    clip = built.load()
    images = built.images()
    expected = clip.encode_image(images)
    convert_weights_to_lp(built.model, torch.bfloat16)
    for module in built.model.modules():
        if isinstance(module, LayerNorm):
            module.__class__ = LayerNormFp32
        elif isinstance(module, nn.BatchNorm2d):
            module.bfloat16()
    assert clip.dtype == torch.bfloat16
    assert (clip.encode_image(images).float() * expected).sum(-1).min() > 0.99


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_resnet"])
def test_image_embeddings_are_differentiable_in_the_images(name):
    built = builders.BUILDERS[name]()
    images = built.images().requires_grad_()
    (gradient,) = torch.autograd.grad(built.load().encode_image(images)[:, 0].sum(), images)
    assert gradient.abs().max() > 0
    assert all(p.grad is None for p in built.model.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_preprocess_is_the_processors_own(name):
    built = builders.BUILDERS[name]()
    clip = built.load()
    pictures = [picture(), picture(seed=1, width=80)]
    images = clip.preprocess(pictures)
    if hasattr(built.processor, "image_mean"):
        expected = built.processor(images=pictures, return_tensors="pt")["pixel_values"]
    else:
        expected = torch.stack([built.processor(p) for p in pictures])
    assert torch.equal(images, expected)
    assert images.shape == built.images().shape
    assert images.dtype == torch.float32
    assert torch.equal(clip.preprocess(pictures[0]), images[:1])


@pytest.mark.parametrize(
    ("name", "side", "advice"),
    [
        ("open_clip_vit", 48, r"native size only, .*, or make .*48`.* force_image_size"),
        ("open_clip_resnet", 50, r"native size only, here 96 x 96; resize or crop them"),
        ("timm_convnext", 50, r"multiples of 32 x 32.* crop them"),
    ],
)
def test_a_processor_of_another_model_is_refused(name, side, advice):
    clip = builders.BUILDERS[name]().load(processor=builders.hf_processor(side))
    made = rf"pass its own `processor` with the model: .* {side} x {side} pixels: .*{advice}\.$"
    with pytest.raises(InputError, match=made):
        clip.preprocess(picture())


def test_preprocess_takes_paths_arrays_and_bytes(tmp_path):
    clip = builders.hf_vit().load()
    path = tmp_path / "picture.png"
    picture().save(path)
    expected = clip.preprocess(picture())
    array = np.asarray(picture())
    for given in (path, str(path), [path], array, torch.from_numpy(array.copy())):
        assert torch.equal(clip.preprocess(given), expected)


def test_preprocess_only_batches_floating_tensors():
    clip = builders.hf_vit().load(processor=None)
    images = torch.randn(2, 3, 32, 40, dtype=torch.float64)
    assert torch.equal(clip.preprocess(images), images)
    assert torch.equal(clip.preprocess(images[0]), images[:1])
    assert torch.equal(clip.preprocess([images[0], images[1]]), images)
    assert torch.equal(clip.preprocess((images[:1], images[1])), images)


def test_a_processor_that_returns_something_else_is_named():
    clip = builders.hf_vit().load(processor=lambda image: np.asarray(image))
    with pytest.raises(
        InputError, match="of each image from function, all of one size, got ndarray"
    ):
        clip.preprocess(picture())


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit"])
def test_denormalize_undoes_the_normalization(name):
    clip = builders.BUILDERS[name]().load()
    colors = clip.denormalize(clip.preprocess(Image.new("RGB", (50, 40), (200, 30, 40))))
    expected = torch.tensor([200, 30, 40]).view(1, 3, 1, 1) / 255
    torch.testing.assert_close(colors, expected.expand_as(colors), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit"])
def test_color_is_a_constant_image_preprocessed(name):
    clip = builders.BUILDERS[name]().load()
    images = clip.preprocess(Image.new("RGB", (50, 40), (255, 51, 0)))
    color = clip.color((1.0, 0.2, 0.0))
    torch.testing.assert_close(color.expand_as(images), images, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rgb", [(0.5, 0.5), (255, 0, 0)])
def test_color_wants_three_numbers_between_0_and_1(rgb):
    with pytest.raises(InputError, match=r"three numbers in \[0, 1\], got \("):
        builders.hf_vit().load().color(rgb)


def test_statistics_come_from_the_open_clip_model_where_there_is_no_processor():
    built = builders.open_clip_vit()
    with pytest.raises(
        InputError, match=r"denormalize: no processor gives .*; pass the `processor`"
    ):
        built.load(processor=None).denormalize(built.images())
    built.model.visual.image_mean, built.model.visual.image_std = (0.5,) * 3, (0.25,) * 3
    assert built.load(processor=None).color((1, 0.5, 0)).flatten().tolist() == [2, 0, -2]


def test_parts_are_kept_as_given():
    processor, tokenizer = Mock(), Mock()
    clip = load_clip(builders.hf_vit().model, processor=processor, tokenizer=tokenizer)
    assert clip.processor is processor
    assert clip.tokenizer is tokenizer


@pytest.mark.parametrize("name", KINDS)
def test_the_adapter_shows_its_model_and_tower(name):
    built = builders.BUILDERS[name]()
    clip = built.load(name="mine")
    assert clip.model is built.model
    names = ("visual", "vision_model", "image_model")
    assert clip.vision in [getattr(built.model, own, None) for own in names]
    assert clip.kind == ("resnet" if name in CONVOLUTIONAL else "vit")
    assert clip.device == torch.device("cpu")
    assert clip.dtype == torch.float32
    assert repr(clip).endswith(f"Adapter('mine', kind={clip.kind!r})")
    built.model.double()
    assert clip.dtype == torch.float64


def test_load_clip_returns_an_adapter_as_it_is():
    clip = builders.hf_vit().load()
    assert load_clip(clip) is clip
    with pytest.raises(InputError, match="tokenizer was given with an adapter"):
        load_clip(clip, tokenizer=object())


@pytest.mark.parametrize("source", ["openai/clip-vit-base-patch32", "/home/me/mine"])
def test_a_model_object_is_called_after_its_class_and_what_it_was_loaded_from(source):
    model = builders.hf_vit().model
    model.config._name_or_path = source
    assert load_clip(model).name == f"CLIPModel {source.removeprefix('/home/me/')}"


@pytest.mark.parametrize("name", KINDS[:3])
def test_load_clip_uses_a_model_object_as_it_is(name):
    model = builders.BUILDERS[name]().model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    clip = load_clip(model)
    assert clip.model is model
    library = "OpenCLIP's " * type(model).__module__.startswith("open_clip")
    assert clip.name == f"{library}{type(model).__name__}"
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("option", [{"device": "cpu"}, {"dtype": torch.float16}])
def test_load_clip_does_not_move_a_model_object(option):
    name = next(iter(option))
    with pytest.raises(InputError, match=rf"{name} was given with a model object.*model\.to"):
        load_clip(builders.hf_vit().model, **option)


def test_preprocess_names_tensors_of_several_sizes():
    clip = builders.hf_vit().load()
    with pytest.raises(InputError, match=r"tensors .* of one size"):
        clip.preprocess([torch.zeros(3, 32, 32), torch.zeros(3, 32, 40)])


def test_preprocess_checks_floating_tensors():
    clip = builders.hf_vit().load()
    with pytest.raises(InputError, match=r"preprocess: expected images of shape"):
        clip.preprocess(torch.zeros(1, 1, 32, 32))
    with pytest.raises(InputError, match=r"preprocess: .* NaN"):
        clip.preprocess(torch.full((3, 32, 32), float("nan")))


def test_denormalize_stays_between_0_and_1():
    clip = builders.hf_vit().load()
    colors = clip.denormalize(torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2))
    assert torch.equal(colors, torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2))


def test_statistics_without_normalization_are_neutral():
    from transformers import CLIPImageProcessor

    clip = builders.hf_vit().load(processor=CLIPImageProcessor(do_normalize=False))
    assert clip.color((1, 0.5, 0)).flatten().tolist() == [1, 0.5, 0]


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit"])
def test_a_missing_processor_is_asked_for_when_an_image_needs_it(name):
    built = builders.BUILDERS[name]()
    clip = built.load(processor=None)
    assert clip.processor is None
    clip.encode_image(clip.preprocess(built.images()))
    with pytest.raises(InputError, match=r"has no processor, .* pass `processor` with"):
        clip.preprocess(picture())


def test_load_clip_names_modules_that_it_does_not_support():
    with pytest.raises(
        UnsupportedModelError, match=r"a Linear is not supported; .*CLIPModel, .*CustomTextCLIP"
    ):
        load_clip(nn.Linear(2, 2))
    with pytest.raises(UnsupportedModelError, match="a CLIPVisionModel has no text tower"):
        load_clip(CLIPVisionModel(builders.hf_vit().model.config.vision_config))


def test_load_clip_names_other_things():
    with pytest.raises(UnsupportedModelError, match="a name, a folder or a CLIP model, got 3"):
        load_clip(3)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="got Compose; pass what prepares images as"):
        load_clip(Compose([]))


def test_an_embedding_that_torch_cannot_compute_is_a_sentence():
    """Of either tower, such as with an attention that has no kernel here."""
    built = builders.hf_vit()
    clip = built.load()
    built.model.vision_model.encoder.forward = Mock(side_effect=NotImplementedError("no kernel"))
    built.model.text_model.encoder.forward = Mock(side_effect=NotImplementedError("no kernel"))
    with pytest.raises(UnsupportedModelError, match=r"encode_image: .* set up \(no kernel\); turn"):
        clip.encode_image(built.images())
    with pytest.raises(UnsupportedModelError, match=r"encode_text: .* set up \(no kernel\); turn"):
        clip.encode_text("a horse")
