"""Masks go where the pixels of their image go."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn import functional as F
from torchvision import transforms
from torchvision.transforms import v2

from captum_clip import load_clip
from captum_clip.errors import InputError, UnsupportedModelError
from captum_clip.models.images import geometry_of, process, resize_masks

SIDE = 32
EXACT = {"height": 33, "width": 30}
SIZES = [(32, 39), (41, 32), (32, 32), (57, 33), (20, 47), (90, 64)]  # odd and even differences


def slow(**options: Any) -> Any:
    """The processor on Pillow, by the name that the installed transformers has for it."""
    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    return kind(**{**square(), **options})


def fast(**options: Any) -> Any:
    """The processor on torchvision."""
    older = transformers.__version__.startswith("4.")
    name = "CLIPImageProcessorFast" if older else "CLIPImageProcessor"
    return getattr(transformers, name)(**{**square(), **options})


def square() -> dict[str, Any]:
    return {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


def open_clip(size: Any = SIDE, **options: Any) -> Any:
    """OpenCLIP's preprocessing."""
    return image_transform_v2(PreprocessCfg(size=size, **options), is_train=False)


def own_steps(*steps: Any) -> Any:
    return transforms.Compose([*steps, transforms.ToTensor()])


def of_family(prefix: str, **options: Any) -> Any:
    """The processor of another family of transformers, which resizes to an exact size."""
    exact = {} if prefix == "ChineseCLIP" else {"size": EXACT}
    return getattr(transformers, f"{prefix}ImageProcessor")(**{**square(), **exact, **options})


PROCESSORS = {
    "slow": slow(),
    "fast": fast(),
    "slow exact": slow(size=EXACT, do_center_crop=False),
    "fast exact": fast(size=EXACT, do_center_crop=False),
    "slow padded": slow(crop_size={"height": 45, "width": 38}),
    "fast padded": fast(crop_size={"height": 45, "width": 38}),
    "slow no resize": slow(do_resize=False, crop_size={"height": 19, "width": 26}),
    "fast no resize": fast(do_resize=False, crop_size={"height": 19, "width": 26}),
    "fast no crop": fast(do_center_crop=False),
    "fast nothing": fast(do_resize=False, do_center_crop=False),
    "siglip": of_family("Siglip"),
    "chinese": of_family("ChineseCLIP"),
    "vit": of_family("ViT"),
    "owlvit": of_family("OwlViT"),
    "blip": of_family("Blip"),
    "efficientnet": of_family("EfficientNet", include_top=False, do_center_crop=True),
    "open_clip": open_clip(),
    "open_clip oblong": open_clip((28, 36)),
    "open_clip longest": open_clip(resize_mode="longest"),
    "open_clip longest, white": open_clip(resize_mode="longest", fill_color=255),
    "open_clip squash": open_clip(resize_mode="squash"),
    "torchvision": own_steps(transforms.Resize((40, 37)), transforms.CenterCrop((25, 30))),
    "torchvision longest limited": own_steps(transforms.Resize(30, max_size=41)),
    "torchvision v2": v2.Compose([v2.Resize(SIDE), v2.CenterCrop(SIDE), v2.ToImage()]),
}


def processed(processor: Any, picture: np.ndarray) -> np.ndarray:
    """Brightness (h, w) of what the processor really makes of gray values (H, W), in [0, 1]."""
    image = Image.fromarray(np.round(255 * picture).astype(np.uint8)).convert("RGB")
    pixels = process(processor, [image])[0]
    inner = getattr(processor, "transforms", [])
    for step in inner:
        if isinstance(step, transforms.Normalize):
            pixels = pixels * torch.tensor(step.std)[:, None, None]
            pixels = pixels + torch.tensor(step.mean)[:, None, None]
    if not inner and processor.do_normalize:
        pixels = pixels * torch.tensor(processor.image_std)[:, None, None]
        pixels = pixels + torch.tensor(processor.image_mean)[:, None, None]
    return (pixels[0] / (255 if pixels.max() > 2 else 1)).numpy()


@pytest.mark.parametrize("name", PROCESSORS)
def test_maps_land_where_a_smooth_image_lands(name):
    """Ramps through the real processor show the same positions as ramps through the geometry."""
    processor = PROCESSORS[name]
    for size, axis in product(SIZES, (0, 1)):
        geometry = geometry_of(processor, size)
        inside = geometry.cut(np.ones(geometry.size, dtype=bool))
        ramp = np.indices(size)[axis] / (size[axis] - 1)
        truth = processed(processor, ramp)
        plane = torch.from_numpy(ramp)[None, None]
        resized = F.interpolate(plane, geometry.size, mode="bilinear", antialias=True)
        own = geometry.cut(resized[0, 0].numpy())
        difference = (own - truth)[inside]
        # filters differ at the borders; a shift of one pixel would be as large everywhere
        assert abs(np.median(difference)) < 0.1 / geometry.size[axis]
        assert np.abs(difference).max() < 0.6 / geometry.size[axis] + 2 / 255
        assert not own[~inside].any()


@pytest.mark.parametrize("name", ["slow", "fast", "open_clip", "slow padded", "fast padded"])
def test_masks_are_cropped_to_the_pixel(name):
    """Where nothing is resized, a noisy mask equals its processed image in every pixel."""
    for size in ((32, 39), (41, 32), (32, 32), (32, 64), (33, 32)):
        mask = np.random.default_rng(1).random(size) < 0.5
        truth = processed(PROCESSORS[name], mask.astype(float)) > 0.5
        inside = resize_masks(PROCESSORS[name], np.ones(size, dtype=bool), truth.shape)
        assert (resize_masks(PROCESSORS[name], mask, truth.shape) == truth)[inside].all()
        assert inside.all() or name not in ("slow", "fast", "open_clip")


@pytest.mark.parametrize("size", [(57, 33), (41, 91), (15, 201)])
@pytest.mark.parametrize("name", ["slow exact", "fast exact"])
def test_masks_are_resized_as_pillow_does(name, size):
    """Nearest neighbor by pixel centers, an independent implementation of which is Pillow's.

    With odd sizes no center falls between two pixels, where Pillow's rounding would decide.
    """
    mask = np.random.default_rng(2).random(size) < 0.5
    picture = Image.fromarray(mask.astype(np.uint8))
    truth = picture.resize((EXACT["width"], EXACT["height"]), Image.Resampling.NEAREST)
    assert (resize_masks(PROCESSORS[name], mask) == np.asarray(truth, dtype=bool)).all()


@pytest.mark.parametrize("size", [(300, 451), (517, 260), (225, 224)])
@pytest.mark.parametrize("name", ["demo/vit", "demo/resnet"])
def test_demo_models_see_a_mask_where_its_object_is(name, size):
    """A white box on black, preprocessed by the model, is white in its mask and black outside."""
    clip = load_clip(name)
    height, width = size
    mask = np.zeros(size, dtype=bool)
    mask[height // 3 : height // 2, width // 2 : width * 5 // 8] = True
    image = Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")
    bright = clip.denormalize(clip.preprocess(image))[0, 0].numpy() > 0.5
    seen = resize_masks(clip.processor, mask, (224, 224))
    edge = seen ^ bright
    assert seen.any()
    assert edge.sum() <= 0.02 * seen.sum()


def test_both_parts_of_a_processor_are_known():
    """A processor that holds one for images and one for texts is asked for the former."""

    class Both:
        image_processor = slow()

    assert geometry_of(Both(), (40, 50)) == geometry_of(slow(), (40, 50))


def test_openai_transforms_are_known():
    """The function to RGB of OpenAI's package moves no pixel."""

    def _convert_image_to_rgb(image: Any) -> Any:
        return image.convert("RGB")

    steps = own_steps(transforms.Resize(SIDE), transforms.CenterCrop(SIDE), _convert_image_to_rgb)
    assert geometry_of(steps, (40, 50)).size == (32, 40)


@pytest.mark.parametrize(
    "step", [transforms.RandomResizedCrop(SIDE), transforms.Pad(3), lambda image: image]
)
def test_unknown_steps_are_refused(step):
    """What may move pixels in another way is no guess."""
    with pytest.raises(UnsupportedModelError, match="does to an image; masks need"):
        geometry_of(own_steps(step), (40, 50))


@pytest.mark.parametrize("processor", [None, len, object()])
def test_unknown_processors_are_refused(processor):
    """The message names what is expected."""
    with pytest.raises(UnsupportedModelError, match=r"expected an image processor of transf"):
        resize_masks(processor, np.ones((4, 4), dtype=bool))


@pytest.mark.parametrize("shape", [(5,), (0, 4), (2, 3, 0)])
def test_arrays_without_pixels_are_named(shape):
    """Two dimensions with something in them are needed."""
    with pytest.raises(InputError, match="expected an array"):
        resize_masks(slow(), np.ones(shape))


def test_a_second_division_by_the_deviation_moves_no_pixel():
    """EfficientNet's `include_top`, which does not follow `do_normalize`."""
    with_it, without = (of_family("EfficientNet", include_top=top) for top in (True, False))
    one, other = (geometry_of(processor, (50, 40)) for processor in (with_it, without))
    assert one == other
    assert one.size == (33, 30)


def test_several_masks_go_together():
    """Leading dimensions stay, and each plane is what it would be alone."""
    masks = np.random.default_rng(3).random((2, 3, 40, 57)) < 0.3
    together = resize_masks(open_clip(), masks)
    assert together.shape == (2, 3, SIDE, SIDE)
    assert (together[1, 2] == resize_masks(open_clip(), masks[1, 2])).all()


def test_resizing_after_the_crop_is_refused():
    """Only one order is known."""
    steps = own_steps(transforms.CenterCrop(SIDE), transforms.Resize(SIDE))
    with pytest.raises(UnsupportedModelError, match="Resize, then CenterCrop"):
        geometry_of(steps, (40, 50))


def test_another_size_than_the_images_is_named():
    """A mask that would not cover the preprocessed image is no mask of it."""
    exact = fast(do_resize=False, do_center_crop=False)
    with pytest.raises(InputError, match=r"which becomes \(50, 40\), not \(40, 50\)"):
        resize_masks(exact, np.ones((40, 50), dtype=bool), (50, 40))
