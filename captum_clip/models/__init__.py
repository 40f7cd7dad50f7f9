"""CLIP models of transformers and OpenCLIP behind one adapter."""

from .adapter import ClipAdapter, Family, ImageLike
from .attentions import Attention, AttentionLayer, PoolingHead
from .families import find_tower, register_family, tower_of
from .identity import differing_parts
from .loading import load_clip
from .names import AvailableModel, available
from .text import TextTower
from .towers import ResNetTower, Tower, ViTTower

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
