"""What a user has in the current folder, and how a line is run there."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from PIL import Image

from captum_clip.cli import main
from captum_clip.visualization import grid
from tests import folders
from tests.bench.cases import make_masks

Run: TypeAlias = Callable[..., str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with images, masks and encodings of emotions; figures of few pixels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grid, "_FINE", 32)
    for name, seed in (("photo.jpg", 0), ("other.png", 1)):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(name)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    folders.make_images(tmp_path / "photos", 3)
    folders.make_emotions(tmp_path / "e.safetensors")
    make_masks(tmp_path / "farm", 2)
    return tmp_path


@pytest.fixture
def run(here: Path, vit: str, resnet: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a line, in which VIT and RESNET are models; what it printed, or its only error."""

    def run(line: str, code: int = 0, err: str | None = "") -> str:
        capsys.readouterr()
        words = [{"VIT": vit, "RESNET": resnet}.get(word, word) for word in shlex.split(line)]
        assert main(words) == code
        printed, said = capsys.readouterr()
        if code == 0:
            assert err is None or said == err
            return printed
        assert printed == ""
        [last] = said.splitlines()
        assert last.startswith("captum-clip: error: ")
        return last

    return run
