"""Measures of maps and sums over images, against the maps themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_clip import maps as resizing
from captum_clip import metrics
from captum_clip.bench.run import Arrays
from captum_clip.bench.study import StudyStatistics
from captum_clip.metrics.map_statistics import measure

SIZES = [
    ((7, 7), (224, 224)),
    ((3, 5), (96, 80)),
    ((1, 4), (9, 33)),
    ((9, 9), (5, 7)),
]


def some_maps(grid: tuple[int, int], count: int = 12) -> Tensor:
    """Maps as they occur: spread, with a peak, with a dip, with an offset, signed."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(count, *grid, generator=generator)
    maps[1] = maps[1] ** 12
    maps[2] = 1 - maps[2] ** 12
    maps[3] += 100
    maps[4] -= 0.5
    maps[5] = 0
    maps[5, -1, -1] = 1e-6
    maps[6] *= 1e-20
    return maps


@pytest.mark.parametrize(("grid", "size"), SIZES)
def test_measures_are_those_of_the_stretched_map(grid, size):
    """Against the definitions in double precision, to a millionth."""
    maps = some_maps(grid).reshape(3, 4, *grid)
    found = measure(maps, size, values=True)
    large = resizing.upsample(maps.double(), size)
    torch.testing.assert_close(found["low"], large.amin((-2, -1)), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found["high"], large.amax((-2, -1)), rtol=1e-12, atol=1e-14)
    heatmap = resizing.normalize(large)
    for name in ("spatial_variance", "spatial_entropy"):
        expected = getattr(metrics, name)(heatmap)
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-6)


def test_value_entropy_is_that_of_the_definition_to_the_bit():
    maps = some_maps((7, 7))
    found = measure(maps, (64, 64), values=True)["value_entropy"]
    heatmap = resizing.normalize(resizing.upsample(maps, (64, 64)))
    assert torch.equal(found, metrics.value_entropy(heatmap))


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_constant_maps_have_no_statistics(value):
    """NaN to be counted apart; their extremes are known all the same."""
    maps = torch.full((2, 4, 4), value)
    maps[1, 0, 0] += 1
    found = measure(maps, (32, 32), values=True)
    assert found["low"][0] == found["high"][0] == torch.tensor(value)
    for name in ("spatial_variance", "spatial_entropy", "value_entropy"):
        assert found[name].isnan().tolist() == [True, False]


def test_a_map_does_not_depend_on_its_neighbors():
    """To the bit, in any batch of the same size."""
    maps = some_maps((7, 7))
    others = maps.flip(0).clone()
    others[4] = maps[4]
    first, second = (measure(m, (224, 224), values=True) for m in (maps, others))
    for name in first:
        assert torch.equal(first[name][4], second[name][4])


SIZE = (40, 56)


def some_part(count: int = 9, seed: int = 0, targets: int = 3, grid: int = 5) -> Arrays:
    """Signed maps; of the first image the first map has nothing positive, so it is constant."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.rand(count, targets, grid, grid, generator=generator) - 0.3
    if seed == 0:
        raw[0, 0] = -1
    measured = measure(resizing.positive(raw), SIZE)
    return {
        "maps": raw.numpy(),
        "scores": torch.rand(count, targets, generator=generator).numpy(),
        **{f"measure_{name}": values.numpy() for name, values in measured.items()},
    }


def means(*units: Arrays) -> StudyStatistics:
    return StudyStatistics.over((unit, []) for unit in units)


def test_the_mean_of_stretched_maps_needs_only_sums_on_the_grid() -> None:
    """Upsampled once at the end it is the mean of the maps stretched one by one at full size."""
    part = some_part()
    found = means(part)
    large = resizing.upsample(resizing.positive(torch.from_numpy(part["maps"])).double(), SIZE)
    heatmap = resizing.normalize(large).numpy()
    varies = np.asarray(heatmap.any((-2, -1)))
    assert found.constant.tolist() == [1, 0, 0]
    for target in range(3):
        expected = heatmap[varies[:, target], target].mean(0)
        mean = resizing.upsample(torch.from_numpy(found.means["stretched"][target]), SIZE)
        np.testing.assert_allclose(mean.numpy(), expected, atol=1e-12)


def test_means_are_over_the_images_that_have_something() -> None:
    """Scores over all, measures over the maps that vary."""
    part = some_part()
    found = means(part)
    np.testing.assert_allclose(
        found.means["score"], part["scores"].astype(float).mean(0), rtol=1e-12
    )
    expected = np.nanmean(part["measure_spatial_entropy"], 0)
    np.testing.assert_allclose(found.means["spatial_entropy"], expected, rtol=1e-12)


@pytest.mark.parametrize("at", [0, 4])
def test_two_units_are_the_whole(at: int) -> None:
    """An empty one too."""
    part = some_part()
    whole = means(part)
    found = means(
        *(
            {name: values[rows] for name, values in part.items()}
            for rows in (slice(0, at), slice(at, None))
        )
    )
    assert (found.images, found.constant.tolist()) == (whole.images, whole.constant.tolist())
    for name, expected in (whole.means | whole.biases).items():
        np.testing.assert_allclose((found.means | found.biases)[name], expected, rtol=1e-12)


def test_no_image_has_no_mean() -> None:
    """NaN everywhere, without a warning."""
    empty = means({name: values[:0] for name, values in some_part().items()})
    assert np.isnan(empty.means["score"]).all()
    assert np.isnan(empty.means["stretched"]).all()
    assert np.isnan(empty.means["spatial_variance"]).all()
