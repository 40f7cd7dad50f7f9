"""What your own method is built from: bases, a forward call, passes, attention arithmetic.

`docs/extending.md` has whole methods. A class gets a `Call`, makes a pass with a function that
takes it, and returns a `Computed`.
"""

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
from ..recording.passes import record_held
from ..recording.reads import AttentionRead
from ._attention import (
    all_gradients,
    contributions,
    heads_output,
    last_gradient,
    merged,
    resnet_gradient,
    weighted,
)
from ._base import ClipAttribution, ResNetAttribution, ViTAttribution
from ._call import (
    Call,
    Computed,
    Pass,
    PooledEmbedding,
    embedded_scores,
    observed,
    pooled_embedding,
    pooled_tokens,
    without_gradient,
)
from .additive import PooledRow, pushed_rows, rows_of
from .contributions import DirectContribution, any_target
from .registry import register

__all__ = [
    "AttentionRead",
    "Call",
    "ClipAttribution",
    "Computed",
    "DirectContribution",
    "Embedding",
    "Features",
    "Kernels",
    "LeafAtInput",
    "Outputs",
    "Pass",
    "PooledEmbedding",
    "PooledRow",
    "ResNetAttribution",
    "Sums",
    "ViTAttribution",
    "all_gradients",
    "any_target",
    "contributions",
    "embedded_scores",
    "heads_output",
    "last_gradient",
    "merged",
    "observe",
    "observed",
    "pooled_embedding",
    "pooled_tokens",
    "pushed_rows",
    "record_features",
    "record_held",
    "register",
    "resnet_gradient",
    "rows_of",
    "weighted",
    "without_gradient",
]
