"""Saliency maps for CLIP as Captum attributions: why does this image fit this text?"""

from . import (
    attr,
    emotions,
    errors,
    evaluation,
    figures,
    maps,
    metrics,
    studies,
    targets,
    visualization,
)
from ._version import __version__
from .attr import (
    AllGradAttention,
    AttentionGradCam,
    AttentionRollout,
    ClipGradCam,
    LastGradAttention,
    LayerAttention,
)
from .explanation import Explanation, explain
from .models import load_clip
from .similarity import ClipSimilarity
from .targets import Target

__all__ = [
    "AllGradAttention",
    "AttentionGradCam",
    "AttentionRollout",
    "ClipGradCam",
    "ClipSimilarity",
    "Explanation",
    "LastGradAttention",
    "LayerAttention",
    "Target",
    "__version__",
    "attr",
    "emotions",
    "errors",
    "evaluation",
    "explain",
    "figures",
    "load_clip",
    "maps",
    "metrics",
    "studies",
    "targets",
    "visualization",
]
