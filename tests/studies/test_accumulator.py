"""Sums over images against the maps themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from captum_clip import maps as resizing
from captum_clip.studies.accumulator import Accumulator, correlation
from captum_clip.studies.batch_explainer import Explained
from captum_clip.studies.measures import measure

SIZE = (40, 56)


def some_part(count: int = 9, seed: int = 0, targets: int = 3, grid: int = 5) -> Explained:
    """Signed maps; of the first image the first map has nothing positive, so it is constant."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.rand(count, targets, grid, grid, generator=generator) - 0.3
    if seed == 0:
        raw[0, 0] = -1
    measured = measure(resizing.positive(raw), SIZE)
    return Explained(
        indices=np.arange(count),
        maps=raw.numpy(),
        scores=torch.rand(count, targets, generator=generator).numpy(),
        measures={name: values.numpy() for name, values in measured.items()},
        skipped={},
    )


def test_the_mean_of_stretched_maps_needs_only_sums_on_the_grid() -> None:
    """Upsampled once at the end it is the mean of the maps stretched one by one at full size."""
    part = some_part()
    found = Accumulator.of(part)
    large = resizing.upsample(resizing.positive(torch.from_numpy(part.maps)).double(), SIZE)
    heatmap = resizing.normalize(large).numpy()
    varies = np.asarray(heatmap.any((-2, -1)))
    assert found.constant.tolist() == [1, 0, 0]
    for target in range(3):
        expected = heatmap[varies[:, target], target].mean(0)
        mean = resizing.upsample(torch.from_numpy(found.mean("stretched")[target]), SIZE)
        np.testing.assert_allclose(mean.numpy(), expected, atol=1e-12)


def test_means_are_over_the_images_that_have_something() -> None:
    """Scores and raw maps over all, measures over the maps that vary."""
    part = some_part()
    found = Accumulator.of(part)
    np.testing.assert_allclose(found.mean("score"), part.scores.astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        found.mean("raw"), part.maps.astype(float).clip(min=0).mean(0), rtol=1e-12
    )
    expected = np.nanmean(part.measures["spatial_entropy"], 0)
    np.testing.assert_allclose(found.mean("spatial_entropy"), expected, rtol=1e-12)
    assert found.varying.tolist() == [8, 9, 9]


def cut(part: Explained, rows: slice) -> Explained:
    return Explained(
        part.indices[rows],
        part.maps[rows],
        part.scores[rows],
        {name: values[rows] for name, values in part.measures.items()},
        {},
    )


@pytest.mark.parametrize("at", [0, 1, 4, 9])
def test_merged_halves_are_the_whole(at: int) -> None:
    """An empty half too, and in either order."""
    part, pairs = some_part(), [(0, 1), (1, 2)]
    whole = Accumulator.of(part, pairs)
    first = Accumulator.of(cut(part, slice(0, at)), pairs)
    second = Accumulator.of(cut(part, slice(at, None)), pairs)
    for merged in (first.merge(second), second.merge(first)):
        assert merged.images == whole.images
        assert merged.constant.tolist() == whole.constant.tolist()
        assert merged.correlated.tolist() == whole.correlated.tolist()
        assert merged.sums.keys() == whole.sums.keys()
        for name, expected in whole.sums.items():
            np.testing.assert_allclose(merged.sums[name], expected, rtol=1e-12, atol=1e-15)


def test_pairs_are_correlated_image_by_image() -> None:
    """As NumPy does; an image with a constant map is in no mean."""
    part = some_part()
    found = Accumulator.of(part, [(0, 2)])
    flat = part.maps.astype(float).clip(min=0).reshape(9, 3, -1)
    expected = [np.corrcoef(flat[image, 0], flat[image, 2])[0, 1] for image in range(1, 9)]
    assert found.correlated.tolist() == [8]
    assert found.mean("correlation")[0] == pytest.approx(np.mean(expected), rel=1e-12)


def test_correlation_of_nothing_is_nan() -> None:
    ramp = np.arange(4.0)
    assert correlation(ramp, 3 * ramp - 1) == pytest.approx(1)
    assert correlation(ramp, -ramp) == pytest.approx(-1)
    for value in (2.0, 0.1, 0.3):  # the mean of the last two is rounded
        assert np.isnan(correlation(np.arange(49.0), np.full(49, value)))


def test_no_image_has_no_mean() -> None:
    """NaN everywhere, without a warning."""
    empty = Accumulator.of(cut(some_part(), slice(0, 0)), [(0, 1)])
    assert np.isnan(empty.mean("score")).all()
    assert np.isnan(empty.mean("raw")).all()
    assert np.isnan(empty.mean("stretched")).all()
    assert np.isnan(empty.mean("spatial_variance")).all()
    assert np.isnan(empty.mean("correlation")).all()
