"""What the image processors of the families do to colors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

from captum_clip import load_clip
from captum_clip.errors import InputError
from tests import builders

SQUARE = {"size": {"height": 32, "width": 32}}
SHORTEST = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
ALIGN = {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}
PROCESSORS = [
    ("CLIPImageProcessor", SHORTEST),
    ("CLIPImageProcessor", {**SHORTEST, "do_normalize": False}),
    ("ChineseCLIPImageProcessor", SHORTEST),
    ("SiglipImageProcessor", SQUARE),
    ("ViTImageProcessor", SQUARE),
    ("OwlViTImageProcessor", SQUARE),
    ("Owlv2ImageProcessor", SQUARE),
    ("BlipImageProcessor", SQUARE),
    ("EfficientNetImageProcessor", SQUARE),
    ("EfficientNetImageProcessor", {**SQUARE, "include_top": False}),
    ("EfficientNetImageProcessor", {**SQUARE, "rescale_offset": True}),
    ("EfficientNetImageProcessor", {**SQUARE, **ALIGN, "include_top": False}),
]


@pytest.mark.parametrize(("name", "options"), PROCESSORS)
def test_colors_come_back_from_what_a_processor_made_of_them(name, options):
    clip = builders.hf_vit().load(processor=getattr(transformers, name)(**options))
    color = (200, 30, 117)
    images = clip.preprocess(Image.new("RGB", (48, 48), color))
    expected = torch.tensor(color).view(3, 1, 1) / 255
    restored = clip.denormalize(images)
    torch.testing.assert_close(restored, expected.expand_as(restored), atol=2e-3, rtol=0)
    made = clip.color([value / 255 for value in color])
    torch.testing.assert_close(made.expand_as(images), images, atol=2e-2, rtol=0)


def test_a_transform_for_training_is_refused_by_name() -> None:
    """The middle value of `create_model_and_transforms`, or a step of one's own."""
    from open_clip.transform import image_transform

    training = image_transform(64, is_train=True)
    flipping = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.ToTensor()])
    model = builders.open_clip_vit().model
    for processor, step in ((training, "RandomResizedCrop"), (flipping, "RandomHorizontalFlip")):
        clip = load_clip(model, processor=processor)
        with pytest.raises(InputError, match=f"has a {step}.*for training.*the third value"):
            clip.preprocess(Image.new("RGB", (80, 60)))


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("RandomHorizontalFlip", transforms.Compose([transforms.RandomHorizontalFlip()])),
        ("RandomVerticalFlip", torch.nn.Sequential(transforms.RandomVerticalFlip())),
        ("GaussianBlur", transforms.GaussianBlur(5)),
        ("ElasticTransform", transforms.ElasticTransform()),
        ("JPEG", v2.JPEG((10, 90))),
        ("ScaleJitter", v2.ScaleJitter((64, 64))),
    ],
)
def test_a_random_step_is_refused_at_any_depth(name: str, step: Any) -> None:
    """It need not be called random, nor stand at the top."""
    steps = [step, transforms.Resize((32, 32)), transforms.ToTensor()]
    clip = load_clip(builders.open_clip_vit().model, processor=transforms.Compose(steps))
    with pytest.raises(InputError, match=f"has a {name}, which is for training"):
        clip.preprocess(Image.new("RGB", (80, 60)))
