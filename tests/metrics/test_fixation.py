"""Fixation metrics against plain implementations of their definitions, laws, what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from captum_clip.errors import InputError
from captum_clip.metrics import auc_judd, cc, nss, sim
from tests.samples import uniform

OF_FIXATIONS, OF_DENSITIES = [nss, auc_judd], [cc, sim]
EVERY = OF_FIXATIONS + OF_DENSITIES


def plain_nss(heatmap, fixated):
    standard = (heatmap - heatmap.mean()) / heatmap.std(ddof=1)
    return standard[fixated].mean()


def plain_cc(heatmap, density):
    return np.corrcoef(heatmap.ravel(), density.ravel())[0, 1]


def plain_sim(heatmap, density):
    one, other = ((x - x.min()) / (x.max() - x.min()) for x in (heatmap, density))
    return sum(min(a, b) for a, b in zip((one / one.sum()).flat, (other / other.sum()).flat))  # noqa: B905


def plain_auc_judd(heatmap, fixated):
    """Judd's loop over the fixations from the highest, without jitter, for distinct values."""
    values, at = heatmap.ravel(), np.sort(heatmap[fixated])[::-1]
    fixations, pixels = len(at), values.size
    true, false = [0.0], [0.0]
    for i, threshold in enumerate(at, start=1):
        above = (values >= threshold).sum()
        true.append(i / fixations)
        false.append((above - i) / (pixels - fixations))
    return np.trapezoid([*true, 1.0], [*false, 1.0])


PLAIN = {nss: plain_nss, cc: plain_cc, sim: plain_sim, auc_judd: plain_auc_judd}


def truth(metric, *shape, seed=1):
    """Fixations or a density."""
    drawn = uniform(*shape, seed=seed)
    return drawn > 0.8 if metric in OF_FIXATIONS else drawn


@pytest.mark.parametrize("metric", EVERY)
def test_metric_is_its_plain_definition(metric):
    """Each map of a batch (2, 3) against numpy and loops."""
    maps = uniform(2, 3, 9, 11, seed=0, dtype=torch.float64)
    known = truth(metric, 2, 3, 9, 11)
    found = metric(maps, known)
    assert found.shape == (2, 3)
    for i in range(2):
        for k in range(3):
            wanted = PLAIN[metric](maps[i, k].numpy(), known[i, k].numpy())
            assert found[i, k].item() == pytest.approx(wanted, rel=1e-6)
            assert metric(maps[i, k], known[i, k]).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("metric", "best"), [(auc_judd, 1), (cc, 1), (sim, 1)])
def test_the_truth_as_a_map_is_perfect(metric, best):
    """And its opposite is the worst there is."""
    known = truth(metric, 12, 12)
    assert metric(known.double(), known).item() == pytest.approx(best)
    opposite = 1 - known.double()
    worst = {auc_judd: 1 / (2 * known.sum().item()), cc: -1}
    if metric is sim:
        assert metric(opposite, known) < 0.5
    else:
        assert metric(opposite, known).item() == pytest.approx(worst[metric])


@pytest.mark.parametrize(("metric", "chance"), [(nss, 0), (auc_judd, 0.5), (cc, 0)])
def test_random_maps_are_at_chance(metric, chance):
    """On average over many."""
    maps = uniform(400, 16, 16, seed=2)
    found = metric(maps, truth(metric, 16, 16).expand(400, 16, 16))
    assert found.mean().item() == pytest.approx(chance, abs=0.02)


@pytest.mark.parametrize("metric", EVERY)
def test_constant_map_has_no_answer_or_the_area_of_chance(metric):
    """Also where resizing leaves rounding in it."""
    flat, known = torch.full((1, 3, 3), 0.1), truth(metric, 1, 50, 50)
    found = metric(flat, known)
    if metric is auc_judd:
        assert found.item() == pytest.approx(0.5 + 0.5 / (1 + known.sum().item()))
    else:
        assert torch.isnan(found).all()


@pytest.mark.parametrize("metric", OF_DENSITIES)
def test_constant_density_has_no_answer(metric):
    """Nobody preferred anything."""
    assert torch.isnan(metric(torch.rand(4, 4), torch.ones(4, 4)))


@pytest.mark.parametrize("metric", EVERY)
def test_scale_and_offset_of_a_map_make_no_difference(metric):
    """They say nothing about where it is high."""
    maps = uniform(3, 10, 10, seed=3, dtype=torch.float64)
    known = truth(metric, 3, 10, 10)
    torch.testing.assert_close(metric(5 * maps - 2, known), metric(maps, known))


def test_area_ignores_a_monotone_change():
    """Only the order counts."""
    maps = uniform(5, 10, 10, seed=4, dtype=torch.float64)
    known = truth(auc_judd, 5, 10, 10)
    torch.testing.assert_close(auc_judd(maps.exp(), known), auc_judd(maps, known))


def test_area_is_the_mean_of_judds_jitter():
    """Equal values in random order, a great many times, as Judd's code draws them once."""
    generator = np.random.default_rng(4)
    heatmap = np.round(3 * generator.random((6, 7)))
    fixated = generator.random((6, 7)) > 0.7
    drawn = [
        plain_auc_judd(heatmap + 1e-3 * generator.random(heatmap.shape), fixated)
        for _ in range(4000)
    ]
    found = auc_judd(torch.from_numpy(heatmap), torch.from_numpy(fixated)).item()
    assert found == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / math.sqrt(4000))


@pytest.mark.parametrize("metric", EVERY)
def test_maps_are_resized_and_half_precision_is_measured_in_single(metric):
    """A grid of 7 x 7 against a picture, in every floating-point type."""
    maps = uniform(7, 7, seed=5).half()
    known = truth(metric, 224, 224)
    wanted = metric(maps.double(), known)
    found = metric(maps, known)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("metric", OF_FIXATIONS)
def test_fixations_have_an_inside_and_an_outside(metric):
    """One sentence that says what was given."""
    refused = [
        (torch.zeros(2, 2).bool(), "1 of the fixations are empty"),
        (torch.ones(2, 2).bool(), "1 of the fixations are full"),
        (torch.eye(2), "fixations as a bool tensor"),
        (torch.ones(3, 2, 2).bool(), "one of the fixations"),
    ]
    for known, message in refused:
        with pytest.raises(InputError, match=message):
            metric(torch.rand(2, 2), known)


@pytest.mark.parametrize("metric", OF_DENSITIES)
def test_densities_have_mass(metric):
    """One sentence that says what was given."""
    refused = [
        (torch.zeros(2, 2), "some mass in each"),
        (-torch.eye(2), "from 0 on"),
        (torch.eye(2) / 0, "the densities .* hold NaN"),
        (torch.eye(2).bool(), "expected densities as a floating-point tensor"),
        (
            torch.rand(3, 2, 2),
            r"one of the densities .* per map of Tensor \(2, 2\) .*, got Tensor \(3, 2, 2\)",
        ),
    ]
    for known, message in refused:
        with pytest.raises(InputError, match=message):
            metric(torch.rand(2, 2), known)
    with pytest.raises(InputError, match="NaN"):
        metric(torch.full((2, 2), torch.nan), torch.eye(2))
