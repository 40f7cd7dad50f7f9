"""Saliency methods for CLIP, each a `captum.attr` attribution."""

from ._base import ResNetAttribution, ViTAttribution
from .additive import ConservativePropagation
from .attention_methods import (
    AllGradAttention,
    AttentionGradCam,
    AttentionRollout,
    GradEclip,
    LastGradAttention,
    LayerAttention,
)
from .class_activation import CamFamily, ClipGradCam, LeGrad, PatchSimilarity
from .contributions import DirectContribution, DirectInteraction, HeadVectors, InteractionRest
from .extend import check_method
from .registry import METHODS, register
from .removal import ReaderRemoval

__all__ = [
    "METHODS",
    "AllGradAttention",
    "AttentionGradCam",
    "AttentionRollout",
    "CamFamily",
    "ClipGradCam",
    "ConservativePropagation",
    "DirectContribution",
    "DirectInteraction",
    "GradEclip",
    "HeadVectors",
    "InteractionRest",
    "LastGradAttention",
    "LayerAttention",
    "LeGrad",
    "PatchSimilarity",
    "ReaderRemoval",
    "ResNetAttribution",
    "ViTAttribution",
    "check_method",
    "register",
]

for _method in (
    ClipGradCam,
    AttentionGradCam,
    AttentionRollout,
    AllGradAttention,
    LastGradAttention,
    DirectContribution,
    ConservativePropagation,
    ReaderRemoval,
    LeGrad,
    GradEclip,
    PatchSimilarity,
    LayerAttention,
    CamFamily,
):
    register(_method)
