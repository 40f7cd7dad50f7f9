"""The study of emotions on the demo's own faces, as a user runs it: killed, resumed, and on Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from captum_clip.cli import main
from captum_clip.emotions import EMOTIONS
from tests import folders
from tests.experiments import experiment

ROOT = Path(__file__).parents[2]
MODELS = ["demo/vit", "demo/resnet"]
pytestmark = pytest.mark.slow
START = (
    "import sys\n"
    "from captum_clip.visualization import grid\n"
    "from captum_clip.evaluation import StudyConfig\n"
    "StudyConfig.__init__.__kwdefaults__['chunk_size'] = 2\n"
    "grid._FINE = 32\n"
    "from captum_clip.cli import main\n"
    "sys.exit(main(sys.argv[1:]))"
)
"""The command line with many small units and a small picture."""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """``study emotions`` on eight drawn faces, with probes fitted to all of them."""
    faces = tmp_path_factory.mktemp("demo") / "faces"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAPTUM_CLIP_CACHE", str(faces.with_name("cache")))
        experiment("artemis").write_artemis(faces, paintings=24)
        files = [str(faces.with_name(f"{model[5:]}.safetensors")) for model in MODELS]
        for model, file in zip(MODELS, files, strict=True):
            assert main(["emotions", "fit", str(faces), "--model", model, "-o", file]) == 0
    given = ["study", "emotions", str(faces / "images"), "--limit", "8"]
    for model, file in zip(MODELS, files, strict=True):
        given += ["--model", model, "--emotions", file]
    return [*given, "--batch-size", "2", "--threads", "1"]


def start(command: list[str], output: Path, *options: str) -> subprocess.Popen[str]:
    """The command in a process of its own, on a Ray of its own."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", START, *command, *options, "-o", str(output)],
        env={**os.environ, "PYTHONPATH": path, "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, command: list[str]) -> dict[str, bytes]:
    """What the local engine leaves without any stop."""
    output = tmp_path_factory.mktemp("whole") / "out"
    process = start(command, output, "--workers", "1")
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return folders.content(output)


def test_the_study_has_both_towers_and_all_emotions(whole: dict[str, bytes]) -> None:
    lines = whole["statistics.csv"].decode().splitlines()[1:]
    names = [*EMOTIONS, *(f"{name} (centred)" for name in EMOTIONS)]
    assert [line.split(",")[0] for line in lines] == [model for model in MODELS for _ in names]
    assert [line.split(",")[2] for line in lines] == 2 * names
    assert {line.split(",")[3] for line in lines} == {"8"}
    assert whole["centring.csv"].count(b"\n") == 17
    assert len([name for name in whole if name.startswith("units/")]) == 8


def killed(
    process: subprocess.Popen[str], output: Path, when: str, victims: Callable[[], list[int]]
) -> list[int]:
    """Kill -9 as soon as there is a file of this pattern; who was killed."""
    while process.poll() is None:
        found = victims() if output.exists() and any(output.rglob(when)) else []
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        if found:
            return found
        time.sleep(0.005)
    return []


def test_the_study_goes_on_after_a_kill(
    tmp_path: Path, command: list[str], whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The units that are there are kept; the folder ends up the same to the byte."""
    output = tmp_path / "out"
    process = start(command, output, "--workers", "1")
    assert killed(process, output, "*.npz", lambda: [process.pid])
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in output.rglob("*.npz")}
    assert 0 < len(kept) < 8
    again = start(command, output, "--workers", "2")
    _, err = again.communicate(timeout=400)
    assert again.returncode == 0, err
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
    assert folders.content(output) == whole


def test_ray_gives_the_same_bytes_and_says_nothing(
    tmp_path: Path, command: list[str], whole: dict[str, bytes]
) -> None:
    """With one worker; stderr has the progress bar and nothing else."""
    output = tmp_path / "out"
    process = start(command, output, "--engine", "ray", "--workers", "1")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert out.splitlines() == [
        f"statistics  {output}/statistics.csv",
        f"mean maps   {output}/mean_maps.png",
    ]
    lines = [line.strip() for line in err.replace("\r", "\n").splitlines() if line.strip()]
    assert all(line.startswith("study:") for line in lines), lines
    assert folders.content(output) == whole


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_killed_workers_of_ray_do_not_lose_the_study(
    tmp_path: Path, command: list[str], whole: dict[str, bytes]
) -> None:
    """Two workers, killed as soon as one is at work."""
    output = tmp_path / "out"
    process = start(command, output, "--engine", "ray", "--workers", "2")
    dead: list[int] = []
    watcher = threading.Thread(
        target=lambda: dead.extend(
            killed(process, output, ".*.tries.part", lambda: workers_of(process.pid))
        )
    )
    watcher.start()
    _, err = process.communicate(timeout=400)
    watcher.join()
    assert process.returncode == 0, err
    assert dead
    assert folders.content(output) == whole


def workers_of(parent: int) -> list[int]:
    """Processes below `parent` that are actors of this package."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                names[int(entry.name)] = (entry / "cmdline").read_bytes()
                parents[int(entry.name)] = int(fields[1])
            except OSError:  # it has ended
                continue

    def below(process: int) -> bool:
        while process in parents and process != parent:
            process = parents[process]
        return process == parent

    return [pid for pid, name in names.items() if b"UnitWorker" in name and below(pid)]
