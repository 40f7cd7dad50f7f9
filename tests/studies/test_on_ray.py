"""What a worker of Ray does with the shards of a study, without Ray; test_demo_study.py runs it."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from captum_clip.errors import InputError
from captum_clip.runs import ModelLoader, storage_of
from captum_clip.runs.on_ray import UnitWorker
from captum_clip.studies import run_study
from captum_clip.studies.file_list import list_images
from captum_clip.studies.plan import plan_study
from captum_clip.studies.run import StudyWorker
from tests.studies import folders


def test_a_worker_writes_the_shards_of_the_local_engine(
    tmp_path: Path, images: Path, vit: str
) -> None:
    """And refuses a model that is another one on its machine."""
    config = folders.config_of(images, tmp_path / "out", vit, engine="ray", workers=1)
    source, output = storage_of(images), storage_of(tmp_path / "out")
    files = list_images(source, output, limit=None, seed=0)
    plan = plan_study(config, source, files, ModelLoader())
    worker = UnitWorker(partial(StudyWorker, plan), plan.shards, output, 1, ModelLoader())
    for number in range(len(plan.shards)):
        assert worker({"unit": [number]}) == {"unit": [number], "error": [""]}
    run_study(folders.config_of(images, tmp_path / "local", vit))
    expected = folders.content(tmp_path / "local")
    assert folders.content(tmp_path / "out") == {
        name: data for name, data in expected.items() if name.startswith("shards")
    }
    other = replace(plan, jobs=(replace(plan.jobs[0], fingerprint="another"),))
    [error] = UnitWorker(partial(StudyWorker, other), plan.shards, output, 1, ModelLoader())(
        {"unit": [0]}
    )["error"]
    assert "not those that the study was begun with" in error


def test_without_ray_the_extra_is_named(
    tmp_path: Path, images: Path, vit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    config = folders.config_of(images, tmp_path / "out", vit, engine="ray", workers=1)
    with pytest.raises(InputError, match=r"pip install 'ray\[data\]'"):
        run_study(config)
