"""The heads of a score: which ones are shown, and that the numbers add up to the cosine."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip import ClipSimilarity, DirectContribution, figures, maps, targets
from captum_clip.errors import InputError
from captum_clip.models import ClipAdapter
from captum_clip.visualization import grid
from captum_clip.visualization.blend import blend
from captum_clip.visualization.style import ALPHA, NEGATIVE, POSITIVE
from tests import builders
from tests.figure_parts import lines_of, pixels_of

BAD: Any = "nonsense"
TOWERS: dict[str, tuple[Callable[[], builders.Small], str]] = {
    "CLS": (builders.hf_vit, "layer {}, head {}"),
    "probe": (builders.siglip, "head {1} of the pool"),
    "attention pool": (builders.open_clip_resnet, "head {1} of the pool"),
}
NOTE = re.compile(r"([+\u2212]?\d\.\d{3}), (\u2212?\d+)%")


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "_FINE", 32)


@pytest.fixture(scope="module", params=TOWERS)
def tower(request: pytest.FixtureRequest) -> tuple[ClipAdapter, str]:
    """A small model, and how its heads are called."""
    build, label = TOWERS[request.param]
    return build().load(name="small"), label


@pytest.fixture(scope="module")
def vit() -> ClipAdapter:
    return builders.hf_vit().load(name="small ViT")


def photo(seed: int = 0) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((60, 40))


def contributions(clip: ClipAdapter) -> tuple[torch.Tensor, float, float]:
    """Maps (n, H, h, w), the rest and the score, as the method itself gives them."""
    method = DirectContribution(ClipSimilarity(clip, targets.text(clip, "a horse")))
    found, scores, rest = method.attribute_targets(
        clip.preprocess(photo()), per="head", return_scores=True, return_rest=True
    )
    return found[0, 0], rest.item(), scores.item()


def ranked(found: torch.Tensor, label: str, *, descending: bool) -> list[tuple[str, float]]:
    """Labels and sums of the heads that add (or take away), the strongest first."""
    sums = {
        label.format(layer, head): found[layer, head].sum().item()
        for layer in range(found.shape[0])
        for head in range(found.shape[1])
    }
    signed = [(name, value) for name, value in sums.items() if (value > 0) == descending]
    return sorted(signed, key=lambda pair: pair[1], reverse=descending)


def labels_and_notes(figure: Any) -> tuple[list[str], list[tuple[float, float]]]:
    """Labels of heads in their order; numbers of all parts, with their shares."""
    lines = lines_of(figure)
    labels = [line for line in lines if re.match(r"(layer \d+, )?head \d|\d+ other|rest", line)]
    found = [NOTE.fullmatch(line) for line in lines]
    notes = [
        (float(note[1].replace("\u2212", "-")), float(note[2].replace("\u2212", "-")) / 100)
        for note in found
        if note
    ]
    return labels, notes


@pytest.mark.parametrize("sign", ["positive", "negative", "both"])
def test_heads_are_those_of_direct_contribution_in_their_order(
    tower: tuple[ClipAdapter, str], sign: Any
) -> None:
    """Label, sum and share of every part; the numbers add up to the cosine as written."""
    clip, label = tower
    found, rest, score = contributions(clip)
    adding = ranked(found, label, descending=True)[:2]
    taking = ranked(found, label, descending=False)[:2]
    wanted = {"positive": adding, "negative": taking, "both": adding + taking}[sign]
    others = found.shape[0] * found.shape[1] - len(wanted)
    figure = figures.heads(photo(), "a horse", model=clip, count=2, sign=sign)
    labels, notes = labels_and_notes(figure)
    between = [f"{others} other head{'s' * (others > 1)}"] * bool(others)
    assert labels == [*(name for name, _ in wanted), *between, "rest, of no position"]
    shown = sum(value for _, value in wanted)
    values = [*(value for _, value in wanted), *[score - rest - shown] * bool(others), rest]
    assert len(notes) == len(values) == len(pixels_of(figure)) - 1
    for (number, share), value in zip(notes, values, strict=True):
        assert abs(number - value) < 1e-3 + 1e-6
        assert abs(share - value / score) < 1e-2 + 1e-5
    assert f"cosine {score:.3f}".replace("-", "\u2212") in lines_of(figure)
    assert round(sum(number for number, _ in notes), 3) == round(score, 3)
    assert sum(share for _, share in notes) == pytest.approx(1)


@pytest.mark.parametrize("scale", ["each", "shared"])
def test_maps_are_orange_where_a_head_adds_and_blue_where_it_takes_away(
    vit: ClipAdapter, scale: Any
) -> None:
    found, _, _ = contributions(vit)
    every = found.flatten(0, 1)
    order = every.sum((-2, -1)).argsort(descending=True)[:2]
    raw = torch.cat([every[order], every.sum(0, keepdim=True) - every[order].sum(0)])
    large = maps.upsample(raw, (32, 32), mode="bicubic", clamp=True).numpy()
    shown = pixels_of(figures.heads(photo(), "a horse", model=vit, count=2, scale=scale))
    picture = vit.denormalize(vit.preprocess(photo()))[0].movedim(0, -1).numpy()
    np.testing.assert_allclose(shown[0], picture, atol=1e-6)
    largest = np.abs(large).max(axis=None if scale == "shared" else (-2, -1), keepdims=True)
    for pixels, heatmap in zip(shown[1:], [*(large / largest), np.zeros((32, 32))], strict=True):
        for cmap, way in ((POSITIVE, 1), (NEGATIVE, -1)):
            there = way * heatmap >= 0
            drawn = blend(picture, (way * heatmap).clip(0), cmap, ALPHA)
            np.testing.assert_allclose(pixels[there], drawn[there], atol=1e-3)


def test_an_image_as_target_stands_in_place_of_the_image(vit: ClipAdapter) -> None:
    figure = figures.heads(photo(), references=photo(1), model=vit, cmap="viridis")
    other = vit.denormalize(vit.preprocess(photo(1)))[0].movedim(0, -1).numpy()
    np.testing.assert_allclose(pixels_of(figure)[0], other, atol=1e-6)
    assert {"image 0", "low to high"} <= set(lines_of(figure))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (builders.open_clip_vit_mean, "a mean of patches is read by no attention"),
        (builders.align, "average pooling has no heads"),
    ],
)
def test_a_tower_without_heads_is_refused_by_the_method(
    build: Callable[[], builders.Small], sentence: str
) -> None:
    """Before the image is run."""
    small = build()
    vision = getattr(small.model, "visual", None) or small.model.vision_model
    vision.register_forward_pre_hook(lambda *_: pytest.fail("was run"))
    with pytest.raises(InputError, match=sentence):
        figures.heads(photo(), "a horse", model=small.load())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ()}, "figures.heads: expected a text or an image to explain, got neither"),
        ({"text": ["a", "b"]}, "figures.heads: expected one text or one image"),
        ({"references": photo()}, "figures.heads: expected one text or one image"),
        ({"count": 0}, "figures.heads: expected count of 1 or more, got 0"),
        ({"count": 1.5}, "figures.heads: expected count of 1 or more, got 1.5"),
        ({"sign": BAD}, "a sign of positive, negative, both, got 'nonsense'"),
        ({"scale": BAD}, "a scale of each, shared, got 'nonsense'"),
        ({"cmap": BAD}, "no colour map 'nonsense'"),
        ({"image": [photo(), photo()]}, "figures.heads: expected one image, got 2"),
    ],
)
def test_heads_say_what_is_wrong(vit: ClipAdapter, options: dict[str, Any], message: str) -> None:
    given = {"image": photo(), "text": "a horse", "model": vit}
    with pytest.raises(InputError, match=message):
        figures.heads(**{**given, **options})
