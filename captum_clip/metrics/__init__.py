"""Measures of saliency maps: pure functions of maps, masks and images; they know no model."""

from .bootstrap import Difference, Interval, bootstrap_mean, holm, paired_difference
from .captum_metrics import infidelity, sensitivity
from .deletion import Curves, PerturbationTest, area_between, perturbation_test
from .fills import blur_fill, mean_fill, road_fill
from .fixation import auc_judd, cc, nss, sim
from .localization import coverage, energy_inside, pointing_game
from .map_statistics import (
    centre_bias,
    corner_bias,
    spatial_entropy,
    spatial_variance,
    value_entropy,
)
from .masked_changes import MaskedChanges, faithfulness_correlation, masked_changes, p_faithfulness
from .mosaic import grid_pointing_game, mosaic_cells, word_mosaic_game
from .object_effect import (
    Agreement,
    ObjectEffect,
    effect_agreement,
    object_effect,
    object_mass,
    shapley_effects,
)
from .perturbations import gaussian_noise, patch_removal
from .ranks import rank_correlation
from .segmentation import SegmentationScores, segmentation_scores, two_class_average_precision

__all__ = [
    "Agreement",
    "Curves",
    "Difference",
    "Interval",
    "MaskedChanges",
    "ObjectEffect",
    "PerturbationTest",
    "SegmentationScores",
    "area_between",
    "auc_judd",
    "blur_fill",
    "bootstrap_mean",
    "cc",
    "centre_bias",
    "corner_bias",
    "coverage",
    "effect_agreement",
    "energy_inside",
    "faithfulness_correlation",
    "gaussian_noise",
    "grid_pointing_game",
    "holm",
    "infidelity",
    "masked_changes",
    "mean_fill",
    "mosaic_cells",
    "nss",
    "object_effect",
    "object_mass",
    "p_faithfulness",
    "paired_difference",
    "patch_removal",
    "perturbation_test",
    "pointing_game",
    "rank_correlation",
    "road_fill",
    "segmentation_scores",
    "sensitivity",
    "shapley_effects",
    "sim",
    "spatial_entropy",
    "spatial_variance",
    "two_class_average_precision",
    "value_entropy",
    "word_mosaic_game",
]
