"""What your own method is built from: bases, a forward call, passes, attention arithmetic.

`docs/extending.md` has whole methods. A class gets a `Call`, makes a pass with a function that
takes it, and returns a `Computed`.
"""

from ..recording.gates import record_held
from ..recording.observe import (
    Embedding,
    Features,
    Kernels,
    LeafAtInput,
    Outputs,
    Sums,
    observe,
    record_features,
)
from ..recording.reads import AttentionRead
from ._attention import contributions, heads_output, merged, weighted
from ._base import ClipAttribution, ResNetAttribution, ViTAttribution
from ._call import Call, Computed
from ._engine import (
    all_gradients,
    embedded_scores,
    last_gradient,
    observed,
    pooled_embedding,
    resnet_gradient,
    without_gradient,
)
from .registry import register

__all__ = [
    "AttentionRead",
    "Call",
    "ClipAttribution",
    "Computed",
    "Embedding",
    "Features",
    "Kernels",
    "LeafAtInput",
    "Outputs",
    "ResNetAttribution",
    "Sums",
    "ViTAttribution",
    "all_gradients",
    "contributions",
    "embedded_scores",
    "heads_output",
    "last_gradient",
    "merged",
    "observe",
    "observed",
    "pooled_embedding",
    "record_features",
    "record_held",
    "register",
    "resnet_gradient",
    "weighted",
    "without_gradient",
]
