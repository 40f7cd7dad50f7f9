"""Does a map lie where it should? Measures against masks and against the cells of a mosaic.

Throughout, `maps` are (..., h, w), resized (bilinear) to `masks` or `cells` (..., H, W), bool, one
per map, none empty or full. Other maps or masks, and NaN, raise an InputError.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import check_integer, check_interval, describe, expect
from ..errors import InputError, public
from ..maps import Threshold, check_maps, normalize, threshold_level, to_float32, upsample


def check_bool(name: str, value: Any) -> None:
    """Raise InputError unless a value is a bool tensor."""
    is_bool = isinstance(value, Tensor) and value.dtype == torch.bool
    expect(is_bool, f"{name} as a bool tensor", value)


def check_filled(masks: Tensor, *, what: str = "masks") -> None:
    """Raise InputError unless each mask (..., H, W) has an inside and an outside."""
    flat = masks.flatten(-2)
    is_empty = ~flat.any(-1)
    is_full = flat.all(-1)
    for state, is_wrong in (("empty", is_empty), ("full", is_full)):
        if is_wrong.any():
            raise InputError(
                f"{int(is_wrong.sum())} of the {what} are {state}, where every map scores "
                "the same; leave those images out."
            )


def maps_at_masks(maps: Tensor, masks: Tensor, *, what: str = "masks") -> Tensor:
    """Resize maps (..., h, w) to their bool masks (..., H, W), at least in single precision.

    There is one mask per map, none empty or full.
    """
    check_bool(what, masks)
    check_maps(maps)
    is_one_per_map = masks.ndim >= 2 and masks.shape[:-2] == maps.shape[:-2]
    is_same_device = masks.device == maps.device
    expected = f"one of the {what} (..., H, W) per map of {describe(maps)}"
    expect(is_one_per_map and is_same_device, expected, masks)
    check_filled(masks, what=what)
    return resize_to_masks(maps, masks)


def resize_to_masks(maps: Tensor, masks: Tensor) -> Tensor:
    """Resize maps (..., h, w) to masks (..., H, W), at least in single precision."""
    return upsample(to_float32(maps), (masks.shape[-2], masks.shape[-1]))


def rounding(maps: Tensor) -> Tensor:
    """Bound the differences (..., 1, 1) that may come from resizing a map (..., h, w).

    Eight units of the largest value are also what :func:`captum_clip.maps.normalize` allows.
    """
    return 8 * torch.finfo(maps.dtype).eps * maps.abs().amax((-2, -1), keepdim=True)


def varies(maps: Tensor) -> Tensor:
    """Tell whether each map (..., h, w) differs from a constant by more than rounding: (...)."""
    span = maps.amax((-2, -1)) - maps.amin((-2, -1))
    return span > rounding(maps)[..., 0, 0]


@public("pointing_game")
def pointing_game(maps: Tensor, masks: Tensor, *, tolerance: int = 0) -> Tensor:
    r"""Tell whether the maximum of each map lies inside its mask (Zhang et al. 2016).

    .. math:: h = \frac{|\{p : m_p = \max m\} \cap M|}{|\{p : m_p = \max m\}|}

    Where several pixels share the maximum, up to the rounding of resizing, the share of them that
    lies inside counts. So a constant map gets the share of the image that the mask covers, which is
    chance. With a tolerance in pixels, a maximum at most this far from the mask (Euclidean
    distance) still counts; the paper takes 15.

    Returns:
        (...) from 0 to 1; its mean over images is the accuracy of the pointing game.

    Raises:
        InputError: other maps or masks, or a tolerance below 0.

    Source: Zhang et al. 2016 (arXiv:1608.00507).

    Example:
        >>> heatmap = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
        >>> mask = torch.tensor([[False, True], [False, True]])
        >>> pointing_game(heatmap, mask)
        tensor(1.)
    """
    check_integer("a tolerance", tolerance, least=0)
    heatmap = maps_at_masks(maps, masks)
    maximum = heatmap.amax((-2, -1), keepdim=True)
    is_highest = heatmap >= maximum - rounding(heatmap)  # (..., H, W)
    is_hit = is_highest & _dilate(masks, tolerance)
    return is_hit.sum((-2, -1)).to(heatmap.dtype) / is_highest.sum((-2, -1))


@public("energy_inside")
def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    r"""Measure the share of each map's positive mass inside its mask (Wang et al. 2020).

    .. math:: e = \frac{\sum_{p \in M} m_p^+}{\sum_p m_p^+}

    A constant positive map gets the share of the image that the mask covers.

    If the mask is the cell of a class in a grid of images, this is *GridPG*; its authors take
    images of different classes that the model classifies with confidence. FIxLIP uses it with
    captions of one to four objects in 2 x 2 cells, and a map for each object. A method with a
    single map of the whole caption uses that map for each object, which bounds the mean over n
    objects by 1/n.

    Returns:
        (...) from 0 to 1; NaN for a map without positive mass, where GridPG's own code returns 0.

    Source: Wang et al. 2020, *Score-CAM* (arXiv:1910.01279); GridPG: Böhle et al. 2021
    (arXiv:2104.00032), Rao et al. 2022 (arXiv:2205.10435); FIxLIP: Baniecki et al. 2025
    (arXiv:2508.05430).

    Example:
        >>> heatmap = torch.tensor([[3.0, 1.0], [-9.0, 0.0]])
        >>> mask = torch.tensor([[True, False], [True, False]])
        >>> energy_inside(heatmap, mask)
        tensor(0.7500)
    """
    mass = maps_at_masks(maps, masks).clamp(min=0)
    return (mass * masks).sum((-2, -1)) / mass.sum((-2, -1))


@public("coverage")
def coverage(maps: Tensor, masks: Tensor, *, area: float = 0.2) -> Tensor:
    r"""Measure the share of each object that the highest pixels of its map cover.

    .. math:: c = \frac{|T \cap M|}{|M|}, \quad T = \text{the } a H W \text{ highest pixels}

    Pixels that tie for the last places share them, which is the average over random draws among
    them; so a constant map gets `area`, which is chance. The mask itself as a map gets 1, or
    :math:`a H W / |M|` if the object is larger than the area.

    Returns:
        (...) from 0 to 1.

    Raises:
        InputError: other maps or masks, or an area outside (0, 1).

    Example:
        >>> heatmap = torch.tensor([[4.0, 3.0], [2.0, 1.0]])
        >>> mask = torch.tensor([[True, False], [True, False]])
        >>> coverage(heatmap, mask, area=0.25)
        tensor(0.5000)
    """
    check_interval("area", area, "(0, 1)")
    heatmap = maps_at_masks(maps, masks)
    count = max(1, round(area * masks.shape[-2] * masks.shape[-1]))
    highest = heatmap.flatten(-2).topk(count).values
    last = highest[..., -1, None, None]  # (..., 1, 1), the lowest value that has a place
    is_above = heatmap > last + rounding(heatmap)
    is_tied = (heatmap - last).abs() <= rounding(heatmap)
    places_left = count - is_above.sum((-2, -1))
    tied_weight = places_left / is_tied.sum((-2, -1))
    covered_above = (is_above & masks).sum((-2, -1))
    covered_tied = tied_weight * (is_tied & masks).sum((-2, -1))
    covered = covered_above + covered_tied
    return covered.to(heatmap.dtype) / masks.sum((-2, -1))


def _dilate(masks: Tensor, distance: int) -> Tensor:
    """Add to masks (..., H, W) all pixels that are at most `distance` pixels away."""
    if distance == 0:
        return masks
    from scipy.ndimage import distance_transform_edt

    planes = masks.reshape(-1, *masks.shape[-2:]).cpu().numpy()
    is_near = np.stack([distance_transform_edt(~plane) <= distance for plane in planes])
    return torch.from_numpy(is_near).reshape(masks.shape).to(masks.device)


@public("word_mosaic_game")
def word_mosaic_game(maps: Tensor, cells: Tensor) -> Tensor:
    r"""Measure the share of a word's map that lies where it should in a mosaic of images.

    .. math:: g = \frac{\sum_{p \in C} m_p^+ + \sum_{p \notin C} m_p^-}{\sum_p |m_p|}

    where C is the cell of the image that the word names, :math:`m^+` positive and :math:`m^-`
    negative evidence. A constant map gets the share of the image inside C if it is positive, and
    the share outside if it is negative. A single non-negative map of a caption that names n cells
    divides its mass among them, so the mean over its n words is at most 1/n. A signed map per word
    (:func:`captum_clip.targets.words`) has no such bound.

    Returns:
        (...) from 0 to 1; NaN for a map of zeros.

    Example:
        >>> cell = torch.tensor([[True, False], [False, False]])
        >>> word_mosaic_game(torch.tensor([[3.0, 1.0], [-4.0, 0.0]]), cell)
        tensor(0.8750)
    """
    heatmap = maps_at_masks(maps, cells, what="cells")
    positive = heatmap.clamp(min=0)
    negative = (-heatmap).clamp(min=0)
    right = torch.where(cells, positive, negative)
    return right.sum((-2, -1)) / heatmap.abs().sum((-2, -1))


class SegmentationScores(NamedTuple):
    r"""Counts of each image's pixels by decision and truth, and the scores of the set.

    .. math:: \text{accuracy} = \frac{TP + TN}{TP + FP + FN + TN}, \quad
              \text{mIoU} = \frac{1}{2} \Bigl(\frac{TP}{TP + FP + FN} +
                                              \frac{TN}{TN + FP + FN}\Bigr)

    with sums over all images of the set.

    Args:
        true_positive: (N,) pixels of the object that the map marks.
        false_positive: (N,) pixels outside the object that the map marks.
        false_negative: (N,) pixels of the object that the map does not mark.
        true_negative: (N,) pixels outside the object that the map does not mark.
    """

    true_positive: Tensor
    false_positive: Tensor
    false_negative: Tensor
    true_negative: Tensor

    @property
    def pixel_accuracy(self) -> float:
        """The share of all pixels of the set that are classified correctly."""
        return float(self._summed.image_accuracy)

    @property
    def mean_iou(self) -> float:
        """The mean of the IoU of object and background, each over all pixels of the set."""
        return float(self._summed.image_iou)

    @property
    def image_accuracy(self) -> Tensor:
        """(N,) the share of each image's pixels that are classified correctly."""
        correct = self.true_positive + self.true_negative
        return correct / (correct + self.false_positive + self.false_negative)

    @property
    def image_iou(self) -> Tensor:
        """(N,) the mean of the IoU of object and background in each image."""
        wrong = self.false_positive + self.false_negative
        object_iou = self.true_positive / (self.true_positive + wrong)
        background_iou = self.true_negative / (self.true_negative + wrong)
        return (object_iou + background_iou) / 2

    @property
    def _summed(self) -> "SegmentationScores":
        """The counts summed over all images, which makes the set one image."""
        return SegmentationScores(*(counts.sum() for counts in self))


@public("segmentation_scores")
def segmentation_scores(
    maps: Tensor, masks: Tensor, *, threshold: Threshold = "mean"
) -> SegmentationScores:
    r"""Measure how well thresholded maps segment objects (the ImageNet-Segmentation protocol).

    Each map is min-max normalized by itself, and marks the pixels above the threshold; a constant
    map marks nothing.

    Args:
        maps: (..., h, w).
        masks: (..., H, W) bool.
        threshold: "mean" (the mean of each map), "otsu" (for each map the threshold that splits
            its values into two groups with the largest variance between them, from 256 bins), or
            a number in [0, 1).

    Returns:
        Counts of each image; their properties are the scores of the set.

    Raises:
        InputError: other maps or masks, or an unknown threshold.

    Source: Chefer et al. 2021 (arXiv:2103.15679); Otsu 1979.

    Example:
        >>> heatmap = torch.tensor([[5.0, 1.0], [0.0, 0.0]])
        >>> mask = torch.tensor([[True, True], [False, False]])
        >>> scores = segmentation_scores(heatmap, mask)
        >>> scores.pixel_accuracy, round(scores.mean_iou, 3)
        (0.75, 0.583)
    """
    heatmap, inside = _normalized(maps, masks)
    marked = heatmap > threshold_level(heatmap, threshold)[:, None, None]
    return SegmentationScores(
        true_positive=(marked & inside).sum((-2, -1)),
        false_positive=(marked & ~inside).sum((-2, -1)),
        false_negative=(~marked & inside).sum((-2, -1)),
        true_negative=(~marked & ~inside).sum((-2, -1)),
    )


@public("average_precision")
def average_precision(maps: Tensor, masks: Tensor) -> Tensor:
    r"""Compute the average precision of each map's values, which needs no threshold.

    .. math:: AP = \sum_j (R_j - R_{j-1}) P_j

    over the distinct values of the map in falling order, with recall R and precision P of the
    pixels that have at least that value. A constant map gets the mask's share of the image.

    Returns:
        (N,), one for each image; mAP is their mean.

    Example:
        >>> mask = torch.tensor([[True, True], [False, False]])
        >>> average_precision(torch.tensor([[5.0, 1.0], [0.0, 0.0]]), mask)
        tensor([1.])
    """
    heatmap, inside = _normalized(maps, masks)
    return _average_precision(heatmap.flatten(1), inside.flatten(1))


@public("two_class_average_precision")
def two_class_average_precision(maps: Tensor, masks: Tensor) -> Tensor:
    r"""Compute the average precision that published tests on ImageNet-Segmentation report.

    Object and background are two classes whose pixels are ranked together, those of the object by
    the min-max normalized map m, those of the background by 1 - m:

    .. math:: AP\bigl([m, 1 - m], [M, \lnot M]\bigr)

    with AP as in :func:`average_precision`, which ranks the pixels of the object class alone. Half
    of the ranked values are positives, so a constant map gets 1/2. A map that is low nearly
    everywhere puts the background first, and gets far more than 1/2 whatever it shows, so compare
    with random maps.

    Returns:
        (N,), one for each image; mAP is their mean.

    Source: the code of Chefer et al. 2021 (arXiv:2012.09838), which LeGrad (arXiv:2404.03214) and
    others follow.

    Example:
        >>> heatmap = torch.tensor([[1.0, 0.6], [0.0, 0.0]])
        >>> mask = torch.tensor([[True, False], [False, False]])
        >>> two_class_average_precision(heatmap, mask)  # 1 1 1 | .6 wrong | .4
        tensor([0.9500])
    """
    heatmap, inside = _normalized(maps, masks)
    # A constant map is normalized to 0. Its background must be 0 as well, or it would rank first.
    is_constant = heatmap.amax((-2, -1), keepdim=True) == 0
    background = torch.where(is_constant, 0, 1 - heatmap)
    values = torch.cat([heatmap, background], 1)
    truth = torch.cat([inside, ~inside], 1)
    return _average_precision(values.flatten(1), truth.flatten(1))


def _normalized(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return min-max normalized maps at the size of their masks, and the masks: (N, H, W) each."""
    heatmap = normalize(maps_at_masks(maps, masks))
    size = masks.shape[-2:]
    return heatmap.reshape(-1, *size), masks.reshape(-1, *size)


def _average_precision(values: Tensor, inside: Tensor) -> Tensor:
    """Compute the average precision (N,) of values (N, P) against truth (N, P) bool.

    It is the mean over the positive pixels of the precision among all pixels with at least that
    value.
    """
    heatmaps = values.detach().cpu().numpy()
    truths = inside.cpu().numpy()
    scores = []
    for heatmap, truth in zip(heatmaps, truths, strict=True):
        # Each positive pixel counts the pixels, and the positive ones, with at least its value.
        # Sorting the values takes a fraction of the time of scikit-learn's argsort.
        ascending = np.sort(heatmap)
        positives = np.sort(heatmap[truth])
        marked = len(ascending) - np.searchsorted(ascending, positives)
        true_positives = len(positives) - np.searchsorted(positives, positives)
        scores.append(np.mean(true_positives / marked))
    return values.new_tensor(scores)
