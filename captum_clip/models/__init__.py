"""CLIP models of transformers and OpenCLIP behind one adapter."""

from .adapter import ClipAdapter, Family, ImageLike, differing_parts
from .attentions import Attention, AttentionLayer, PoolingHead
from .loading import load_clip
from .names import AvailableModel, available, find_tower, register_family, tower_of
from .towers import ResNetTower, TextTower, Tower, ViTTower

__all__ = [
    "Attention",
    "AttentionLayer",
    "AvailableModel",
    "ClipAdapter",
    "Family",
    "ImageLike",
    "PoolingHead",
    "ResNetTower",
    "TextTower",
    "Tower",
    "ViTTower",
    "available",
    "differing_parts",
    "find_tower",
    "load_clip",
    "register_family",
    "tower_of",
]
