"""Models that studies load by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from captum_clip.studies import run_study
from captum_clip.visualization import grid
from tests.studies import folders


@pytest.fixture(autouse=True, scope="module")
def small_pictures() -> Iterator[None]:
    """Studies draw with few pixels, which saves most of their time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "_FINE", 32)
        yield


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images, two of them in a folder within."""
    return folders.make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, images: Path, vit: str) -> dict[str, bytes]:
    """What an uninterrupted study with two shards leaves."""
    output = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "_FINE", 32)
        run_study(folders.config_of(images, output, vit))
    return folders.content(output)
