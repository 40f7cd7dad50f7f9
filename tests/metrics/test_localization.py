"""Pointing, energy and coverage against masks: closed forms, laws, what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from captum_clip.errors import InputError
from captum_clip.metrics import coverage, energy_inside, pointing_game
from tests.samples import uniform

METRICS = [pointing_game, energy_inside]
EVERY = [*METRICS, coverage]


def disc(size: int, row: int, column: int, radius: int) -> torch.Tensor:
    rows, columns = torch.arange(size)[:, None] - row, torch.arange(size) - column
    return rows**2 + columns**2 <= radius**2


@pytest.mark.parametrize("metric", METRICS)
def test_perfect_map_scores_one_and_its_opposite_none(metric):
    """The mask itself as a map is the best there is, its complement the worst."""
    mask = disc(32, 10, 12, 6)
    assert metric(mask.float(), mask) == 1
    assert metric((~mask).float(), mask) == 0


@pytest.mark.parametrize("metric", METRICS)
def test_constant_map_is_at_chance(metric):
    """Where nothing is preferred, the mask's share of the image comes out."""
    mask = disc(40, 20, 20, 9)
    torch.testing.assert_close(metric(torch.full((7, 7), 2.5), mask), mask.float().mean())


@pytest.mark.parametrize("metric", EVERY)
def test_each_map_is_measured_alone(metric):
    """Batches of any shape give what single maps give."""
    maps = uniform(2, 3, 7, 7, seed=0)
    masks = torch.stack([disc(28, 5 + 3 * i, 20 - 2 * i, 6) for i in range(6)]).view(2, 3, 28, 28)
    together = metric(maps, masks)
    assert together.shape == (2, 3)
    for i in range(2):
        for k in range(3):
            torch.testing.assert_close(together[i, k], metric(maps[i, k], masks[i, k]))


def test_pointing_game_ignores_a_monotone_change_of_the_values():
    """Only the place of the maximum matters."""
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(20, 14, 14, generator=generator)
    masks = torch.rand(20, 14, 14, generator=generator) > 0.5
    torch.testing.assert_close(pointing_game(maps.exp() * 3 - 7, masks), pointing_game(maps, masks))
    assert 0 < pointing_game(maps, masks).mean() < 1


def test_pointing_game_takes_the_maximum_at_the_size_of_the_mask():
    """The cell that is highest on the grid points to its centre."""
    heatmap = torch.zeros(7, 7)
    heatmap[2, 5] = 1
    centre = torch.zeros(224, 224, dtype=torch.bool)
    centre[2 * 32 + 15 : 2 * 32 + 17, 5 * 32 + 15 : 5 * 32 + 17] = True
    assert pointing_game(heatmap, centre) == 1
    assert pointing_game(heatmap, ~centre) == 0


def test_tolerance_is_a_euclidean_distance():
    """A maximum counts exactly when some pixel of the mask is near enough."""
    size, tolerance = 25, 4
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[12, 12], mask[3, 20] = True, True
    inside = np.argwhere(mask.numpy())
    for row in range(0, size, 3):
        for column in range(size):
            heatmap = torch.zeros(size, size)
            heatmap[row, column] = 1
            distance = np.sqrt(((inside - [row, column]) ** 2).sum(1)).min()
            assert pointing_game(heatmap, mask, tolerance=tolerance) == float(distance <= tolerance)


def test_energy_counts_what_is_above_zero():
    """Negative mass is not subtracted; a map without positive mass has no answer."""
    mask = torch.tensor([[True, False], [False, False]])
    heatmap = torch.tensor([[1.0, 3.0], [-8.0, 0.0]])
    assert energy_inside(heatmap, mask) == 0.25
    assert energy_inside(heatmap * 10, mask) == 0.25
    assert torch.isnan(energy_inside(-heatmap.abs(), mask))


def test_coverage_is_the_share_of_the_object_under_the_highest_pixels():
    """Counted one by one, for several areas; only the order of the values matters."""
    generator = torch.Generator().manual_seed(2)
    maps = torch.rand(5, 12, 12, generator=generator)
    masks = torch.rand(5, 12, 12, generator=generator) > 0.7
    for area in (0.05, 0.2, 0.5):
        found = coverage(maps, masks, area=area)
        for value, heatmap, mask in zip(found, maps, masks, strict=True):
            order = heatmap.flatten().argsort(descending=True)
            top = order[: round(area * 144)]
            wanted = mask.flatten()[top].sum() / mask.sum()
            assert value.item() == pytest.approx(wanted.item())
        torch.testing.assert_close(coverage(maps.exp(), masks, area=area), found)


def test_coverage_of_a_perfect_map_is_all_that_fits():
    """One, unless the object is larger than the area."""
    mask = disc(40, 20, 20, 9)
    share = mask.float().mean().item()
    assert coverage(mask.float(), mask, area=0.3) == 1
    found = coverage(mask.float(), mask, area=share / 2)
    assert found.item() == pytest.approx(0.5, abs=0.01)
    assert coverage((~mask).float(), mask, area=0.3) == 0


@pytest.mark.parametrize("area", [0.1, 0.25, 0.6])
def test_coverage_of_a_constant_map_is_the_area(area):
    """Pixels that tie share the places, also with the rounding of a resize."""
    mask = disc(40, 12, 20, 9)
    found = coverage(torch.full((7, 7), 0.1), mask, area=area)
    assert found.item() == pytest.approx(area)


def test_coverage_shares_places_among_ties():
    """Two sure places, and one and a half among four equal pixels of which two are the object."""
    heatmap = torch.tensor([[5.0, 4.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]]).bool()
    found = coverage(heatmap, mask, area=3 / 8)
    assert found.item() == pytest.approx((1 + 2 * 1 / 4) / 4)


@pytest.mark.parametrize("area", [0, 1, -0.1, True, "all"])
def test_area_is_a_share(area):
    """Neither nothing nor everything."""
    with pytest.raises(InputError, match=r"area in \(0, 1\), got"):
        coverage(torch.ones(2, 2), torch.eye(2).bool(), area=area)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_summed_in_single(dtype):
    """A sum over 224 x 224 pixels does not fit in half precision."""
    mask = torch.zeros(224, 224, dtype=torch.bool)
    mask[:112] = True
    for metric in METRICS:
        assert metric(torch.ones(7, 7, dtype=dtype), mask) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("metric", EVERY)
@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        ([[1.0]], torch.ones(2, 2).bool(), "floating-point tensor, got list"),
        (torch.ones(2, 2).int(), torch.ones(2, 2).bool(), "got torch.int32"),
        (torch.ones(3), torch.ones(3).bool(), r"got \(3,\)"),
        (torch.full((2, 2), torch.nan), torch.ones(2, 2).bool(), "NaN or infinity"),
        (torch.ones(2, 2), torch.ones(2, 2), "bool tensor, got torch.float32"),
        (torch.ones(2, 2), None, "bool tensor, got NoneType"),
        (torch.ones(3, 2, 2), torch.ones(2, 2).bool(), r"masks \(2, 2\) for maps \(3, 2, 2\)"),
        (torch.ones(2, 2, 2), torch.ones(2, 4, 4).bool().index_fill(0, torch.tensor(1), False),
         "1 of the masks are empty"),
        (torch.ones(2, 2), torch.ones(4, 4).bool(), "1 of the masks are full"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(metric, maps, masks, message):
    """One sentence that says what was given."""
    with pytest.raises(InputError, match=message):
        metric(maps, masks)


@pytest.mark.parametrize("tolerance", [-1, 1.5, True])
def test_tolerance_is_whole_pixels(tolerance):
    """Neither negative nor a fraction."""
    with pytest.raises(InputError, match="tolerance as a whole number from 0"):
        pointing_game(torch.ones(2, 2), torch.eye(2).bool(), tolerance=tolerance)
