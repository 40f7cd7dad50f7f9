"""Nine images in folders, and an index of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captum_clip.apps.search import ImageIndex
from tests import builders

COUNT = 9


def draw(path: Path, seed: int) -> Path:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def clip():
    """A small model."""
    return builders.hf_vit().load()


@pytest.fixture
def folder(tmp_path):
    """Images in folders, one with a quote in its name, one of them broken."""
    for seed in range(COUNT):
        draw(tmp_path / "images" / f"{seed % 2}" / f"it's {seed}.png", seed)
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    return tmp_path / "images"


@pytest.fixture
def index(clip, folder, tmp_path):
    """Of the folder."""
    return ImageIndex.build(clip, folder, tmp_path / "index.lance")
