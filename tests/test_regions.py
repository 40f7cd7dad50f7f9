"""Regions lie where the map is high, at the photo's size, in the formats that other tools take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from captum_clip import explain, load_clip
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError
from captum_clip.explaining.explanation import Explanation
from captum_clip.explaining.regions import (
    _boxes,
    region,
    save_regions,
)
from captum_clip.models import ClipAdapter
from tests import builders
from tests.samples import picture


@pytest.fixture(scope="module")
def vit() -> ClipAdapter:
    adapter: ClipAdapter = builders.hf_vit().load()
    return adapter


@pytest.fixture
def found(vit: ClipAdapter) -> Explanation:
    """Of a photo of 40 x 80, whose middle is seen, with one cell of the map at 1."""
    one = torch.zeros(1, 1, 4, 4)
    one[..., 1, 2] = 1
    explanation = explain(picture(0, 40, 80), "a horse", model=vit)
    return replace(explanation, maps={"positive": one, "negative": 0.1 * one.flip(-1)})


def test_boxes_are_those_of_the_parts_that_touch() -> None:
    """The largest first; corners touch."""
    drawn = """
        ##......#
        .#......#
        ..#...##.
        ......##.
        .........
        ####.....
    """
    mask = torch.tensor([[mark == "#" for mark in row] for row in drawn.split()])
    assert _boxes(mask).tolist() == [[6, 0, 9, 4], [0, 0, 3, 3], [0, 5, 4, 6]]
    assert _boxes(torch.zeros(3, 4, dtype=torch.bool)).shape == (0, 4)


def test_a_region_lies_in_the_photo(found: Explanation) -> None:
    positive, negative = found.regions(0.5)
    assert (positive.image, positive.target, positive.sign) == (0, "a horse", "positive")
    assert positive.mask.shape == (40, 80)
    assert positive.boxes.shape == (1, 4)
    [[left, top, right, bottom]] = positive.boxes.tolist()
    assert 38 <= left < 40 < 50 < right <= 52  # the cell has columns 40 to 50, rows 10 to 20
    assert 8 <= top < 10 < 20 < bottom <= 22
    assert positive.peak is not None
    assert abs(positive.peak[0] - 45) + abs(positive.peak[1] - 15) <= 1
    # a tenth of the other sign, on whose scale it is
    assert not negative.mask.any()
    assert negative.boxes.shape == (0, 4)
    assert found.regions(0.05)[1].mask.any()


def test_the_threshold_is_that_of_what_the_model_saw() -> None:
    heatmap = torch.zeros(10, 40)
    heatmap[:, 10:20] = torch.linspace(0, 1, 10)
    seen = heatmap[:, 10:20]
    about: dict[str, Any] = {"image": 0, "target": "a", "sign": "positive"}
    marked = region(heatmap, (10, 0, 20, 10), "mean", **about).mask
    assert torch.equal(torch.as_tensor(marked[:, 10:20]), seen > seen.mean())
    assert region(torch.zeros(4, 4), (0, 0, 4, 4), "otsu", **about).peak is None
    heatmap[:, 10:20] = torch.tensor([0.0] * 6 + [1.0] * 4)
    assert region(heatmap, (10, 0, 20, 10), "otsu", **about).mask.sum() == 40


def test_without_photos_the_image_counts(vit: ClipAdapter) -> None:
    found = explain(vit.preprocess(picture()), ["a", "b"], model=vit, sign="both")
    regions = found.regions("mean")
    pairs = [(r.target, r.sign) for r in regions]
    assert pairs == [(t, s) for t in "ab" for s in ("positive", "negative")]
    heatmap = found.heatmap("bicubic")["positive"][0, 1]
    assert torch.equal(torch.as_tensor(regions[2].mask), heatmap > heatmap.mean())


def test_regions_are_written_as_json_and_png(found: Explanation, tmp_path: Path) -> None:
    regions = found.regions(0.5)
    path = save_regions(regions, tmp_path / "out", {"model": found.model})
    content = json.loads(path.read_text("utf-8"))
    assert content["model"] == found.model
    for row, one in zip(content["regions"], regions, strict=True):
        assert row["boxes"] == one.boxes.tolist()
        assert row["size"] == [40, 80]
        assert (row["target"], row["sign"], row["image"]) == ("a horse", one.sign, 0)
        with Image.open(path.parent / row["mask"]) as mask:
            np.testing.assert_array_equal(np.asarray(mask), one.mask.numpy())
    assert content["regions"][0]["peak"] == list(regions[0].peak or ())
    assert len(list(path.parent.iterdir())) == 3


def test_an_unknown_threshold_is_refused(found: Explanation) -> None:
    unknown: list[Any] = ["median", 1.0, -0.1, True]
    for threshold in unknown:
        with pytest.raises(InputError, match=r'regions: expected threshold "mean", "otsu" or a'):
            found.regions(threshold)


def test_regions_of_an_unknown_crop_are_refused_as_maps_on_the_photo_are() -> None:
    """Their size would be that of the crop, and not of the photo."""
    clip = load_clip("demo/vit")
    steps = [transforms.Resize((224, 224)), transforms.Lambda(lambda image: image)]
    steps += [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    processor = transforms.Compose(steps)
    crop = load_clip(clip.model, processor=processor, tokenizer=clip.tokenizer)
    explanation = explain(draw_scene(0).image, "a horse", model=crop, hints=False)
    with pytest.raises(InputError, match="not known how the processor"):
        explanation.regions()
    tensors = explain(clip.preprocess(draw_scene(0).image), "a horse", model=clip, hints=False)
    assert tensors.regions()[0].mask.shape == (224, 224)
