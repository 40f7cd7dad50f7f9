"""Recordings of a forward: what a method needs of a model, after which all is as it was.

The only place that hooks a model or watches the functions of torch. A forward runs to its end; what
a map is made of has run, and is read where it ran.
"""

from .again import Arrivals, arrivals, read_pool, run_blocks
from .forwards import record_features, record_resnet, record_vit
from .gates import record_held, refuse_nonlinear
from .hooks import is_compiled
from .reads import AttentionRead
from .records import NOTHING, Recording, Visit

__all__ = [
    "NOTHING",
    "Arrivals",
    "AttentionRead",
    "Recording",
    "Visit",
    "arrivals",
    "is_compiled",
    "read_pool",
    "record_features",
    "record_held",
    "record_resnet",
    "record_vit",
    "refuse_nonlinear",
    "run_blocks",
]
