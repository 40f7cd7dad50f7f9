"""Segmentation by thresholds: hand-worked sets, scikit-learn's precision, laws, refusals."""

from __future__ import annotations

import pytest
import torch

from captum_clip.errors import InputError
from captum_clip.metrics import (
    SegmentationScores,
    segmentation_scores,
    two_class_average_precision,
)
from tests.samples import normal

CORNER = torch.tensor([[True, False], [False, False]])


def case(count=6, side=20, seed=0):
    """Noisy maps of discs, some with ties."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(side)[:, None], torch.arange(side)
    centres = torch.randint(4, side - 4, (count, 2), generator=generator)
    masks = torch.stack([(rows - y) ** 2 + (columns - x) ** 2 <= 16 for y, x in centres.tolist()])
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
    assert found.average_precision.tolist() == pytest.approx([1, 1 / 3])
    assert found.mean_average_precision == pytest.approx(2 / 3)


def test_average_precision_is_scikit_learns():
    """With values that many pixels share."""
    from sklearn.metrics import average_precision_score

    maps, masks = case()
    found = segmentation_scores(maps, masks).average_precision
    for value, heatmap, mask in zip(found, maps, masks, strict=True):
        wanted = average_precision_score(mask.flatten(), heatmap.flatten())
        assert value.item() == pytest.approx(wanted, rel=1e-5)


def test_batches_make_one_set():
    """Parts joined together are the whole, whatever their sizes."""
    maps, masks = case()
    whole = segmentation_scores(maps, masks)
    parts = [segmentation_scores(maps[i:j], masks[i:j]) for i, j in ((0, 1), (1, 4), (4, 6))]
    joined = SegmentationScores.concatenate(parts)
    assert torch.equal(joined.true_positive, whole.true_positive)
    assert (joined.mean_iou, joined.pixel_accuracy) == (whole.mean_iou, whole.pixel_accuracy)
    assert segmentation_scores(maps[0], masks[0]).true_positive.shape == (1,)
    with pytest.raises(InputError, match="one or more parts, got 0"):
        SegmentationScores.concatenate([])


@pytest.mark.parametrize("threshold", ["mean", "otsu", 0.5])
def test_perfect_map_is_perfect_and_its_opposite_wrong(threshold):
    """Everything is 1, or everything 0 but the precision, which has the base rate as its floor."""
    _, masks = case()
    best = segmentation_scores(masks.float() * 3 - 7, masks, threshold=threshold)
    assert best.pixel_accuracy == best.mean_iou == best.mean_average_precision == 1
    worst = segmentation_scores(-masks.float(), masks, threshold=threshold)
    assert worst.pixel_accuracy == worst.mean_iou == 0


@pytest.mark.parametrize("threshold", ["mean", "otsu", 0.0, 0.5])
def test_constant_map_marks_nothing(threshold):
    """Its accuracy is the background's share, its precision the object's, also after resizing."""
    _, masks = case()
    found = segmentation_scores(torch.full((6, 3, 3), 0.1), masks, threshold=threshold)
    share = masks.float().mean((1, 2))
    assert found.pixel_accuracy == pytest.approx(1 - share.mean().item())
    torch.testing.assert_close(found.average_precision, share)


@pytest.mark.parametrize("threshold", ["mean", "otsu", 0.3])
def test_scale_and_offset_make_no_difference(threshold):
    """Maps are stretched to [0, 1] before they are cut."""
    maps, masks = case(seed=1)
    maps = maps.double()
    one, other = (segmentation_scores(m, masks, threshold=threshold) for m in (maps, 4 * maps + 8))
    assert torch.equal(one.true_positive, other.true_positive)
    assert torch.equal(one.false_positive, other.false_positive)
    monotone = segmentation_scores(maps.exp(), masks, threshold=threshold).average_precision
    torch.testing.assert_close(monotone, one.average_precision)


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
        centred = (bins + 0.5) / 256

        def between(cut, bins=bins, centred=centred):
            low, high = centred[bins <= cut], centred[bins > cut]
            return len(low) * len(high) * (low.mean() - high.mean()) ** 2

        best = max((c for c in range(255) if (bins <= c).any() and (bins > c).any()), key=between)
        assert count == (values > (best + 0.5) / 256).sum()


@pytest.mark.parametrize("threshold", ["median", 1.0, -0.1, True, None])
def test_unknown_thresholds_are_refused(threshold):
    """The message has all that there are."""
    maps, masks = case()
    with pytest.raises(InputError, match=r'"mean", "otsu" or a number in \[0, 1\), got'):
        segmentation_scores(maps, masks, threshold=threshold)


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        (torch.full((2, 2), torch.nan), torch.eye(2).bool(), "NaN or infinity"),
        (torch.ones(2, 2), torch.ones(2, 2).bool(), "1 of the masks are full"),
        (torch.ones(2, 2), torch.zeros(2, 2).bool(), "1 of the masks are empty"),
        (torch.ones(3, 2, 2), torch.eye(2).bool(), r"masks \(2, 2\) for maps \(3, 2, 2\)"),
    ],
)
def test_what_cannot_be_segmented_is_refused(maps, masks, message):
    """One sentence that says what was given."""
    with pytest.raises(InputError, match=message):
        segmentation_scores(maps, masks)


def test_images_are_scored_one_by_one_as_legrad_does():
    """Worked by hand: each image's own accuracy and IoU, of which LeGrad takes the mean."""
    maps = torch.tensor([[[9.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]]])
    masks = torch.tensor([[[1, 1], [0, 0]], [[1, 0], [0, 0]]]).bool()
    found = segmentation_scores(maps, masks, threshold=0.5)
    assert found.image_accuracy.tolist() == [3 / 4, 2 / 4]
    assert found.object_iou.tolist() == pytest.approx([1 / 2, 1 / 3])
    assert found.image_iou.tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, (1 / 3 + 1 / 3) / 2])
    assert found.image_iou.mean().item() != pytest.approx(found.mean_iou)


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
    assert two_class_average_precision(torch.ones(2, 2), CORNER).item() == 0.5


def test_pixels_that_do_not_count_change_nothing():
    """Not what the map or the mask has there, in no count and no precision."""
    maps, masks = case()
    counted = torch.rand(masks.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    found = segmentation_scores(maps, masks, threshold=0.5, counted=counted)
    assert (found.true_positive + found.false_negative == (masks & counted).sum((1, 2))).all()
    turned = segmentation_scores(maps, masks ^ ~counted, threshold=0.5, counted=counted)
    assert torch.equal(turned.average_precision, found.average_precision)
    assert torch.equal(turned.image_iou, found.image_iou)
    both = two_class_average_precision(maps, masks, counted=counted)
    assert torch.equal(two_class_average_precision(maps, masks ^ ~counted, counted=counted), both)


def test_points_are_scored_as_open_images_does():
    """Three points on the object, one of them missed, and two beside it, one of them marked."""
    heatmap = torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.2, 0.0]])
    yes = torch.tensor([[True, True, True], [False, False, False]])
    no = torch.tensor([[False, False, False], [True, True, False]])
    found = segmentation_scores(heatmap, yes, threshold=0.5, counted=yes | no)
    assert found.object_iou.tolist() == [2 / 4]
    assert found.image_accuracy.tolist() == pytest.approx([3 / 5])


def test_pixels_that_count_are_checked():
    maps, masks = case(count=2)
    with pytest.raises(InputError, match=r"segmentation_scores: expected counted as large as the"):
        segmentation_scores(maps, masks, counted=masks[0])
    with pytest.raises(InputError, match="of 2 objects no pixel counts; leave those images out"):
        two_class_average_precision(maps, masks, counted=~masks)
    with pytest.raises(InputError, match="expected counted as a bool tensor"):
        segmentation_scores(maps, masks, counted=masks.int())
