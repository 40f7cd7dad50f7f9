"""Float tensors count as preprocessed: what cannot be is refused, and pixels get a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import NoiseTunnel, Occlusion
from torch import Tensor

from captum_clip import ClipSimilarity, DirectContribution, explain, load_clip, targets
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError
from captum_clip.models.images import check_images

Statistics = tuple[list[float], list[float]]
CLIP = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SIGLIP = [0.5] * 3, [0.5] * 3
NONE = [0.0] * 3, [1.0] * 3
BYTES = [0.0] * 3, [1 / 255] * 3  # a processor that does not rescale
clip = load_clip("demo/vit")
similarity = ClipSimilarity(clip, targets.text(clip, "a horse"))
DOORS: dict[str, Callable[[Tensor], Any]] = {
    "explain": lambda images: explain(images, "a horse", model=clip),
    "targets.image": lambda images: targets.image(clip, images),
    "preprocess": clip.preprocess,
    "encode_image": clip.encode_image,
    "attribute": DirectContribution(similarity).attribute,
}


def pixels(seed: int = 0) -> Tensor:
    """A scene in [0, 1]."""
    scene = torch.tensor(draw_scene(seed, objects=["horse"]).image[:224, :224])
    return scene.movedim(-1, 0)[None] / 255


def normalized(colors: Tensor, statistics: Any = CLIP) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    return (colors - mean) / std


@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_or_warns(door: str) -> None:
    outlier = normalized(pixels())
    outlier[0, 0, 3, 4] = 1e6
    for images in (255 * pixels(), torch.full((1, 3, 224, 224), 1e6), outlier):
        with pytest.raises(
            InputError,
            match=rf"{door}: .* preprocessing does not make; pass pixels as uint8, ",
        ):
            DOORS[door](images)
    with pytest.warns(UserWarning, match=r"all in \[0, 1\] as pixels are; if they are pixels"):
        DOORS[door](pixels())
    DOORS[door](normalized(pixels()))


def test_a_call_warns_once_and_at_the_users_line() -> None:
    """Although the images are checked at two places of the package."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        explain(pixels(), "a horse", model=clip)
    [warning] = told
    assert warning.filename == __file__


def test_what_the_way_out_says_gives_the_right_map() -> None:
    """Pixels of the model's size, as uint8."""
    right = explain(normalized(pixels()), "a horse", model=clip)
    found = explain((255 * pixels()).round().byte(), "a horse", model=clip)
    torch.testing.assert_close(found.maps, right.maps, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("statistics", [CLIP, SIGLIP, BYTES])
def test_pixels_are_told_from_what_is_preprocessed(statistics: Statistics) -> None:
    """Bright pictures lie in [0, 1] too; so do resized, half-precision and baseline images."""
    scenes = [pixels(seed) for seed in range(4)]
    low, high = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    bright = ((low + high.clamp(0.02) * scenes[0]) * 255).ceil().clamp(max=255) / 255
    stripes = (torch.arange(224) % 32 < 16).float().expand(1, 3, 224, 224)
    corner = torch.arange(224) < 32
    colors = [
        *scenes,
        bright,
        stripes,
        *(torch.full((1, 3, 224, 224), v) for v in (0, 0.4, 0.5, 1)),
    ]
    images = [normalized(each, statistics) for each in colors]
    images += [torch.zeros(1, 3, 224, 224), torch.where(corner, images[4], 0), images[4].half()]
    images.append(
        torch.where(corner, images[4], normalized(torch.full((1, 3, 1, 1), 0.5), statistics))
    )
    assert statistics == BYTES or ((images[4] >= 0) & (images[4] <= 1)).double().mean() > 0.9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for each in images:
            check_images(each, statistics)
    resized = torch.nn.functional.interpolate(scenes[1], size=64, mode="bilinear", antialias=True)
    for each in (scenes[0], torch.cat(scenes), 0.3 + 0.3 * scenes[1], resized, resized.half()):
        with pytest.warns(UserWarning, match="as pixels are"):
            check_images(each, statistics)


def test_a_model_of_pixels_takes_pixels() -> None:
    check_images(pixels(), NONE)
    with pytest.raises(InputError, match=r"these hold .* to 255"):
        check_images(255 * pixels(), NONE, 0.1)


def test_twice_preprocessed_is_refused_and_the_noise_of_captum_is_not() -> None:
    twice = normalized(normalized(pixels(1)))
    with pytest.raises(InputError, match="preprocessing does not make"):
        explain(twice, "a horse", model=clip)
    torch.manual_seed(0)
    images = normalized(pixels())
    NoiseTunnel(DirectContribution(similarity)).attribute(images, stdevs=0.8, nt_samples=2)
    Occlusion(similarity).attribute(
        images, sliding_window_shapes=(3, 112, 112), strides=(3, 112, 112), baselines=0
    )
