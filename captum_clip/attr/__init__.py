"""Saliency methods for CLIP, each a `captum.attr` attribution."""

from ._base import ResNetAttribution, ViTAttribution
from .all_grad_attention import AllGradAttention
from .attention_grad_cam import AttentionGradCam
from .attention_rollout import AttentionRollout
from .cam_family import CamFamily
from .conservative_propagation import ConservativePropagation
from .direct_contribution import DirectContribution
from .grad_cam import ClipGradCam
from .grad_eclip import GradEclip
from .last_grad_attention import LastGradAttention
from .layer_attention import LayerAttention
from .legrad import LeGrad
from .patch_similarity import PatchSimilarity
from .registry import METHODS, register

__all__ = [
    "METHODS",
    "AllGradAttention",
    "AttentionGradCam",
    "AttentionRollout",
    "CamFamily",
    "ClipGradCam",
    "ConservativePropagation",
    "DirectContribution",
    "GradEclip",
    "LastGradAttention",
    "LayerAttention",
    "LeGrad",
    "PatchSimilarity",
    "ResNetAttribution",
    "ViTAttribution",
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
    LeGrad,
    GradEclip,
    PatchSimilarity,
    LayerAttention,
    CamFamily,
):
    register(_method)
