"""A small model in a folder, and the data that whole evaluations read."""

from __future__ import annotations

import pytest

from tests.evaluation import cases


@pytest.fixture(scope="session")
def masks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three images with two masks each."""
    return cases.make_masks(tmp_path_factory.mktemp("data") / "masks")
