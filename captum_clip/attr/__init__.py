"""Saliency methods for CLIP, each a `captum.attr` attribution."""

from ._base import ResNetAttribution, ViTAttribution
from .all_grad_attention import AllGradAttention
from .attention_grad_cam import AttentionGradCam
from .attention_rollout import AttentionRollout
from .conservative_propagation import ConservativePropagation
from .direct_contribution import DirectContribution
from .grad_cam import ClipGradCam
from .last_grad_attention import LastGradAttention
from .layer_attention import LayerAttention
from .registry import METHODS, register

__all__ = [
    "METHODS",
    "AllGradAttention",
    "AttentionGradCam",
    "AttentionRollout",
    "ClipGradCam",
    "ConservativePropagation",
    "DirectContribution",
    "LastGradAttention",
    "LayerAttention",
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
    LayerAttention,
):
    register(_method)
