"""CLIP models of transformers and OpenCLIP behind one adapter."""

from .base import ClipAdapter
from .families import known_tower, tower_of
from .loading import load_clip
from .resolve import AvailableModel, available
from .towers import AttentionLayer, ResNetTower, Tower, ViTTower

__all__ = [
    "AttentionLayer",
    "AvailableModel",
    "ClipAdapter",
    "ResNetTower",
    "Tower",
    "ViTTower",
    "available",
    "known_tower",
    "load_clip",
    "tower_of",
]
