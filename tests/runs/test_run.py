"""The order of a run, with units that need no model, here and in a worker of Ray."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captum_clip.errors import InputError
from captum_clip.runs import (
    Advance,
    Engine,
    ModelLoader,
    Save,
    Storage,
    check_engine,
    compute_missing,
    on_ray,
    storage_of,
    threads,
    to_npz,
)
from captum_clip.runs import run as order
from tests.runs.test_units import Squares, parse

UNITS = [Squares(f"units/{number}.npz", (number, number + 1)) for number in range(4)]
LOCAL = Engine("local", 1, 0, 1)


@dataclass(frozen=True)
class Work:
    """Squares numbers, and fails at one of the units."""

    fails_at: str = ""
    computed: list[str] = field(default_factory=list)

    def make(self, models: ModelLoader) -> Work:
        return self

    def compute(self, units: Sequence[Squares], save: Save, advance: Advance) -> None:
        for unit in units:
            if unit.name == self.fails_at:
                raise InputError("no more")
            self.computed.append(unit.name)
            save(unit.name, to_npz({"squares": np.square(np.array(unit.numbers, dtype=float))}))
            advance(unit.size)


def run(work: Work, output: Storage, engine: Engine = LOCAL) -> list[tuple[int, int]]:
    """What the progress was told."""
    told: list[tuple[int, int]] = []
    compute_missing(
        work.make,
        UNITS,
        output,
        engine,
        parse=parse,
        before={"manifest.json": b"{}"},
        result="results.csv",
        models=ModelLoader(),
        progress=lambda done, total: told.append((done, total)),
    )
    return told


def test_a_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    """What was done is counted and kept; half-written files go away."""
    output = storage_of(tmp_path)
    with pytest.raises(InputError, match="no more"):
        run(Work(fails_at=UNITS[2].name), output)
    output.write("units/.3.npz.0f.part", b"")
    output.write(UNITS[0].name, b"damaged")
    work = Work()
    assert run(work, output) == [(2, 8), (4, 8), (6, 8), (8, 8)]
    assert work.computed == [UNITS[0].name, UNITS[2].name, UNITS[3].name]
    names = sorted(name for name, _ in output.files())
    assert names == sorted(["manifest.json", *(unit.name for unit in UNITS)])


def test_results_go_away_while_something_is_missing_and_only_then(tmp_path: Path) -> None:
    output = storage_of(tmp_path)
    run(Work(), output)
    output.write("results.csv", b"all of it")
    output.write("manifest.json", b"done")
    assert run(Work(), output) == [(8, 8)]
    assert output.read("manifest.json") == b"done"
    output.remove(UNITS[1].name)
    with pytest.raises(InputError, match="no more"):
        run(Work(fails_at=UNITS[1].name), output)
    assert output.read("results.csv") is None
    assert output.read("manifest.json") == b"{}"


def test_what_killed_workers_of_ray_leave_goes_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-written files are no part of a folder that is the same to the byte."""
    output = storage_of(tmp_path)

    def on_ray(make: Any, units: Sequence[Squares], *_: Any) -> None:
        worker = make(ModelLoader())
        worker.compute(units, output.write, lambda images: None)
        output.write("units/..0.npz.tries.0f.part", b"1")

    monkeypatch.setattr(order, "run_on_ray", on_ray)
    run(Work(), output, engine=Engine("ray", 1, 0, 1))
    names = sorted(name for name, _ in output.files())
    assert names == sorted(["manifest.json", *(unit.name for unit in UNITS)])


def test_temporary_files_are_known_by_their_names() -> None:
    for name in (".a.csv.0f.part", "units/x/.a.npz.tries"):
        assert order.TEMPORARY.search(name)
    for name in ("a.part", "units/x/a.tries", ".lock", "part"):
        assert not order.TEMPORARY.search(name)


def test_a_worker_of_ray_says_what_it_cannot_do(tmp_path: Path) -> None:
    """Called as Ray calls it, without Ray: errors travel as text, and deaths are counted."""
    output = storage_of(tmp_path)
    worker = on_ray.UnitWorker(Work(fails_at=UNITS[1].name).make, UNITS, output, 1, ModelLoader())
    assert worker({"unit": [0]}) == {"unit": [0], "error": [""]}
    assert worker({"unit": [1]}) == {"unit": [1], "error": ["no more"]}
    assert [name for name, _ in output.files()] == [UNITS[0].name]
    output.write(on_ray.tries_of(UNITS[2].name), b"5")
    [error] = worker({"unit": [2]})["error"]
    assert "5 workers died over the shard units/2.npz" in error


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
    ("count", "gpus", "message"),
    [
        (2, 0, ""),
        (2, 1, ""),
        (4, 0, ""),
        (8, 0, "8 threads fits on no machine of the Ray cluster, the largest has 4 CPUs"),
        (4, 1, "4 threads fits on no machine of the Ray cluster, the largest with a GPU has 2"),
        (2, 2, "gpus=2 is more than the 1 of the Ray cluster; give fewer, or gpus=0"),
    ],
)
def test_a_worker_that_fits_nowhere_is_said(count: int, gpus: int, message: str) -> None:
    """On the caller's own Ray too; without a word it would be waited for without end."""
    cluster = Cluster({"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0})
    expected = pytest.raises(InputError, match=message) if message else nullcontext()
    with expected, on_ray.connected(cluster, Engine("ray", 1, gpus, count)):
        assert not message


@pytest.mark.parametrize(
    ("name", "workers", "gpus", "message"),
    [
        ("spark", 1, 0, "me: expected an engine of local, ray, got 'spark'"),
        ("local", 1, 2, "one GPU; engine='ray' uses 2 of them"),
        ("ray", 0, 0, "Ray needs one worker or more, got workers=0"),
        ("ray", 1, 2, "2 GPUs need as many workers or more, got 1"),
    ],
)
def test_engines_that_cannot_be_are_said(name: str, workers: int, gpus: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_engine("me", name, workers, gpus)


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
