"""Measures of saliency maps: pure functions of maps, masks and images; they know no model.

Maps are floating-point tensors (..., h, w) without NaN or infinity, on any grid. The examples
assume ``import torch`` and ``from captum_clip.metrics import *``.
"""

from ..folders.bootstrap import Difference, Interval, bootstrap_mean, holm, paired_difference
from .faithfulness import (
    Agreement,
    MaskedChanges,
    effect_agreement,
    faithfulness_correlation,
    infidelity,
    masked_changes,
    object_mass,
    sensitivity,
    shapley_effects,
)
from .localization import (
    SegmentationScores,
    average_precision,
    coverage,
    energy_inside,
    pointing_game,
    segmentation_scores,
    two_class_average_precision,
    word_mosaic_game,
)
from .map_statistics import (
    center_bias,
    corner_bias,
    rank_correlation,
    spatial_entropy,
    spatial_variance,
    value_entropy,
)
from .perturbation import Curves, PerturbationTest, blur_fill, mean_fill, perturbation_test

__all__ = [
    "Agreement",
    "Curves",
    "Difference",
    "Interval",
    "MaskedChanges",
    "PerturbationTest",
    "SegmentationScores",
    "average_precision",
    "blur_fill",
    "bootstrap_mean",
    "center_bias",
    "corner_bias",
    "coverage",
    "effect_agreement",
    "energy_inside",
    "faithfulness_correlation",
    "holm",
    "infidelity",
    "masked_changes",
    "mean_fill",
    "object_mass",
    "paired_difference",
    "perturbation_test",
    "pointing_game",
    "rank_correlation",
    "segmentation_scores",
    "sensitivity",
    "shapley_effects",
    "spatial_entropy",
    "spatial_variance",
    "two_class_average_precision",
    "value_entropy",
    "word_mosaic_game",
]
