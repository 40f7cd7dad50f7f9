"""Recordings of a forward: what a method needs of a model, after which all is as it was.

The only place that hooks a model. A recording runs the tower without a graph up to a leaf, or ends
the forward where nobody needs its rest.
"""

from .forwards import record_features, record_resnet, record_vit
from .gates import record_detached_gates, refuse_nonlinear
from .hooks import with_whole_graph
from .records import NOTHING, LayerRecord, Recording, Visit

__all__ = [
    "NOTHING",
    "LayerRecord",
    "Recording",
    "Visit",
    "record_detached_gates",
    "record_features",
    "record_resnet",
    "record_vit",
    "refuse_nonlinear",
    "with_whole_graph",
]
