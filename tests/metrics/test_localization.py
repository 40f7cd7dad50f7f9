"""Maps against masks, as segmentations, in mosaics: closed forms, laws, what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from captum_clip.errors import InputError
from captum_clip.metrics import (
    average_precision,
    coverage,
    energy_inside,
    pointing_game,
    segmentation_scores,
    two_class_average_precision,
    word_mosaic_game,
)
from tests.samples import normal, uniform

METRICS = [pointing_game, energy_inside]
EVERY = [*METRICS, coverage, word_mosaic_game]


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


def test_pointing_game_takes_the_maximum_at_the_size_of_the_mask():
    """The cell that is highest on the grid points to its center."""
    heatmap = torch.zeros(7, 7)
    heatmap[2, 5] = 1
    center = torch.zeros(224, 224, dtype=torch.bool)
    center[2 * 32 + 15 : 2 * 32 + 17, 5 * 32 + 15 : 5 * 32 + 17] = True
    assert pointing_game(heatmap, center) == 1
    assert pointing_game(heatmap, ~center) == 0


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


def test_coverage_shares_places_among_ties():
    """Two sure places, and one and a half among four equal pixels of which two are the object."""
    heatmap = torch.tensor([[5.0, 4.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]]).bool()
    found = coverage(heatmap, mask, area=3 / 8)
    assert found.item() == pytest.approx((1 + 2 * 1 / 4) / 4)


def test_options_are_checked():
    """An area is neither nothing nor everything, a tolerance whole pixels."""
    maps, masks = torch.ones(2, 2), torch.eye(2).bool()
    for area in (0, 1, True):
        with pytest.raises(InputError, match=r"area in \(0, 1\), got"):
            coverage(maps, masks, area=area)
    for tolerance in (-1, 1.5):
        with pytest.raises(InputError, match="tolerance of 0 or more"):
            pointing_game(maps, masks, tolerance=tolerance)  # type: ignore[arg-type]
    for threshold in ("median", 1.0, True, None):
        with pytest.raises(InputError, match=r'"mean", "otsu" or a number in \[0, 1\), got'):
            segmentation_scores(maps, masks, threshold=threshold)  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", METRICS)
def test_half_precision_maps_are_summed_in_single(metric):
    """A sum over 224 x 224 pixels does not fit in half precision."""
    mask = torch.zeros(224, 224, dtype=torch.bool)
    mask[:112] = True
    for dtype in (torch.float16, torch.bfloat16):
        assert metric(torch.ones(7, 7, dtype=dtype), mask) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("metric", [*EVERY, segmentation_scores, average_precision])
def test_what_cannot_be_measured_is_refused(metric):
    """One sentence that says what was given."""
    flat, mask = torch.ones(2, 2), torch.eye(2).bool()
    half_empty = torch.stack([torch.ones(4, 4).bool(), torch.zeros(4, 4).bool()])
    refused = [
        ([[1.0]], mask, r"maps as a tensor .*, got \[\[1.0\]\]"),
        (flat.int(), mask, "floating-point tensor, got .* of torch.int32"),
        (torch.ones(3), torch.ones(3).bool(), r"got Tensor \(3,\)"),
        (flat * torch.nan, mask, "NaN or infinity"),
        (flat, flat, "bool tensor, got .* of torch.float32"),
        (flat, None, "bool tensor, got None"),
        (
            torch.ones(3, 2, 2),
            mask,
            r"(masks|cells) .* per map of Tensor \(3, 2, 2\) .*, got Tensor \(2, 2\)",
        ),
        (
            flat,
            mask.to("meta"),
            r"per map of Tensor \(2, 2\) .*, got Tensor \(2, 2\) of torch.bool on meta",
        ),
        (torch.ones(2, 2, 2), half_empty, "1 of the (masks|cells) are empty"),
        (flat, torch.ones(4, 4).bool(), "1 of the (masks|cells) are full"),
    ]
    for maps, masks, message in refused:
        with pytest.raises(InputError, match=message):
            metric(maps, masks)


def case(count=6, side=20, seed=0):
    """Noisy maps of discs, some with ties."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(side)[:, None], torch.arange(side)
    centers = torch.randint(4, side - 4, (count, 2), generator=generator)
    masks = torch.stack([(rows - y) ** 2 + (columns - x) ** 2 <= 16 for y, x in centers.tolist()])
    return (masks + torch.randn(masks.shape, generator=generator)).round(decimals=1), masks


def test_scores_of_a_set_are_worked_by_hand():
    """Counts are added up before they are divided."""
    maps = torch.tensor([[[9.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]]])
    masks = torch.tensor([[[1, 1], [0, 0]], [[1, 0], [0, 0]]]).bool()
    found = segmentation_scores(maps, masks)
    assert found.true_positive.tolist() == [1, 1]
    assert found.false_positive.tolist() == [0, 2]
    assert found.false_negative.tolist() == [1, 0]
    assert found.true_negative.tolist() == [2, 1]
    assert found.pixel_accuracy == 5 / 8
    assert found.mean_iou == pytest.approx((2 / 5 + 3 / 6) / 2)
    assert average_precision(maps, masks).tolist() == pytest.approx([1, 1 / 3])
    assert segmentation_scores(maps[0], masks[0]).true_positive.shape == (1,)


def test_average_precision_is_scikit_learns():
    """With values that many pixels share."""
    from sklearn.metrics import average_precision_score

    maps, masks = case()
    found = average_precision(maps, masks)
    for value, heatmap, mask in zip(found, maps, masks, strict=True):
        wanted = average_precision_score(mask.flatten(), heatmap.flatten())
        assert value.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("threshold", ["mean", "otsu", 0.5])
def test_perfect_map_is_perfect_and_its_opposite_wrong(threshold):
    """Everything is 1, or everything 0."""
    _, masks = case()
    best = segmentation_scores(masks.float() * 3 - 7, masks, threshold=threshold)
    assert best.pixel_accuracy == best.mean_iou == 1
    assert (average_precision(masks.float() * 3 - 7, masks) == 1).all()
    worst = segmentation_scores(-masks.float(), masks, threshold=threshold)
    assert worst.pixel_accuracy == worst.mean_iou == 0


@pytest.mark.parametrize("threshold", ["mean", "otsu", 0.0, 0.5])
def test_constant_map_marks_nothing(threshold):
    """Its accuracy is the background's share, its precision the object's, also after resizing."""
    _, masks = case()
    maps = torch.full((6, 3, 3), 0.1)
    found = segmentation_scores(maps, masks, threshold=threshold)
    share = masks.float().mean((1, 2))
    assert found.pixel_accuracy == pytest.approx(1 - share.mean().item())
    torch.testing.assert_close(average_precision(maps, masks), share)


def test_thresholds_are_what_they_say():
    """A higher number marks less; the mean is the map's own."""
    maps, masks = case(seed=2)
    low, high = (segmentation_scores(maps, masks, threshold=t) for t in (0.2, 0.8))
    marked = [s.true_positive + s.false_positive for s in (low, high)]
    assert (marked[0] > marked[1]).all()
    stretched = (maps - maps.amin((1, 2), keepdim=True)) / (
        maps.amax((1, 2), keepdim=True) - maps.amin((1, 2), keepdim=True)
    )
    above = (stretched > 0.2).sum((1, 2))
    assert torch.equal(marked[0], above)
    mean = segmentation_scores(maps, masks)
    wanted = (maps > maps.mean((1, 2), keepdim=True)).sum((1, 2))
    assert torch.equal(mean.true_positive + mean.false_positive, wanted)


def test_otsu_parts_two_groups_where_the_variance_between_is_largest():
    """Against a search over every cut of the histogram."""
    generator = torch.Generator().manual_seed(5)
    maps = torch.cat(
        [0.5 * torch.rand(3, 30, 8, generator=generator), 0.4 + torch.rand(3, 30, 22)], -1
    )
    masks = torch.zeros(3, 30, 30, dtype=torch.bool)
    masks[:, :4] = True
    found = segmentation_scores(maps, masks, threshold="otsu")
    marked = found.true_positive + found.false_positive
    for heatmap, count in zip(maps.double(), marked, strict=True):
        values = ((heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())).flatten()
        bins = (values * 256).floor().clamp(max=255)
        centered = (bins + 0.5) / 256

        def between(cut, bins=bins, centered=centered):
            low, high = centered[bins <= cut], centered[bins > cut]
            return len(low) * len(high) * (low.mean() - high.mean()) ** 2

        best = max((c for c in range(255) if (bins <= c).any() and (bins > c).any()), key=between)
        assert count == (values > (best + 0.5) / 256).sum()


def test_average_precision_of_two_classes_is_the_published_one():
    """Scikit-learn's of both classes' pixels in one list, as the authors' code has it."""
    from sklearn.metrics import average_precision_score

    _, masks = case()
    maps = normal(*masks.shape).clamp(min=0) + masks  # ties of the background, none across classes
    found = two_class_average_precision(maps, masks)
    for value, heatmap, mask in zip(found, maps, masks, strict=True):
        stretched = (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())
        scores = torch.stack([1 - stretched, stretched]).flatten()
        truth = torch.stack([~mask, mask]).flatten()
        assert value.item() == pytest.approx(average_precision_score(truth, scores), rel=1e-5)
    corner = torch.tensor([[True, False], [False, False]])
    assert two_class_average_precision(torch.ones(2, 2), corner).item() == 0.5


CELLS = torch.eye(4).bool().view(4, 2, 2).repeat_interleave(8, 1).repeat_interleave(8, 2)


def test_score_is_the_right_mass_over_all_mass():
    """Against the sums themselves."""
    heatmap = normal(4, 16, 16, seed=0)
    found = word_mosaic_game(heatmap, CELLS)
    for value, one, own in zip(found, heatmap, CELLS, strict=True):
        right = one[own].clamp(min=0).sum() - one[~own].clamp(max=0).sum()
        torch.testing.assert_close(value, right / one.abs().sum())
    torch.testing.assert_close(word_mosaic_game(7 * heatmap, CELLS), found)
    torch.testing.assert_close(word_mosaic_game(heatmap[2], CELLS[2]), found[2])


def test_one_positive_map_for_the_whole_caption_cannot_pass_one_in_n():
    """It is reached where all mass lies in the cells that the caption names."""
    for words in (1, 2, 3, 4):
        named = CELLS[:words]
        heatmap = uniform(50, 16, 16, seed=words)
        scores = torch.stack([word_mosaic_game(heatmap, own.expand(50, 16, 16)) for own in named])
        assert (scores.mean(0) <= 1 / words + 1e-6).all()
        best = torch.stack([word_mosaic_game(named.any(0).float(), own) for own in named])
        assert best.mean().item() == pytest.approx(1 / words)


def test_map_of_zeros_has_no_answer():
    """Neither right nor wrong."""
    assert torch.isnan(word_mosaic_game(torch.zeros(4, 4), CELLS[0]))


def test_energy_in_a_cell_is_the_authors_grid_pointing_game():
    """Their way: average the positive part over each cell, and divide by all cells."""
    heatmap = normal(4, 16, 16, seed=1)
    pooled = torch.nn.functional.avg_pool2d(heatmap.clamp(min=0)[:, None], 8).flatten(1)
    wanted = torch.diagonal(pooled / pooled.sum(1, keepdim=True))
    torch.testing.assert_close(energy_inside(heatmap, CELLS), wanted)
    assert energy_inside(torch.ones(4, 7, 7), CELLS).tolist() == [0.25] * 4
    torch.testing.assert_close(
        energy_inside(heatmap.abs(), CELLS), word_mosaic_game(heatmap.abs(), CELLS)
    )


def test_pointing_game_ignores_a_monotone_change_of_the_values():
    """Only the place of the maximum matters."""
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(20, 14, 14, generator=generator)
    masks = torch.rand(20, 14, 14, generator=generator) > 0.5
    torch.testing.assert_close(pointing_game(maps.exp() * 3 - 7, masks), pointing_game(maps, masks))
    assert 0 < pointing_game(maps, masks).mean() < 1


def test_energy_counts_what_is_above_zero():
    """Negative mass is not subtracted; a map without positive mass has no answer."""
    mask = torch.tensor([[True, False], [False, False]])
    heatmap = torch.tensor([[1.0, 3.0], [-8.0, 0.0]])
    assert energy_inside(heatmap, mask) == 0.25
    assert energy_inside(heatmap * 10, mask) == 0.25
    assert torch.isnan(energy_inside(-heatmap.abs(), mask))


def test_coverage_of_a_perfect_map_is_all_that_fits():
    """One, unless the object is larger than the area."""
    mask = disc(40, 20, 20, 9)
    share = mask.float().mean().item()
    assert coverage(mask.float(), mask, area=0.3) == 1
    found = coverage(mask.float(), mask, area=share / 2)
    assert found.item() == pytest.approx(0.5, abs=0.01)
    assert coverage((~mask).float(), mask, area=0.3) == 0


def test_coverage_of_a_constant_map_is_the_area():
    """Pixels that tie share the places, also with the rounding of a resize."""
    mask = disc(40, 12, 20, 9)
    for area in (0.1, 0.25, 0.6):
        found = coverage(torch.full((7, 7), 0.1), mask, area=area)
        assert found.item() == pytest.approx(area)


@pytest.mark.parametrize("threshold", ["mean", "otsu", 0.3])
def test_scale_and_offset_make_no_difference(threshold):
    """Maps are stretched to [0, 1] before they are cut."""
    maps, masks = case(seed=1)
    maps = maps.double()
    one, other = (segmentation_scores(m, masks, threshold=threshold) for m in (maps, 4 * maps + 8))
    assert torch.equal(one.true_positive, other.true_positive)
    assert torch.equal(one.false_positive, other.false_positive)
    monotone = average_precision(maps.exp(), masks)
    torch.testing.assert_close(monotone, average_precision(maps, masks))


def test_images_are_scored_one_by_one_as_legrad_does():
    """Worked by hand: each image's own accuracy and IoU, of which LeGrad takes the mean."""
    maps = torch.tensor([[[9.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]]])
    masks = torch.tensor([[[1, 1], [0, 0]], [[1, 0], [0, 0]]]).bool()
    found = segmentation_scores(maps, masks, threshold=0.5)
    assert found.image_accuracy.tolist() == [3 / 4, 2 / 4]
    assert found.image_iou.tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, (1 / 3 + 1 / 3) / 2])
    assert found.image_iou.mean().item() != pytest.approx(found.mean_iou)


def test_signed_map_that_knows_its_cell_scores_one():
    """What speaks for it inside, what speaks against it outside; the opposite gets nothing."""
    for own in CELLS:
        heatmap = torch.where(own, 2.0, -0.5)
        assert word_mosaic_game(heatmap, own) == 1
        assert word_mosaic_game(-heatmap, own) == 0


def test_mosaic_game_of_a_constant_map_is_at_chance():
    """A quarter of a 2 x 2 mosaic, three quarters for a negative one."""
    for sign, chance in ((1, 0.25), (-1, 0.75)):
        flat = torch.full((4, 7, 7), 0.3 * sign)
        torch.testing.assert_close(word_mosaic_game(flat, CELLS), torch.full((4,), chance))
