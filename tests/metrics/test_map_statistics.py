"""Statistics of maps against closed forms and plain NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_clip import maps as resizing
from captum_clip import metrics
from captum_clip.errors import InputError

MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    name: getattr(metrics, name)
    for name in (
        "spatial_variance",
        "spatial_entropy",
        "value_entropy",
        "corner_bias",
        "centre_bias",
    )
}


def some_maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator).to(dtype)


def shannon_entropy(image: np.ndarray, base: float = 2) -> float:
    """Scikit-image's definition: of the counts of an array's distinct values."""
    _, counts = np.unique(image, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * (np.log(shares) / np.log(base))).sum())


@pytest.mark.parametrize("name", MEASURES)
def test_measures_give_one_number_a_map(name):
    """Whatever comes before (h, w) stays, and each map counts for itself."""
    maps = some_maps(2, 3, 5, 7)
    found = MEASURES[name](maps)
    assert found.shape == (2, 3)
    assert found.dtype == torch.float64
    for index in np.ndindex(2, 3):
        torch.testing.assert_close(found[index], MEASURES[name](maps[index]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_variance_is_numpys(dtype):
    maps = some_maps(4, 9, 6, dtype=dtype)
    expected = maps.double().numpy().var((-2, -1))
    np.testing.assert_allclose(metrics.spatial_variance(maps), expected, rtol=1e-12)


def test_variance_of_two_equal_halves_is_a_quarter_of_the_squared_step():
    maps = torch.cat([torch.full((4, 3), 1.0), torch.full((4, 3), 4.0)], dim=1)
    assert metrics.spatial_variance(maps).item() == pytest.approx(9 / 4)


def test_variance_survives_a_large_offset():
    """Sums of squares in single precision would not."""
    maps = some_maps(8, 8)
    moved = metrics.spatial_variance(maps.double() + 1e6)
    torch.testing.assert_close(moved, metrics.spatial_variance(maps), rtol=1e-6, atol=0)


def test_spatial_entropy_is_the_plain_sum():
    maps = some_maps(4, 9, 6)
    maps[:, 0] = 0
    for one, found in zip(maps.double().numpy(), metrics.spatial_entropy(maps), strict=True):
        shares = one[one > 0] / one.sum()
        assert found.item() == pytest.approx(-(shares * np.log2(shares)).sum(), rel=1e-12)


@pytest.mark.parametrize("cells", [1, 2, 8, 32])
def test_spatial_entropy_of_n_equal_cells_is_log_n(cells):
    maps = torch.zeros(32)
    maps[:cells] = 3.0
    found = metrics.spatial_entropy(maps.reshape(4, 8))
    assert found.item() == pytest.approx(math.log2(cells), abs=1e-12)


def test_spatial_entropy_does_not_depend_on_the_scale():
    maps = some_maps(5, 5)
    torch.testing.assert_close(metrics.spatial_entropy(4 * maps), metrics.spatial_entropy(maps))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_value_entropy_is_scikit_images(dtype):
    """On a stretched map of a 7 x 7 grid, in the precision that it has."""
    heatmap = resizing.normalize(resizing.upsample(some_maps(3, 7, 7), (56, 56))).to(dtype)
    heatmap[0] = torch.round(heatmap[0] * 4) / 4
    expected = [shannon_entropy(one.numpy()) for one in heatmap]
    np.testing.assert_allclose(metrics.value_entropy(heatmap), expected, rtol=1e-12)


def test_value_entropy_of_the_reports_size_is_near_its_published_range_in_half_precision():
    """11.05 bits for 7 x 7 maps at 224 in half, 14.5 in single: size and type must be stated."""
    heatmap = resizing.normalize(resizing.upsample(some_maps(2, 7, 7), (224, 224)))
    half, single = metrics.value_entropy(heatmap.half()), metrics.value_entropy(heatmap)
    assert (half > 10.5).all()
    assert (half < 11.8).all()
    assert (single > 14).all()


def test_value_entropy_counts_values_wherever_they_are():
    """Shuffling the cells changes nothing; n values equally often give log2 n."""
    maps = torch.arange(4.0).repeat(9).reshape(6, 6)
    shuffled = maps.flatten()[torch.randperm(36, generator=torch.Generator().manual_seed(0))]
    assert metrics.value_entropy(maps).item() == pytest.approx(2)
    assert metrics.value_entropy(shuffled.reshape(6, 6)).item() == pytest.approx(2)


def test_biases_are_means_of_their_cells_over_the_mean():
    """On odd and on even grids; in the middle are one, two or four cells."""
    for height, width in ((7, 7), (6, 8), (5, 4)):
        maps = some_maps(height, width)
        cells = maps.double().numpy()
        corners = [cells[row, column] for row in (0, -1) for column in (0, -1)]
        middle = cells[(height - 1) // 2 : height // 2 + 1, (width - 1) // 2 : width // 2 + 1]
        assert middle.size == {(7, 7): 1, (6, 8): 4, (5, 4): 2}[height, width]
        found = metrics.corner_bias(maps).item(), metrics.centre_bias(maps).item()
        assert found[0] == pytest.approx(np.mean(corners) / cells.mean())
        assert found[1] == pytest.approx(middle.mean() / cells.mean())


def test_biases_of_a_single_cell_are_one():
    assert metrics.corner_bias(torch.full((1, 1), 0.3)).item() == 1
    assert metrics.centre_bias(torch.full((1, 1), 0.3)).item() == 1


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_maps_have_what_their_definitions_say(value):
    """No spread, one value; a share of nothing is NaN, never a zero."""
    maps = torch.full((4, 4), value)
    assert metrics.spatial_variance(maps).item() == 0
    assert metrics.value_entropy(maps).item() == 0
    for found, expected in (
        (metrics.spatial_entropy(maps), 4.0),
        (metrics.corner_bias(maps), 1.0),
        (metrics.centre_bias(maps), 1.0),
    ):
        assert found.isnan().item() if value == 0 else found.item() == expected


def test_biases_of_maps_without_a_positive_mean_are_nan():
    maps = torch.tensor([[-3.0, 1.0], [1.0, 0.5]])
    assert metrics.corner_bias(maps).isnan().item()
    assert metrics.centre_bias(maps).isnan().item()


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 2)), "floating-point tensor, got ndarray"),
        (torch.zeros(2, 2, dtype=torch.int64), "got torch.int64"),
        (torch.zeros(4), r"\(\.\.\., h, w\)"),
        (torch.zeros(0, 4), "none of them empty"),
        (torch.tensor([[1.0, torch.nan]]), "NaN or infinity"),
    ],
)
def test_measures_say_what_they_cannot_measure(name, given, message):
    with pytest.raises(InputError, match=f"{name}: .*{message}"):
        MEASURES[name](given)


def test_spatial_entropy_refuses_signed_maps():
    with pytest.raises(InputError, match=r"below zero, got -1; maps\.positive"):
        metrics.spatial_entropy(torch.tensor([[-1.0, 2.0]]))
