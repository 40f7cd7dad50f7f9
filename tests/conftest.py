"""Settings of every test run, and the models that studies and evaluations load by name."""

from __future__ import annotations

import pytest
import torch

from tests.studies import folders

torch.set_num_threads(1)  # small tensors: more threads only wait for each other


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small vision transformer in a folder."""
    return folders.make_vit(tmp_path_factory.mktemp("models") / "small-vit")


@pytest.fixture(scope="session")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small ResNet in a folder."""
    return folders.make_resnet(tmp_path_factory.mktemp("models") / "small-resnet")
