"""A map as a segmentation of its object: counts that add up over a set, and average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checks import is_number
from ..errors import InputError
from ..maps import normalize
from .checks import check_bool
from .resize import count_pixels, maps_at_masks

Threshold = float | Literal["mean", "otsu"]
_BINS = 256  # of Otsu's histogram, as in scikit-image


@dataclass(frozen=True, eq=False)
class SegmentationScores:
    r"""Pixels of each image by decision and truth, and what follows for the set.

    .. math:: \text{accuracy} = \frac{TP + TN}{TP + FP + FN + TN}, \quad
              \text{mIoU} = \frac{1}{2} \Bigl(\frac{TP}{TP + FP + FN} +
                                              \frac{TN}{TN + FP + FN}\Bigr)

    with sums over all images of the set, and mAP the mean of the images' average precisions.

    Args:
        true_positive: (N,) pixels of the object that the map marks.
        false_positive: (N,) pixels beside the object that it marks.
        false_negative: (N,) pixels of the object that it leaves out.
        true_negative: (N,) the rest.
        average_precision: (N,) of the map's values, without a threshold.
    """

    true_positive: Tensor
    false_positive: Tensor
    false_negative: Tensor
    true_negative: Tensor
    average_precision: Tensor

    @property
    def pixel_accuracy(self) -> float:
        """The share of all pixels of the set that are decided rightly."""
        return float(self._summed.image_accuracy)

    @property
    def mean_iou(self) -> float:
        """The mean of the IoU of object and background, each over all pixels of the set."""
        return float(self._summed.image_iou)

    @property
    def image_accuracy(self) -> Tensor:
        """(N,) the share of each image's pixels that are decided rightly."""
        right = self.true_positive + self.true_negative
        return right / (right + self._wrong)

    @property
    def image_iou(self) -> Tensor:
        """(N,) the mean of the IoU of object and background in each image."""
        of_background = self.true_negative / (self.true_negative + self._wrong)
        return (self.object_iou + of_background) / 2

    @property
    def object_iou(self) -> Tensor:
        """(N,) the IoU of the object in each image."""
        return self.true_positive / (self.true_positive + self._wrong)

    @property
    def mean_average_precision(self) -> float:
        """The mean over the images of the set."""
        return float(self.average_precision.double().mean())

    @property
    def _wrong(self) -> Tensor:
        return self.false_positive + self.false_negative

    @property
    def _summed(self) -> SegmentationScores:
        """All images as one."""
        return SegmentationScores(*(getattr(self, field.name).sum() for field in fields(self)))

    @classmethod
    def concatenate(cls, parts: Sequence[SegmentationScores]) -> SegmentationScores:
        """The scores of several batches as those of one set.

        Raises:
            InputError: no batch at all.
        """
        if not parts:
            raise InputError("SegmentationScores.concatenate: expected one or more parts, got 0.")
        names = [field.name for field in fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def segmentation_scores(
    maps: Tensor, masks: Tensor, *, threshold: Threshold = "mean", counted: Tensor | None = None
) -> SegmentationScores:
    r"""How well thresholded maps segment their objects (the ImageNet-Segmentation protocol).

    Maps are resized to their masks (bilinear), min-max normalised one by one, and mark what is
    above the threshold. The average precision needs none:

    .. math:: AP = \sum_j (R_j - R_{j-1}) P_j

    over the distinct values of the map from the highest, with recall R and precision P of the
    pixels that have at least that value. A constant map marks nothing, and its average precision
    is the mask's share of the image.

    Args:
        maps: (..., h, w).
        masks: (..., H, W) bool, one per map, none empty or full.
        threshold: "mean" (each map's own mean), "otsu" (each map's own, which parts its values
            into two groups of largest variance between, 256 bins), or a number in [0, 1).
        counted: (..., H, W) bool, the pixels that count, some of each object among them; the others
            are void, or have no label where only points have one. None is all.

    Returns:
        Counts and average precision of each image; its properties are the figures of the set.

    Raises:
        InputError: maps that are no finite floating-point tensor, other, empty or full masks, an
            unknown threshold, pixels that count of another shape or none of an object.

    Source: Chefer et al. 2021 (arXiv:2103.15679); Otsu 1979. The point-wise IoU of Open Images V7
    (Benenson and Ferrari 2022, arXiv:2210.14142) is :attr:`SegmentationScores.object_iou` where
    the labelled points alone count.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> heatmap = torch.tensor([[5.0, 1.0], [0.0, 0.0]])
        >>> mask = torch.tensor([[True, True], [False, False]])
        >>> scores = metrics.segmentation_scores(heatmap, mask)
        >>> scores.pixel_accuracy, round(scores.mean_iou, 3), scores.mean_average_precision
        (0.75, 0.583, 1.0)
    """
    [scores] = scores_at_thresholds(maps, masks, [threshold], counted=counted)
    return scores


def scores_at_thresholds(
    maps: Tensor, masks: Tensor, thresholds: Sequence[Threshold], *, counted: Tensor | None = None
) -> list[SegmentationScores]:
    """:func:`segmentation_scores` at each threshold; what needs none is computed once."""
    heatmap, inside, valid = _checked("segmentation_scores", maps, masks, counted)
    precision = _average_precision(*(x.flatten(1) for x in (heatmap, inside, valid)))
    levels = [threshold_level("segmentation_scores", heatmap, each) for each in thresholds]
    return [
        SegmentationScores(
            true_positive=count_pixels(marked & inside & valid),
            false_positive=count_pixels(marked & ~inside & valid),
            false_negative=count_pixels(~marked & inside & valid),
            true_negative=count_pixels(~marked & ~inside & valid),
            average_precision=precision,
        )
        for marked in (heatmap > level[:, None, None] for level in levels)
    ]


def two_class_average_precision(
    maps: Tensor, masks: Tensor, *, counted: Tensor | None = None
) -> Tensor:
    r"""The average precision that published tests on ImageNet-Segmentation report.

    Object and background are two classes whose pixels are ranked together, those of the object by
    the min-max normalised map m, those of the background by 1 - m:

    .. math:: AP\bigl([m, 1 - m], [M, \lnot M]\bigr)

    with AP as in :func:`segmentation_scores`, whose own is that of the object alone. As there is as
    much right as wrong among twice the pixels, a constant map gets 1/2. A map that is low nearly
    everywhere puts the background first, and gets far more than that whatever it shows, so compare
    with random maps.

    Args:
        maps: (..., h, w).
        masks: (..., H, W) bool, one a map, none empty or full.
        counted: (..., H, W) bool, the pixels that count; None is all.

    Returns:
        (N,) of each image; mAP is their mean.

    Raises:
        InputError: as :func:`segmentation_scores`.

    Source: the code of Chefer et al. 2021 (arXiv:2012.09838), which LeGrad (arXiv:2404.03214) and
    others follow.

    Example:
        >>> import torch
        >>> from captum_clip import metrics
        >>> heatmap = torch.tensor([[1.0, 0.6], [0.0, 0.0]])
        >>> mask = torch.tensor([[True, False], [False, False]])
        >>> metrics.two_class_average_precision(heatmap, mask)  # 1 1 1 | .6 wrong | .4
        tensor([0.9500])
    """
    heatmap, inside, valid = _checked("two_class_average_precision", maps, masks, counted)
    rest = torch.where(
        heatmap.amax((-2, -1), keepdim=True) > 0, 1 - heatmap, 0
    )  # 0, 0 of a constant
    pairs = ((heatmap, rest), (inside, ~inside), (valid, valid))
    return _average_precision(*(torch.cat([x.flatten(1) for x in pair], 1) for pair in pairs))


def _checked(
    caller: str, maps: Tensor, masks: Tensor, counted: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Min-max normalised maps, masks, and the pixels that count, each (N, H, W)."""
    heatmap = normalize(maps_at_masks(caller, maps, masks))
    valid = torch.ones_like(masks) if counted is None else counted
    check_bool(caller, "counted", valid)
    if valid.shape != masks.shape or valid.device != masks.device:
        raise InputError(
            f"{caller}: expected counted as large as the masks, {tuple(masks.shape)} on "
            f"{masks.device}, got {tuple(valid.shape)} on {valid.device}."
        )
    lost = int((~(valid & masks).flatten(-2).any(-1)).sum())
    if lost:
        raise InputError(f"{caller}: of {lost} objects no pixel counts; leave those images out.")
    size = masks.shape[-2:]
    return heatmap.reshape(-1, *size), masks.reshape(-1, *size), valid.reshape(-1, *size)


def threshold_level(caller: str, heatmap: Tensor, threshold: Threshold) -> Tensor:
    """The threshold (N,) of each map (N, H, W) in [0, 1]."""
    if threshold == "mean":
        return heatmap.mean((-2, -1))
    if threshold == "otsu":
        return _otsu(heatmap.flatten(1))
    if not is_number(threshold) or not 0 <= threshold < 1:
        raise InputError(
            f'{caller}: expected threshold "mean", "otsu" or a number in [0, 1), got {threshold!r}.'
        )
    return heatmap.new_full((len(heatmap),), threshold)


def _otsu(values: Tensor) -> Tensor:
    """Otsu's threshold (N,) of values (N, P) in [0, 1]: the centre of the last bin below it."""
    bins = (values * _BINS).long().clamp(max=_BINS - 1)
    counts = torch.zeros(len(values), _BINS, dtype=torch.float64, device=values.device)
    counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.float64))
    centres = (torch.arange(_BINS, device=values.device, dtype=torch.float64) + 0.5) / _BINS
    low, moment = counts.cumsum(1), (counts * centres).cumsum(1)
    high = low[:, -1:] - low
    gap = moment / low.clamp(min=1) - (moment[:, -1:] - moment) / high.clamp(min=1)
    between = low * high * gap**2
    return centres[between[:, :-1].argmax(1)].to(values.dtype)


def _average_precision(values: Tensor, inside: Tensor, valid: Tensor) -> Tensor:
    """Average precision (N,) of values (N, P) against truth (N, P) bool, at pixels (N, P) bool.

    Summed over the pixels that are right: each one's precision is that of all with at least its
    value. NumPy sorts several times as fast as PyTorch does on a CPU.
    """
    scores = []
    for heatmap, hit, counts in zip(*(_numpy(x) for x in (values, inside, valid)), strict=True):
        every, right = np.sort(heatmap[counts]), np.sort(heatmap[counts & hit])
        places = len(every) - np.searchsorted(every, right)
        hits = len(right) - np.searchsorted(right, right)
        scores.append(np.mean(hits / places))
    return values.new_tensor(scores)


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()
