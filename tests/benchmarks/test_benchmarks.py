"""The benchmark measures what it says: jobs, tables and bytes, but no seconds."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest
import torch
from torch import nn

from captum_clip import ClipGradCam, LastGradAttention
from captum_clip.attr.registry import methods_for
from tests import builders
from tests.attr import cases
from tests.benchmarks import __main__ as command
from tests.benchmarks import peers, tables, towers
from tests.benchmarks.jobs import PLAIN, package_jobs
from tests.benchmarks.memory import peak
from tests.benchmarks.timing import medians
from tests.benchmarks.towers import Tower

CPU = torch.device("cpu")
FLOAT = 4  # bytes


def small(kind: str) -> Tower:
    """A tower of a few layers."""
    builder = builders.BUILDERS[kind]
    size = 96 if kind in cases.CONVOLUTIONAL else builders.IMAGE_SIZE
    model = builder().model
    if not hasattr(model, "visual"):
        return Tower(f"small {kind}", model, "transformers", size)
    return Tower(f"small {kind}", model, "OpenCLIP", size)


# Memory


@pytest.mark.slow
def test_peak_of_allocations_is_exact():
    """The largest sum of what lives at once, not the sum of all nor what is left."""
    size = 1 << 16

    def run() -> None:
        first, second = torch.zeros(size), torch.zeros(2 * size)
        del first
        third = torch.zeros(size // 2)  # 2.5
        del second
        fourth = torch.zeros(size)  # 1.5
        del third, fourth

    assert peak(run, CPU) == 3 * size * FLOAT


# Time


def test_medians_take_turns_and_spare_slow_runs():
    """Every run once to warm up, then in turn; one of seven forwards in every third round."""
    costs = {"plain": [9.0, 1.0, 2.0, 6.0], "slow": [70.0, 7.0, 8.0]}
    left = {name: iter(values) for name, values in costs.items()}
    order: list[str] = []

    def measure(run) -> float:
        order.append(run())
        return next(left[run()])

    runs = {"plain": lambda: "plain", "slow": lambda: "slow"}
    assert medians(runs, 3, measure) == {"plain": 2.0, "slow": 7.0}
    assert order == ["plain", "slow", "plain", "slow", "plain", "plain"]


# Jobs


@pytest.mark.parametrize("kind", ["hf_vit", "open_clip_resnet"])
def test_plain_forward_is_the_librarys(kind):
    """What all is divided by is the tower's own forward, without a graph."""
    tower = small(kind)
    images = tower.images(2, seed=0)
    found = tower.plain(images)()
    found = found if isinstance(found, torch.Tensor) else found.pooler_output
    assert not found.requires_grad
    torch.testing.assert_close(found, tower.clip.image_features(images).detach())


@pytest.mark.parametrize("kind", ["siglip", "timm_convnext"])
def test_package_jobs_are_every_method(kind):
    """Each method twice for one target, with either forward function; maps of all targets."""
    tower = small(kind)
    jobs = package_jobs(tower, tower.images(2, seed=0), [1, 3], seed=0)
    assert next(iter(jobs)) == PLAIN
    one = [name for name in jobs if "1 target" in name]
    assert len(one) == 2 * len(methods_for(tower.clip.kind))
    rows, cells = (jobs[name]().shape for name in jobs if "vectors" in name)
    assert rows == (2, *cells[-2:], tower.width)
    assert cells[:3] == (2, 64, 77)
    for name, run in jobs.items():
        if name != PLAIN and "vectors" not in name:
            assert run().shape[:2] == (2, 3 if "3 targets" in name else 1), name


# Peers


def test_oracle_draws_the_same_map():
    """The ways compared on a ViT compute one thing: ours, the oracle's and Mamooler's."""
    tower = small("hf_vit")
    images = tower.images(2, seed=0)
    ours = LastGradAttention(tower.similarity(1, seed=0)).attribute_targets(images)
    oracle, report = peers.peer_jobs(tower, images, [1], seed=0).values()
    torch.testing.assert_close(oracle(), ours)
    torch.testing.assert_close(report(), ours[:, 0])


def test_resnet_peers_draw_the_same_map():
    """The ways compared on a ResNet compute one thing: ours, the oracle's and Captum's."""
    tower = small("open_clip_resnet")
    images = tower.images(2, seed=0)
    ours = ClipGradCam(tower.similarity(1, seed=0)).attribute_targets(images)
    jobs = peers.peer_jobs(tower, images, [1], seed=0)
    found = {name: run() for name, run in jobs.items() if "pytorch-grad-cam" not in name}
    assert len(found) == 2
    for name, maps in found.items():
        torch.testing.assert_close(maps, ours, msg=name)


def test_pytorch_grad_cam_draws_the_positive_map():
    """That library resizes and normalizes what ours leaves raw, so the two agree in order."""
    tower = small("open_clip_resnet")
    images = tower.images(1, seed=0)
    ours = ClipGradCam(tower.similarity(1, seed=0)).attribute(images, relu_attributions=True)
    run = peers.peer_jobs(tower, images, [1], seed=0)[f"pytorch-grad-cam, 1 target{peers.AGAIN}"]
    maps = torch.from_numpy(run())[:, 16::32, 16::32].to(ours)  # the cells' middles
    ours = ours[:, 0] / ours.max()
    assert torch.corrcoef(torch.stack([maps.flatten(), ours.flatten()]))[0, 1] > 0.99


def test_missing_peer_is_said_with_its_installation(monkeypatch):
    """One line says what is left out and how to have it."""
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    tower = small("open_clip_resnet")
    jobs = peers.peer_jobs(tower, tower.images(1, seed=0), [1], seed=0)
    assert not any("pytorch-grad-cam" in name for name in jobs)
    (note,) = peers.notes(tower)
    assert "pip install grad-cam" in note
    (note,) = peers.notes(small("open_clip_vit"))
    assert "tests.benchmarks.legrad" in note


# Tables


def test_table_sets_time_beside_memory():
    """One line a job, empty where nothing was measured."""
    rows = [
        tables.Row("tower", "plain forward", 16, seconds=0.5, forwards=1.0),
        tables.Row("tower", "a map", 16, seconds=0.45, forwards=0.9),
        tables.Row("tower", "plain forward", 1, peak=2**20, peak_forwards=1.0),
    ]
    assert tables.markdown(rows).splitlines() == [
        "| tower | cost | ms | MiB, batch 1 (x forward) |",
        "| --- | --- | --- | --- |",
        "| plain forward | 1.00 | 500 | 1.0 (1.00) |",
        "| a map | 0.90 | 450 |  |",
    ]


# Growth


# The command


@pytest.fixture
def quick_peak(monkeypatch):
    """Runs the job, and says a constant."""
    monkeypatch.setattr(command, "peak", lambda run, device: 1000 * (run() is not None))


def test_command_prints_and_writes_every_row(tmp_path, monkeypatch, capsys, quick_peak):
    """One table a tower with time and memory, and the same as a CSV."""
    monkeypatch.setattr(command, "TOWERS", {"small": lambda: small("hf_vit")})
    options = ["--batch", "2", "--repeats", "1", "--targets", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *options])
    command.main()
    printed = capsys.readouterr().out
    assert "| small hf_vit | cost | ms | MiB, batch 1 (x forward) | MiB, batch 2" in printed
    assert "| LastGradAttention, 1 target, own callable |" in printed
    assert "Mamooler's way" in printed
    with open(tmp_path / "benchmarks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    jobs = {row["job"] for row in rows}
    assert len(rows) == 3 * len(jobs)  # time, and memory at two batch sizes
    plain = [row for row in rows if row["job"] == PLAIN]
    assert {row["forwards"] or row["peak_forwards"] for row in plain} == {"1.0"}


def test_towers_are_reproducible():
    """The same seed makes the same weights, and the caller's random state stays."""
    state = torch.random.get_rng_state()

    def make() -> Tower:
        return Tower("layer", nn.Linear(4, 4), "OpenCLIP")

    first, second = (towers.built(make, 3, CPU, torch.float64).model for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert first.weight.dtype == torch.float64
    assert torch.equal(torch.random.get_rng_state(), state)


# An index


@pytest.mark.slow
def test_sizes_of_an_index_are_measured():
    """A row for each number of images: 25 kB of vectors each, and two of the embedding."""
    command = [sys.executable, "-m", "tests.benchmarks.index_size", "600"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    count, _, size, found, made, _ = [cell.strip() for cell in printed.strip("|\n ").split("|")]
    assert count == "600"
    assert 27 < float(size.split()[0]) < 28
    assert float(found.split()[0]) > 0
    assert float(made.split()[0]) > 0
