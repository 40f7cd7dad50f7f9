"""Statistics of maps, and rank correlation, against closed forms and plain NumPy."""

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
from captum_clip.maps import pearson
from captum_clip.metrics import rank_correlation
from tests.metrics import oracles
from tests.samples import normal, uniform

MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    name: getattr(metrics, name)
    for name in (
        "spatial_variance",
        "spatial_entropy",
        "value_entropy",
        "corner_bias",
        "center_bias",
    )
}


def shannon_entropy(image: np.ndarray, base: float = 2) -> float:
    """Scikit-image's definition: of the counts of an array's distinct values."""
    _, counts = np.unique(image, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * (np.log(shares) / np.log(base))).sum())


@pytest.mark.parametrize("name", MEASURES)
def test_measures_give_one_number_a_map(name):
    """Whatever comes before (h, w) stays, and each map counts for itself."""
    maps = uniform(2, 3, 5, 7)
    found = MEASURES[name](maps)
    assert found.shape == (2, 3)
    assert found.dtype == torch.float64
    for index in np.ndindex(2, 3):
        torch.testing.assert_close(found[index], MEASURES[name](maps[index]))


def test_variance_is_numpys():
    for dtype in (torch.float16, torch.float32, torch.float64):
        maps = uniform(4, 9, 6).to(dtype)
        expected = maps.double().numpy().var((-2, -1))
        np.testing.assert_allclose(metrics.spatial_variance(maps), expected, rtol=1e-12)


def test_spatial_entropy_is_the_plain_sum():
    maps = uniform(4, 9, 6)
    maps[:, 0] = 0
    for one, found in zip(maps.double().numpy(), metrics.spatial_entropy(maps), strict=True):
        shares = one[one > 0] / one.sum()
        assert found.item() == pytest.approx(-(shares * np.log2(shares)).sum(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_value_entropy_is_scikit_images(dtype):
    """On a stretched map of a 7 x 7 grid, in the precision that it has."""
    heatmap = resizing.normalize(resizing.upsample(uniform(3, 7, 7), (56, 56))).to(dtype)
    heatmap[0] = torch.round(heatmap[0] * 4) / 4
    expected = [shannon_entropy(one.numpy()) for one in heatmap]
    np.testing.assert_allclose(metrics.value_entropy(heatmap), expected, rtol=1e-12)


def test_value_entropy_of_the_reports_size_is_near_its_published_range_in_half_precision():
    """11.05 bits for 7 x 7 maps at 224 in half, 14.5 in single: size and type must be stated."""
    heatmap = resizing.normalize(resizing.upsample(uniform(2, 7, 7), (224, 224)))
    half, single = metrics.value_entropy(heatmap.half()), metrics.value_entropy(heatmap)
    assert (half > 10.5).all()
    assert (half < 11.8).all()
    assert (single > 14).all()


def test_biases_are_means_of_their_cells_over_the_mean():
    """On odd and on even grids; in the middle are one, two or four cells."""
    for height, width in ((7, 7), (6, 8), (5, 4)):
        maps = uniform(height, width)
        cells = maps.double().numpy()
        corners = [cells[row, column] for row in (0, -1) for column in (0, -1)]
        middle = cells[(height - 1) // 2 : height // 2 + 1, (width - 1) // 2 : width // 2 + 1]
        assert middle.size == {(7, 7): 1, (6, 8): 4, (5, 4): 2}[height, width]
        found = metrics.corner_bias(maps).item(), metrics.center_bias(maps).item()
        assert found[0] == pytest.approx(np.mean(corners) / cells.mean())
        assert found[1] == pytest.approx(middle.mean() / cells.mean())


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_maps_have_what_their_definitions_say(value):
    """No spread, one value; a share of nothing is NaN, never a zero."""
    maps = torch.full((4, 4), value)
    assert metrics.spatial_variance(maps).item() == 0
    assert metrics.value_entropy(maps).item() == 0
    for found, expected in (
        (metrics.spatial_entropy(maps), 4.0),
        (metrics.corner_bias(maps), 1.0),
        (metrics.center_bias(maps), 1.0),
    ):
        assert found.isnan().item() if value == 0 else found.item() == expected


def test_biases_of_maps_without_a_positive_mean_are_nan():
    maps = torch.tensor([[-3.0, 1.0], [1.0, 0.5]])
    assert metrics.corner_bias(maps).isnan().item()
    assert metrics.center_bias(maps).isnan().item()


@pytest.mark.parametrize("name", MEASURES)
def test_measures_say_what_they_cannot_measure(name):
    refused = [
        (np.zeros((2, 2)), "as a tensor .*, got ndarray"),
        (torch.zeros(2, 2, dtype=torch.int64), "floating-point tensor, got .* of torch.int64"),
        (torch.zeros(4), r"\(\.\.\., h, w\)"),
        (torch.zeros(0, 4), "none of them empty"),
        (torch.tensor([[1.0, torch.nan]]), "NaN or infinity"),
    ]
    for given, message in refused:
        with pytest.raises(InputError, match=f"{name}: .*{message}"):
            MEASURES[name](given)  # type: ignore[arg-type]


def test_spatial_entropy_refuses_signed_maps():
    with pytest.raises(InputError, match=r"below zero, got -1.0; maps\.positive"):
        metrics.spatial_entropy(torch.tensor([[-1.0, 2.0]]))


def test_rank_correlation_is_spearmans():
    """Against ranks counted one by one, with values that many cells share."""
    generator = torch.Generator().manual_seed(0)
    maps, others = (torch.randn(2, 3, 7, 9, generator=generator).round(decimals=1) for _ in "ab")
    found = rank_correlation(maps, others)
    assert found.shape == (2, 3)
    assert found.dtype == torch.float32
    for i in range(2):
        for k in range(3):
            wanted = oracles.spearman(maps[i, k], others[i, k])
            assert found[i, k].item() == pytest.approx(wanted, rel=1e-5)
            assert rank_correlation(maps[i, k], others[i, k]) == found[i, k]


def test_correlation_with_a_constant_is_nan():
    """Also where the rounding of the mean makes its differences not quite zero."""
    ramp = torch.arange(49.0, dtype=torch.float64)
    for value in (0.1, 0.3, 2.0):
        constant = torch.full((49,), value, dtype=torch.float64)
        assert torch.isnan(pearson(ramp, constant))
        assert torch.isnan(pearson(constant, ramp))


def test_maps_must_have_one_shape():
    """One sentence that says what was given."""
    with pytest.raises(
        InputError, match=r"as the others, Tensor \(4, 4\) .*, got Tensor \(2, 2\) .*; resize"
    ):
        rank_correlation(torch.ones(2, 2), torch.ones(4, 4))
    for pair in (
        (torch.ones(2, 2) / 0, torch.ones(2, 2)),
        (torch.ones(2, 2), torch.ones(2, 2) / 0),
    ):
        with pytest.raises(InputError, match="NaN or infinity"):
            rank_correlation(*pair)


def test_variance_of_two_equal_halves_is_a_quarter_of_the_squared_step():
    maps = torch.cat([torch.full((4, 3), 1.0), torch.full((4, 3), 4.0)], dim=1)
    assert metrics.spatial_variance(maps).item() == pytest.approx(9 / 4)


def test_variance_survives_a_large_offset():
    """Sums of squares in single precision would not."""
    maps = uniform(8, 8)
    moved = metrics.spatial_variance(maps.double() + 1e6)
    torch.testing.assert_close(moved, metrics.spatial_variance(maps), rtol=1e-6, atol=0)


def test_spatial_entropy_of_n_equal_cells_is_log_n():
    for cells in (1, 2, 8, 32):
        maps = torch.zeros(32)
        maps[:cells] = 3.0
        found = metrics.spatial_entropy(maps.reshape(4, 8))
        assert found.item() == pytest.approx(math.log2(cells), abs=1e-12)


def test_spatial_entropy_does_not_depend_on_the_scale():
    maps = uniform(5, 5)
    torch.testing.assert_close(metrics.spatial_entropy(4 * maps), metrics.spatial_entropy(maps))


def test_value_entropy_counts_values_wherever_they_are():
    """Shuffling the cells changes nothing; n values equally often give log2 n."""
    maps = torch.arange(4.0).repeat(9).reshape(6, 6)
    shuffled = maps.flatten()[torch.randperm(36, generator=torch.Generator().manual_seed(0))]
    assert metrics.value_entropy(maps).item() == pytest.approx(2)
    assert metrics.value_entropy(shuffled.reshape(6, 6)).item() == pytest.approx(2)


def test_biases_of_a_single_cell_are_one():
    assert metrics.corner_bias(torch.full((1, 1), 0.3)).item() == 1
    assert metrics.center_bias(torch.full((1, 1), 0.3)).item() == 1


def test_only_the_order_counts():
    """The same map, a monotone change of it, and its negative."""
    heatmap = normal(5, 6, 6, seed=1)
    torch.testing.assert_close(rank_correlation(heatmap, heatmap.exp() * 3), torch.ones(5))
    torch.testing.assert_close(rank_correlation(heatmap, -(heatmap**3)), -torch.ones(5))


def test_unrelated_maps_are_at_chance():
    """Zero on average."""
    generator = torch.Generator().manual_seed(2)
    maps, others = (torch.rand(500, 7, 7, generator=generator) for _ in "ab")
    assert abs(rank_correlation(maps, others).mean()) < 0.03


def test_constant_map_has_no_ranks():
    """On either side; the other maps of the batch keep their answer."""
    heatmap = uniform(2, 4, 4, seed=3)
    flat = torch.stack([torch.full((4, 4), 0.1), heatmap[1]])
    for found in (rank_correlation(heatmap, flat), rank_correlation(flat, heatmap)):
        assert found.isnan().tolist() == [True, False]
        assert found[1].item() == pytest.approx(1)
