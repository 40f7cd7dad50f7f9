"""What a worker of Ray does, without Ray; test_demo_study.py runs it."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from captum_clip.errors import InputError
from captum_clip.studies import on_ray, run_study
from captum_clip.studies.engine import Work
from captum_clip.studies.jobs import Loader
from captum_clip.studies.listing import list_images
from captum_clip.studies.opening import open_jobs
from captum_clip.studies.shards import tries_of, units_of
from captum_clip.studies.storage import storage_of
from tests.studies import folders


def work_of(tmp_path: Path, images: Path, vit: str) -> Work:
    config = folders.config_of(images, tmp_path / "out", vit, engine="ray", workers=1)
    place, output = storage_of(images), storage_of(tmp_path / "out")
    listed = list_images(place, output, limit=None, seed=0)
    jobs = open_jobs(config, Loader())
    units = units_of([jobs[0].key], len(listed), batch_size=2, batches_per_shard=2)
    return Work(jobs, units, listed.names, place, output, 1, 0)


def test_a_worker_writes_the_shards_of_the_local_engine(
    tmp_path: Path, images: Path, vit: str
) -> None:
    """Called as Ray calls it, without Ray; it counts its tries while it is at work."""
    work = work_of(tmp_path, images, vit)
    worker = on_ray.ShardWorker(work)
    for number in range(len(work.units)):
        assert worker({"unit": [number]}) == {"unit": [number], "error": [""]}
    found = folders.content(tmp_path / "out")
    run_study(folders.config_of(images, tmp_path / "local", vit))
    expected = folders.content(tmp_path / "local")
    assert found == {name: data for name, data in expected.items() if name.startswith("shards")}


def test_a_worker_says_what_it_cannot_do(tmp_path: Path, images: Path, vit: str) -> None:
    """A model that is another one there; a shard that killed five workers."""
    from dataclasses import replace

    work = work_of(tmp_path, images, vit)
    other = replace(work, jobs=[replace(work.jobs[0], fingerprint="another")])
    [error] = on_ray.ShardWorker(other)({"unit": [0]})["error"]
    assert "not those that the study was begun with" in error
    work.output.write(tries_of(work.units[0].name), b"5")
    [error] = on_ray.ShardWorker(work)({"unit": [0]})["error"]
    assert "5 workers died over the shard" in error


def test_without_ray_the_extra_is_named(
    tmp_path: Path, images: Path, vit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    config = folders.config_of(images, tmp_path / "out", vit, engine="ray", workers=1)
    with pytest.raises(InputError, match=r"pip install 'captum-clip\[ray\]'"):
        run_study(config)


class Cluster:
    """The caller's Ray, with machines of these resources; the last one is gone."""

    def __init__(self, *machines: dict[str, float]) -> None:
        self.machines = machines

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        gone = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
        return [{"Alive": True, "Resources": machine} for machine in self.machines] + [gone]


@pytest.mark.parametrize(
    ("threads", "gpus", "message"),
    [
        (2, 0, ""),
        (2, 1, ""),
        (4, 0, ""),
        (8, 0, "8 threads fits on no machine of the Ray cluster, the largest has 4 CPUs"),
        (4, 1, "4 threads fits on no machine of the Ray cluster, the largest with a GPU has 2"),
        (2, 2, "gpus=2 is more than the 1 of the Ray cluster; give fewer, or gpus=0"),
    ],
)
def test_a_worker_that_fits_nowhere_is_said(
    monkeypatch: pytest.MonkeyPatch, threads: int, gpus: int, message: str
) -> None:
    """On the caller's own Ray too; without a word it would be waited for without end."""
    cluster = Cluster({"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0})
    monkeypatch.setattr(on_ray, "_ray", lambda: cluster)
    work: Any = SimpleNamespace(threads=threads, gpus=gpus)
    expected = pytest.raises(InputError, match=message) if message else nullcontext()
    with expected, on_ray._connected(work) as ray:
        assert ray is cluster
