"""Settings of every test run, and the models that studies and evaluations load by name."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests import folders
from tests.attr import cases

torch.set_num_threads(1)  # small tensors: more threads only wait for each other

EVERYDAY = ("hf_vit", "open_clip_vit_mean", "siglip", "open_clip_resnet", "timm_convnext")
"""A family of each readout. What the laws of `tests/attr` say of the others is marked slow."""


SLOW = Path(__file__).with_name("slow.txt").read_text(encoding="utf-8").split()
"""Folders, files and tests beyond about 0.4 seconds of CPU, besides those that a mark says."""


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep `-m "not slow"` short: without it every family is tried."""
    tests, unknown = config.rootpath / "tests", {*SLOW}
    for item in items:
        at = item.nodeid.partition("[")[0].removeprefix("tests/")
        for place in SLOW:
            if at == place or at.startswith(place if place.endswith("/") else f"{place}::"):
                unknown.discard(place)
                item.add_marker(pytest.mark.slow)
    collects_all = tests in [Path(place).absolute() for place in config.args]
    if collects_all and unknown:
        raise pytest.UsageError(f"tests/slow.txt names what is gone: {', '.join(unknown)}")
    for item in items:
        parameters = getattr(item, "callspec", None)
        name = None if parameters is None else parameters.params.get("name")
        if item.path.parent.name == "attr" and name in cases.BUILDERS and name not in EVERYDAY:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let a worker have tests that stand side by side, which share fixtures, until none is left."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Let tests of Ray wait for each other, in whichever process they are."""
    lock = FileLock(Path(tempfile.gettempdir(), "captum-clip-ray.lock"))
    with lock if "ray" in item.name.split("_") else nullcontext():
        return (yield)


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small vision transformer in a folder."""
    return folders.make_vit(tmp_path_factory.mktemp("models") / "small-vit")


@pytest.fixture(scope="session")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small ResNet in a folder."""
    return folders.make_resnet(tmp_path_factory.mktemp("models") / "small-resnet")
