"""Data sets that an evaluation reads."""

from .base import DataSet
from .class_folder import ClassFolder
from .demo import DemoMosaics, DemoObjects, DemoScenes, DemoSingles
from .demo_shortcut import DemoShortcut, DemoShortcutObject, DemoShortcutOther
from .fixation_folder import FixationFolder
from .imagenet_s import ImageNetS
from .imagenet_segmentation import ImageNetSegmentation
from .masked_folder import MaskedFolder
from .mosaics import ClassMosaics
from .open_images import OpenImagesPoints
from .pascal_voc import PascalVoc
from .registry import open_data

__all__ = [
    "ClassFolder",
    "ClassMosaics",
    "DataSet",
    "DemoMosaics",
    "DemoObjects",
    "DemoScenes",
    "DemoShortcut",
    "DemoShortcutObject",
    "DemoShortcutOther",
    "DemoSingles",
    "FixationFolder",
    "ImageNetS",
    "ImageNetSegmentation",
    "MaskedFolder",
    "OpenImagesPoints",
    "PascalVoc",
    "open_data",
]
