"""The perturbation test and its fills: exact curves of linear scorers, and laws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from captum_clip.errors import InputError
from captum_clip.metrics import (
    blur_fill,
    mean_fill,
    perturbation_test,
)
from tests.samples import uniform


def brightness(images: torch.Tensor) -> torch.Tensor:
    """A linear scorer: each pixel adds its own value."""
    return images.sum((1, 2, 3))


def classes(images: torch.Tensor) -> torch.Tensor:
    """Three linear scores (B, 3)."""
    weights = uniform(3, *images.shape[1:], seed=9).to(images) - 0.4
    return torch.einsum("bchw,kchw->bk", images, weights)


IMAGES = uniform(3, 3, 8, 12)


def test_curves_of_a_linear_scorer_are_partial_sums():
    """What is left after n pixels is the sum of the others, in the order of the map."""
    maps = uniform(3, 1, 8, 12, seed=1)
    found = perturbation_test(brightness, IMAGES, maps, fill=mean_fill(IMAGES))
    torch.testing.assert_close(
        found.score.fractions, torch.tensor([round(f * 9.6) for f in range(11)]).double() / 96
    )
    for image, heatmap, most, least in zip(
        IMAGES, maps, found.score.most_first, found.score.least_first, strict=True
    ):
        order = sorted(range(96), key=lambda p: -float(heatmap.flatten()[p]))
        values = image.sum(0).flatten()
        for step in range(11):
            count = round(step * 9.6)
            for curve, places in ((most, order[:count]), (least, order[96 - count :])):
                wanted = values.sum() - values[places].sum()
                torch.testing.assert_close(curve[step], wanted, rtol=1e-4, atol=1e-4)


def test_fractions_are_those_really_removed():
    """One pixel of 2 x 3 is removed at a time, with the fraction that it really is."""
    cells = uniform(3, 3, 2, 3)
    maps = torch.tensor([[6.0, 1.0, 5.0], [2.0, 4.0, 3.0]]).expand(3, 1, 2, 3)
    found = perturbation_test(
        brightness, cells, maps, fill=mean_fill(cells), fractions=[0, 0.15, 0.4, 1]
    )
    assert found.score.fractions.tolist() == pytest.approx([0, 1 / 6, 2 / 6, 1])
    sums = cells.sum(1)
    total = sums.sum((1, 2))
    first, second, last = sums[:, 0, 0], sums[:, 0, 2], sums[:, 0, 1]
    wanted = torch.stack([total, total - first, total - first - second, 0 * total], 1)
    torch.testing.assert_close(found.score.most_first, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.score.least_first[:, 1], total - last, rtol=1e-4, atol=1e-4)


def test_area_is_the_trapezoid_over_real_fractions():
    """Worked by hand: 10, 3, 0 over 0, 1/2, 1, and the gap of the two orders."""
    image = torch.tensor([4.0, 3.0, 2.0, 1.0]).view(1, 1, 2, 2)
    found = perturbation_test(
        brightness, image, image, fill=mean_fill(image), fractions=[0, 0.5, 1]
    ).score
    assert found.most_area.tolist() == [(10 + 3) / 4 + 3 / 4]
    assert found.least_area.tolist() == [(10 + 7) / 4 + 7 / 4]
    assert found.gap.tolist() == [2.0]


def test_true_contributions_have_the_largest_gap():
    """No map of a linear scorer beats the contributions themselves."""
    truth = IMAGES.sum(1, keepdim=True)
    best = perturbation_test(brightness, IMAGES, truth, fill=mean_fill(IMAGES)).score
    for seed in range(5):
        other = perturbation_test(
            brightness, IMAGES, uniform(3, 1, 8, 12, seed=seed), fill=mean_fill(IMAGES)
        ).score
        assert (other.gap < best.gap).all()
        assert (other.most_area > best.most_area).all()
    worst = perturbation_test(brightness, IMAGES, -truth, fill=mean_fill(IMAGES)).score
    torch.testing.assert_close(worst.gap, -best.gap)


def test_constant_map_is_at_chance():
    """Its order is random: on average the score falls in proportion, and the gap is none."""
    image = uniform(1, 3, 8, 12, seed=3).expand(400, 3, 8, 12)
    flat = torch.full((400, 1, 3, 3), 0.1)  # not exact after resizing
    found = perturbation_test(
        brightness, image, flat, fill=mean_fill(image), fractions=[0, 0.25, 0.5, 1], batch_size=600
    ).score
    wanted = brightness(image[:1]) * (1 - found.fractions)
    torch.testing.assert_close(found.most_first.mean(0).double(), wanted, rtol=0.02, atol=1e-3)
    assert abs(found.gap.mean() / brightness(image[:1])) < 0.01
    assert len(found.most_first[:, 1].unique()) > 300


def test_ties_are_broken_without_a_side():
    """Equal cells come first equally often, wherever they lie."""
    image = torch.zeros(600, 1, 2, 2)
    heatmap = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]).expand(600, 2, 2)
    fill = torch.tensor([1.0, 10.0, 100.0, 1000.0]).view(1, 1, 2, 2)
    found = perturbation_test(brightness, image, heatmap, fill=fill, fractions=[0.25, 0.5]).score
    assert (found.most_first[:, 0] == 1).all()
    second = found.most_first[:, 1]
    assert all(abs(float((second == 1 + v).float().mean()) - 1 / 3) < 0.06 for v in (10, 100, 1000))


def test_batches_of_any_size_give_the_same():
    """Also images given one by one, with their place in the set as the seed."""
    filled = blur_fill(IMAGES)
    maps = torch.zeros(3, 1, 2, 2)  # all random
    whole = perturbation_test(classes, IMAGES, maps, [0, 2, 1], labels=1, fill=filled, seed=5)
    small = perturbation_test(
        classes, IMAGES, maps, [0, 2, 1], labels=1, fill=filled, seed=5, batch_size=4
    )
    torch.testing.assert_close(small.score.most_first, whole.score.most_first)
    assert whole.top1 is not None
    assert small.top1 is not None
    torch.testing.assert_close(small.top1.least_first, whole.top1.least_first)
    for i, target in enumerate([0, 2, 1]):
        part = slice(i, i + 1)
        alone = perturbation_test(
            classes, IMAGES[part], maps[part], target, labels=1, fill=filled[part], seed=5 + i
        )
        torch.testing.assert_close(alone.score.most_first[0], whole.score.most_first[i])
        assert alone.top1 is not None
        torch.testing.assert_close(alone.top1.most_first[0], whole.top1.most_first[i])


def test_top1_follows_the_labels_and_score_the_targets():
    """Both from one run; a tie for the highest score is wrong."""
    image = torch.tensor([[5.0, 2.0], [1.0, 0.0]]).view(1, 1, 2, 2).expand(2, 1, 2, 2)

    def two(images):
        left, right = images[..., 0].sum((1, 2)), images[..., 1].sum((1, 2))
        return torch.stack([left, right], 1)

    found = perturbation_test(
        two, image, image, 1, labels=[0, 1], fill=mean_fill(image), fractions=[0, 0.25, 0.5, 1]
    )
    assert found.score.most_first.tolist() == 2 * [[2.0, 2.0, 0.0, 0.0]]
    assert found.top1 is not None
    assert found.top1.most_first.tolist() == [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
    alone = perturbation_test(two, image, image, 1, fill=mean_fill(image))
    assert alone.top1 is None
    labeled = perturbation_test(two, image, image, labels=[0, 1], fill=mean_fill(image))
    assert labeled.score.most_first[:, 0].tolist() == [6.0, 2.0]


def test_work_is_twenty_forwards_an_image_in_full_batches():
    """Both orders begin and end alike; no graph is made; the images stay as they are."""
    seen = []

    def forward(images):
        assert not torch.is_grad_enabled()
        seen.append(len(images))
        return classes(images)

    images, before = IMAGES.clone().requires_grad_(), IMAGES.clone()
    found = perturbation_test(
        forward, images, IMAGES, 0, fill=mean_fill(IMAGES), batch_size=16, labels=1
    )
    assert sum(seen) == 3 * 20
    assert seen == [16, 16, 16, 12]
    assert torch.equal(images, before)
    assert images.grad is None
    assert not found.score.most_first.requires_grad


NAN = torch.full((3, 1, 2, 2), torch.nan)
HEAT = torch.ones(3, 1, 2, 2)


def test_what_cannot_be_tested_is_refused():
    """One sentence that says what was given."""
    refused: list[tuple[dict[str, Any], str]] = [
        ({"images": IMAGES.byte()}, "images as a floating-point tensor"),
        (
            {"images": IMAGES[0]},
            r"expected images of shape \(B, C, H, W\), got Tensor \(3, 8, 12\)",
        ),
        ({"images": IMAGES / 0}, "hold NaN or infinity"),
        ({"maps": NAN}, "hold NaN or infinity; .* leave those out"),
        ({"maps": HEAT[:2]}, r"expected one map per image, .* got Tensor \(2, 1, 2, 2\)"),
        ({"maps": HEAT.expand(3, 2, 2, 2)}, r"or of its shape, got Tensor \(3, 2, 2, 2\)"),
        ({"maps": torch.ones(3, 9, 12)}, "no finer than it"),
        ({"targets": 3}, "returns 3 scores per image; there is none of index 3"),
        ({"labels": [0, 1, 7]}, "returns 3 scores per image; there is none of index 7"),
        ({"targets": None}, "returns 3 scores per image; say which"),
        ({"targets": [0, 1]}, r"one for each of 3 images, got \[0, 1\]"),
        ({"targets": 0.5}, "expected targets as an index from 0 on, or one"),
        ({"targets": "cat"}, "expected targets as an index .* got 'cat'"),
        ({"targets": -1}, "targets as an index from 0 on, .* got -1"),
        ({"fill": "black"}, "fill as a tensor that can be broadcast .* got 'black'"),
        (
            {"fill": torch.zeros(4, 3, 1, 1)},
            r"broadcast to images \(3, 3, 8, 12\), got Tensor \(4, 3, 1, 1\)",
        ),
        ({"fractions": [0.5]}, "two or more rising fractions"),
        ({"fractions": [0.5, 0.5]}, "two or more rising fractions"),
        ({"fractions": [0, 1.2]}, "from 0 to 1"),
        ({"batch_size": 0}, "a batch size of 1 or more, got 0"),
        (
            {"forward": lambda x: x},
            r"returns \(B,\) or \(B, K\) for 32 images, got Tensor \(32, 3, 8, 12",
        ),
    ]
    call: dict[str, Any] = {"forward": classes, "images": IMAGES, "maps": HEAT, "targets": 0}
    call["fill"] = mean_fill(IMAGES)
    for changes, message in refused:
        with pytest.raises(InputError, match=message):
            perturbation_test(**{**call, **changes})


def test_blur_is_a_gaussian_mean():
    """A single bright pixel becomes the kernel, and the edge is repeated."""
    image = torch.zeros(1, 1, 21, 21)
    image[..., 10, 10] = 1
    weights = [math.exp(-0.5 * (i / 1.5) ** 2) for i in range(-4, 5)]
    kernel = torch.tensor(weights) / sum(weights)
    found = blur_fill(image, deviation=1.5)
    torch.testing.assert_close(found[0, 0, 6:15, 6:15], kernel[:, None] * kernel)
    edge = torch.ones(1, 3, 8, 8)
    torch.testing.assert_close(blur_fill(edge, deviation=5), edge)
    assert blur_fill(edge.half()).dtype == torch.float16


def test_fills_refuse_what_they_cannot_fill():
    """Each says what it was given."""
    images = torch.ones(1, 3, 4, 4)
    with pytest.raises(InputError, match="mean_fill: expected images of shape"):
        mean_fill(images[0])
    with pytest.raises(InputError, match=r"deviation in pixels in \(0, inf\), got 0"):
        blur_fill(images, deviation=0)


def test_monotone_change_of_the_map_changes_nothing():
    """Only the order of the cells counts."""
    maps = uniform(3, 8, 12, seed=5)  # of smaller maps resizing would change the order
    one, other = (
        perturbation_test(brightness, IMAGES, m, fill=mean_fill(IMAGES)).score
        for m in (maps, maps.exp() * 7 - 3)
    )
    assert torch.equal(one.most_first, other.most_first)


def test_maps_of_the_images_shape_are_added_up():
    """What Captum's input methods give."""
    attributions = uniform(3, 3, 8, 12, seed=6) - 0.5
    one, other = (
        perturbation_test(brightness, IMAGES, m, fill=mean_fill(IMAGES)).score.most_first
        for m in (attributions, attributions.sum(1))
    )
    assert torch.equal(one, other)


def test_half_precision_is_scored_in_its_own_type():
    """Images reach the forward function in their type, and scores come back in single."""
    images = IMAGES.to(torch.bfloat16)
    kinds = set()

    def forward(inputs):
        kinds.add(inputs.dtype)
        return inputs.mean((1, 2, 3))

    fill = mean_fill(IMAGES)
    found = perturbation_test(forward, images, images, fill=fill, fractions=[0, 0.5])
    assert found.score.most_first.dtype == torch.float32
    assert kinds == {torch.bfloat16}


def test_mean_is_zero_after_normalization():
    """In the type of the images, ready to be broadcast."""
    found = mean_fill(torch.ones(2, 3, 4, 4, dtype=torch.float64))
    assert found.shape == (1, 3, 1, 1)
    assert found.dtype == torch.float64
    assert not found.any()
