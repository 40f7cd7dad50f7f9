"""CLIP models of transformers and OpenCLIP behind one adapter."""

from .adapter import ClipAdapter, Family, ImageLike
from .families import known_tower, register_family, tower_of
from .loading import AvailableModel, available, load_clip
from .towers import AttentionLayer, ResNetTower, Tower, ViTTower

__all__ = [
    "AttentionLayer",
    "AvailableModel",
    "ClipAdapter",
    "Family",
    "ImageLike",
    "ResNetTower",
    "Tower",
    "ViTTower",
    "available",
    "known_tower",
    "load_clip",
    "register_family",
    "tower_of",
]
