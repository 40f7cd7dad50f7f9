"""A small model in a folder, and the data that whole evaluations read."""

from __future__ import annotations

import pytest

from tests.evaluation import cases
from tests.studies import folders


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small vision transformer in a folder."""
    return folders.make_vit(tmp_path_factory.mktemp("models") / "small-vit")


@pytest.fixture(scope="session")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small ResNet in a folder."""
    return folders.make_resnet(tmp_path_factory.mktemp("models") / "small-resnet")


@pytest.fixture(scope="session")
def masks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three images with two masks each."""
    return cases.make_masks(tmp_path_factory.mktemp("data") / "masks")
