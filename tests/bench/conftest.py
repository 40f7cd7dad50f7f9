"""A small model in a folder, and the data that whole evaluations and studies read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from captum_clip.bench.evaluator import evaluate
from captum_clip.bench.run import EvaluationConfig
from captum_clip.bench.study import run_study
from captum_clip.visualization import grid
from tests import folders
from tests.bench import cases
from tests.bench.cases import SMALL
from tests.bench.data.writing import save_bytes


@pytest.fixture(autouse=True, scope="module")
def small_figures() -> Iterator[None]:
    """Studies draw with few pixels, which saves most of their time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "_FINE", 32)
        yield


@pytest.fixture(scope="session")
def masks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three images with two masks each."""
    return cases.make_masks(tmp_path_factory.mktemp("data") / "masks")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images, two of them in a folder within."""
    return folders.make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, vit: str, masks: str) -> dict[str, bytes]:
    """What an evaluation leaves without any stop: three methods, two chunks."""
    output = tmp_path_factory.mktemp("whole") / "out"
    evaluate(EvaluationConfig(vit, str(output), (masks,), **SMALL))
    return folders.content(output)


@pytest.fixture
def output(tmp_path: Path, whole: dict[str, bytes]) -> Path:
    """A folder with that evaluation."""
    for name, data in whole.items():
        save_bytes(data, tmp_path / "out" / name)
    return tmp_path / "out"


@pytest.fixture(scope="session")
def whole_study(
    tmp_path_factory: pytest.TempPathFactory, images: Path, vit: str
) -> dict[str, bytes]:
    """What an uninterrupted study with two units leaves."""
    output = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "_FINE", 32)
        run_study(folders.config_of(images, output, vit))
    return folders.content(output)
