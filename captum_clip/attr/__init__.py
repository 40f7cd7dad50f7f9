"""Saliency methods for CLIP, each a `captum.attr` attribution."""

from .all_grad_attention import AllGradAttention
from .attention_grad_cam import AttentionGradCam
from .attention_rollout import AttentionRollout
from .choice import METHODS
from .grad_cam import ClipGradCam
from .last_grad_attention import LastGradAttention
from .layer_attention import LayerAttention

__all__ = [
    "METHODS",
    "AllGradAttention",
    "AttentionGradCam",
    "AttentionRollout",
    "ClipGradCam",
    "LastGradAttention",
    "LayerAttention",
]
