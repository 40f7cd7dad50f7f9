"""Rank correlation of maps: ranks counted plainly, laws, what has no ranks."""

from __future__ import annotations

import pytest
import torch

from captum_clip.errors import InputError
from captum_clip.metrics import rank_correlation
from captum_clip.metrics.ranks import pearson
from tests.metrics import oracles
from tests.samples import normal, uniform


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


@pytest.mark.parametrize("value", [0.1, 0.3, 2.0])
def test_correlation_with_a_constant_is_nan(value):
    """Also where the rounding of the mean makes its differences not quite zero."""
    ramp = torch.arange(49.0, dtype=torch.float64)
    constant = torch.full((49,), value, dtype=torch.float64)
    assert torch.isnan(pearson(ramp, constant))
    assert torch.isnan(pearson(constant, ramp))


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


def test_maps_must_have_one_shape():
    """One sentence that says what was given."""
    with pytest.raises(InputError, match=r"of one shape, got \(2, 2\) and \(4, 4\); resize"):
        rank_correlation(torch.ones(2, 2), torch.ones(4, 4))
    for pair in (
        (torch.ones(2, 2) / 0, torch.ones(2, 2)),
        (torch.ones(2, 2), torch.ones(2, 2) / 0),
    ):
        with pytest.raises(InputError, match="NaN or infinity"):
            rank_correlation(*pair)
