"""The short way to the measures of a stretched map equals the long way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_clip import maps as resizing
from captum_clip import metrics
from captum_clip.studies.measures import measure

SIZES = [
    ((7, 7), (224, 224)),
    ((3, 5), (96, 80)),
    ((1, 4), (9, 33)),
    ((8, 6), (8, 6)),
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


def test_measures_are_numpys():
    """The same once more without any of the package's own code but the resizing."""
    maps = some_maps((7, 7))
    found = measure(maps, (224, 224))
    for index, large in enumerate(resizing.upsample(maps.double(), (224, 224)).numpy()):
        heatmap = (large - large.min()) / (large.max() - large.min())
        shares = heatmap[heatmap > 0] / heatmap.sum()
        entropy = -(shares * np.log2(shares)).sum()
        assert found["spatial_variance"][index].item() == pytest.approx(heatmap.var(), rel=1e-6)
        assert found["spatial_entropy"][index].item() == pytest.approx(entropy, rel=1e-6)


def test_value_entropy_is_that_of_the_definition_to_the_bit():
    maps = some_maps((7, 7))
    found = measure(maps, (64, 64), values=True)["value_entropy"]
    heatmap = resizing.normalize(resizing.upsample(maps, (64, 64)))
    assert torch.equal(found, metrics.value_entropy(heatmap))


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
def test_constant_maps_have_no_statistics(value):
    """NaN to be counted apart; their extremes are known all the same."""
    maps = torch.full((2, 4, 4), value)
    maps[1, 0, 0] += 1
    found = measure(maps, (32, 32), values=True)
    assert found["low"][0] == found["high"][0] == torch.tensor(value)
    for name in ("spatial_variance", "spatial_entropy", "value_entropy"):
        assert found[name].isnan().tolist() == [True, False]


def test_a_map_does_not_depend_on_its_neighbours():
    """To the bit, in any batch of the same size."""
    maps = some_maps((7, 7))
    others = maps.flip(0).clone()
    others[4] = maps[4]
    first, second = (measure(m, (224, 224), values=True) for m in (maps, others))
    for name in first:
        assert torch.equal(first[name][4], second[name][4])


def test_entropy_does_not_need_denormal_numbers():
    """The user's process may flush them to zero."""
    maps = some_maps((7, 7))
    expected = measure(maps, (64, 64))["spatial_entropy"]
    assert torch.set_flush_denormal(True)
    try:
        found = measure(maps, (64, 64))["spatial_entropy"]
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(found, expected)
