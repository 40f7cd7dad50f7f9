"""Recordings of a forward: what a method needs of a model, after which all is as it was."""

from .gates import record_gates_held, refuse_nonlinear
from .records import LayerRecord, Recording, Visit
from .towers import record_features, record_resnet, record_vit

__all__ = [
    "LayerRecord",
    "Recording",
    "Visit",
    "record_features",
    "record_gates_held",
    "record_resnet",
    "record_vit",
    "refuse_nonlinear",
]
