"""Small folders of images and small models that load by name, for studies in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captum_clip.bench.run import StudyConfig
from captum_clip.demo.catalog import CLASSES
from captum_clip.targets import EmotionProbe
from tests import builders
from tests.models.checkpoints import save_open_clip, save_transformers


def make_images(folder: Path, count: int = 7, seed: int = 0) -> Path:
    """PNG files of blocks of color, some of them in a folder within."""
    random = np.random.default_rng(seed)
    (folder / "inner").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        blocks = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(blocks).resize((48, 40), Image.Resampling.NEAREST)
        picture.save(folder / ("inner" if number % 3 == 1 else "") / f"image{number}.png")
    return folder


def make_vit(folder: Path) -> str:
    """A small transformers CLIP as a folder, which is its name."""
    save_transformers(builders.hf_vit(), folder)
    return str(folder)


def make_resnet(folder: Path) -> str:
    """A small OpenCLIP ResNet as a folder, which is its name."""
    save_open_clip(builders.open_clip_resnet(), folder, builders.RESNET_CONFIG)
    return str(folder)


def make_emotions(path: Path, size: int = 24, offset: float = 1.0) -> Path:
    """A probe that names no model, and whose rows do not sum to zero."""
    rows = np.random.default_rng(1).normal(size=(len(CLASSES), size)) + offset
    return EmotionProbe(rows, np.zeros(len(CLASSES))).save(path)


def config_of(images: Path, output: Path, model: str, **settings: Any) -> StudyConfig:
    """A study of one model with two texts, in batches of two and units of two batches."""
    given: dict[str, Any] = {
        "models": (model,),
        "texts": ("a horse", "a dog"),
        "batch_size": 2,
        "chunk_size": 4,
        "workers": 0,
    }
    return StudyConfig(images, output, **{**given, **settings})


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
