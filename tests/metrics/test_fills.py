"""Fills: a blur against its definition, ROAD's imputation against a dense solver."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from captum_clip.errors import InputError
from captum_clip.metrics import blur_fill, mean_fill, road_fill
from tests.samples import normal


def dense(image: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
    """ROAD's linear system written out pixel by pixel, float64."""
    channels, height, width = image.shape
    unknown = [divmod(int(p), width) for p in removed.flatten().nonzero()]
    place = {position: i for i, position in enumerate(unknown)}
    left = torch.zeros(len(unknown), len(unknown), dtype=torch.float64)
    right = torch.zeros(len(unknown), channels, dtype=torch.float64)
    for i, (row, column) in enumerate(unknown):
        for down in (-1, 0, 1):
            for along in (-1, 0, 1):
                y, x = row + down, column + along
                if (down, along) == (0, 0) or not (0 <= y < height and 0 <= x < width):
                    continue
                weight = 1 / 12 if down and along else 1 / 6
                left[i, i] += weight
                if (y, x) in place:
                    left[i, place[y, x]] -= weight
                else:
                    right[i] += weight * image[:, y, x].double()
    solved = image.double().clone()
    for (row, column), values in zip(unknown, torch.linalg.solve(left, right), strict=True):
        solved[:, row, column] = values
    return solved


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("size", [(33, 20), (1, 30), (40, 7), (24, 24)])
@pytest.mark.parametrize("smooth", [False, True])
def test_road_solves_the_papers_linear_system(size, share, smooth):
    """Scattered pixels and whole regions, odd sizes, single rows."""
    generator = torch.Generator().manual_seed(round(100 * share))
    image = torch.randn(2, 3, *size, generator=generator)
    heatmap = torch.rand(2, 1, *((4, 4) if smooth else size), generator=generator)
    heatmap = F.interpolate(heatmap, size, mode="bilinear")
    removed = heatmap <= heatmap.flatten(1).quantile(share, 1)[:, None, None, None]
    found = road_fill(image, removed)
    for i in range(2):
        wanted = dense(image[i], removed[i]).float()
        torch.testing.assert_close(found[i], wanted, atol=2e-4, rtol=0)
        assert torch.equal(found[i][:, ~removed[i, 0]], image[i][:, ~removed[i, 0]])


def test_road_keeps_what_is_constant_or_linear():
    """A ramp has the mean of its neighbours everywhere but at the edge."""
    ramp = torch.linspace(-2, 2, 48).expand(1, 3, 32, 48)
    removed = torch.zeros(1, 1, 32, 48, dtype=torch.bool)
    removed[..., 4:28, 5:40] = True
    torch.testing.assert_close(road_fill(ramp, removed), ramp, atol=2e-4, rtol=0)
    flat = torch.full((1, 3, 32, 48), 1.7)
    removed[..., 0, 0] = False
    removed[..., 1:, :] = True
    torch.testing.assert_close(road_fill(flat, removed), flat, atol=2e-4, rtol=0)


def test_road_of_an_image_does_not_depend_on_the_others():
    """Images whose systems need few, many and no steps at once."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    shares = torch.tensor([0.0, 0.3, 0.95, 1.0])[:, None, None, None]
    removed = torch.rand(4, 1, 32, 32, generator=generator) < shares
    together = road_fill(images, removed)
    assert torch.equal(together[0], images[0])
    assert (together[3] == 0).all()
    for i in range(4):
        alone = road_fill(images[i : i + 1], removed[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=0)


def test_road_takes_few_steps_on_a_true_size(monkeypatch):
    """The multigrid step keeps them near fifteen, also for a hole as large as the image."""
    from captum_clip.metrics import fills

    monkeypatch.setattr(fills, "_MOST_STEPS", 20)
    image = normal(1, 1, 224, 224, seed=4)
    removed = torch.ones(1, 1, 224, 224, dtype=torch.bool)
    removed[..., 0], removed[..., :2, 3] = False, False
    twenty = road_fill(image, removed)
    monkeypatch.setattr(fills, "_MOST_STEPS", 200)
    assert torch.equal(road_fill(image, removed), twenty)


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


def test_mean_is_zero_after_normalisation():
    """In the type of the images, ready to be broadcast."""
    found = mean_fill(torch.ones(2, 3, 4, 4, dtype=torch.float64))
    assert found.shape == (1, 3, 1, 1)
    assert found.dtype == torch.float64
    assert not found.any()


def test_fills_refuse_what_they_cannot_fill():
    """Each says what it was given."""
    images = torch.ones(1, 3, 4, 4)
    with pytest.raises(InputError, match="mean_fill: expected preprocessed images"):
        mean_fill(images[0])
    with pytest.raises(InputError, match="deviation in pixels above 0, got 0"):
        blur_fill(images, deviation=0)
    wrong: tuple[Any, ...] = (None, images[:, :1], torch.ones(1, 4, 4).bool())
    for removed in wrong:
        with pytest.raises(InputError, match=r"removed as a bool tensor \(1, 1, 4, 4\), got"):
            road_fill(images, removed)
