"""Recordings of a forward: what a method needs of a model, after which all is as it was.

The only place that hooks a model or watches the functions of torch. A forward runs to its end; what
a map is made of has run, and is read where it ran.
"""

from .again import Arrivals, arrivals, read_pool, run_blocks
from .gates import record_held, refuse_nonlinear
from .hooks import is_compiled
from .look import kind_of, look
from .observe import (
    Embedding,
    Features,
    Kernels,
    LeafAtInput,
    Observer,
    Outputs,
    Probes,
    Sums,
    keep,
    observe,
    record_features,
)
from .reads import AttentionRead
from .records import NOTHING, ChangedInPlaceError, Recording

__all__ = [
    "NOTHING",
    "Arrivals",
    "AttentionRead",
    "ChangedInPlaceError",
    "Embedding",
    "Features",
    "Kernels",
    "LeafAtInput",
    "Observer",
    "Outputs",
    "Probes",
    "Recording",
    "Sums",
    "arrivals",
    "is_compiled",
    "keep",
    "kind_of",
    "look",
    "observe",
    "read_pool",
    "record_features",
    "record_held",
    "refuse_nonlinear",
    "run_blocks",
]
