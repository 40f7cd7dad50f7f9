"""Interrupted at any point, a study resumes and ends as if nothing had happened."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from captum_clip.bench.study import run_study
from captum_clip.errors import InputError
from captum_clip.folders.storage import ImageReader
from tests import folders

ROOT = Path(__file__).parents[2]
# Renames of a whole study: manifest, two units, manifest, list, mean maps, picture, statistics
UNIT, STATISTICS = 2, 8


def start(module: str, *arguments: object) -> subprocess.Popen[bytes]:
    """A process of its own."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def units_of(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (output / "units").rglob("*.npz")}


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again_ends_the_same(
    tmp_path: Path, images: Path, vit: str, whole_study: dict[str, bytes]
) -> None:
    """With a unit half-way to its name, after a unit, and just before the statistics."""
    output = tmp_path / "out"
    kept: dict[str, int] = {}
    moments: Sequence[tuple[str, int, int]] = (
        ("before", UNIT, 0),
        ("after", UNIT, 1),
        ("before", STATISTICS - 1, 2),  # its first unit is there already
    )
    for when, count, units in moments:
        process = start("tests.bench.killed_study", images, output, vit, when, count)
        assert process.wait(timeout=300) == -signal.SIGKILL
        assert not (output / "statistics.csv").exists()
        found = units_of(output)
        assert len(found) == units
        assert kept.items() <= found.items()
        kept = found
        if units == 0:
            assert [path.name for path in output.rglob("*.part")]
    run_study(folders.config_of(images, output, vit))
    assert units_of(output) == kept
    assert folders.content(output) == whole_study


def copy_of(whole_study: dict[str, bytes], output: Path) -> Path:
    for name, data in whole_study.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(data)
    return output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4}, "batch_size was 2 and is 4"),
        ({"texts": ("a cat",)}, r'texts was \["a horse", "a dog"\] and is \["a cat"\]'),
        (
            {"limit": 99, "seed": 2},
            r"config\.seed was null and is 2; config\.limit was null and is 99",
        ),
        ({"method": "all-grad"}, r'jobs\.0\.method was "direct" and is "all-grad"'),
    ],
)
def test_another_study_in_the_same_folder_is_refused(
    tmp_path: Path,
    images: Path,
    vit: str,
    whole_study: dict[str, bytes],
    change: dict[str, Any],
    message: str,
) -> None:
    """With what differs; nothing is touched."""
    output = copy_of(whole_study, tmp_path / "out")
    change = dict(change)
    method = change.pop("method", None)
    config = replace(folders.config_of(images, output, vit), **change)
    with pytest.raises(InputError, match=f"holds another study: .*{message}"):
        run_study(replace(config, methods=(method,) if method else ()))
    assert folders.content(output) == whole_study


def test_other_images_are_refused(tmp_path: Path, vit: str, whole_study: dict[str, bytes]) -> None:
    """More, or of another name or size."""
    output, images = copy_of(whole_study, tmp_path / "out"), tmp_path / "images"
    changes: list[tuple[str, Callable[[Path], object]]] = [
        (r"images\.number was 7 and is 8", lambda file: file.with_name("new.png").touch()),
        ("study: images.names and sizes was", lambda file: file.rename(images / "zebra.png")),
        ("study: images.names and sizes was", lambda file: file.write_bytes(b"1")),
    ]
    for message, change in changes:
        shutil.rmtree(images, ignore_errors=True)
        change(folders.make_images(images) / "image0.png")
        with pytest.raises(InputError, match=message):
            run_study(folders.config_of(images, output, vit))
    assert folders.content(output) == whole_study


@pytest.mark.parametrize(
    ("file", "old", "new", "parts"),
    [
        ("model.safetensors", b"", b"", ["weights", "image_embeddings", "text_embeddings"]),
        (
            "config.json",
            b'"hidden_act": "quick_gelu"',
            b'"hidden_act": "relu"',
            ["image_embeddings", "text_embeddings"],
        ),
        (
            "tokenizer.json",
            b'"normalizer": null',
            b'"normalizer": {"type": "Lowercase"}',
            ["text_embeddings"],
        ),
    ],
)
def test_another_model_of_the_same_name_is_refused(
    tmp_path: Path,
    images: Path,
    vit: str,
    whole_study: dict[str, bytes],
    file: str,
    old: bytes,
    new: bytes,
    parts: list[str],
) -> None:
    """With other weights, or the same ones and a setting or the tokenizer changed."""
    from tests import builders

    changed = tmp_path / "small-vit"
    shutil.copytree(vit, changed)
    content = (changed / file).read_bytes()
    if old:
        assert old in content
        (changed / file).write_bytes(content.replace(old, new))
    else:
        builders.hf_vit(seed=1).model.save_pretrained(changed)
    output = copy_of(whole_study, tmp_path / "out")
    with pytest.raises(InputError, match="holds another study: ") as caught:
        run_study(folders.config_of(images, output, str(changed)))
    assert re.findall(r"jobs\.0\.identity\.(\w+) was", str(caught.value)) == parts


def test_a_full_disk_ends_with_an_error_and_the_study_goes_on(
    tmp_path: Path,
    images: Path,
    vit: str,
    whole_study: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the second unit: the first one stays, and nothing half-written."""
    output, written = tmp_path / "out", 0
    sync = os.fsync

    def full(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written > UNIT:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left on device; what is done is kept"):
            run_study(folders.config_of(images, output, vit))
    assert len(units_of(output)) == 1
    assert not list(output.rglob(".*"))
    run_study(folders.config_of(images, output, vit))
    assert folders.content(output) == whole_study


def test_images_that_were_away_are_tried_again(
    tmp_path: Path,
    images: Path,
    vit: str,
    whole_study: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that a disk refused: once it answers they are in the results of the next run."""
    config = folders.config_of(images, tmp_path / "out", vit)

    def refuse(path: Path, *_: str) -> bytes:
        if path.name == "image0.png":
            raise InputError("away") from OSError(errno.EIO, "Input/output error")
        return path.read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr("captum_clip.folders.storage.read_file", refuse)
        assert "tried again" in run_study(config).skipped["image0.png"]
    assert len(units_of(tmp_path / "out")) == 2
    assert run_study(config).skipped == {}
    assert folders.content(tmp_path / "out") == whole_study


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_ray_gives_the_same_bytes_although_its_workers_die(
    tmp_path: Path,
    images: Path,
    vit: str,
    whole_study: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed as soon as one is there; another one computes its unit."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    dead: list[int] = []
    over = threading.Event()  # a busy machine may take minutes to start a worker

    def kill() -> None:
        while not dead and not over.wait(0.01):
            dead.extend(workers_of(os.getpid()))
        for process in dead:
            os.kill(process, signal.SIGKILL)

    watcher = threading.Thread(target=kill)
    watcher.start()
    try:
        run_study(folders.config_of(images, tmp_path / "out", vit, engine="ray", workers=1))
    finally:
        over.set()
        watcher.join()
    assert dead
    assert folders.content(tmp_path / "out") == whole_study


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


@pytest.mark.slow
def test_a_command_that_is_killed_from_outside_goes_on(
    tmp_path: Path, images: Path, vit: str, whole_study: dict[str, bytes]
) -> None:
    """Kill -9 as soon as the first unit is seen, decoding processes and all."""
    output = tmp_path / "out"
    texts = ["a horse", "a dog"]
    arguments = ["study", "statistics", images, *texts, "--model", vit, "--batch-size", 2]
    process = start("captum_clip", *arguments, "--workers", 1, "-o", output)
    until = time.monotonic() + 300
    while not units_of(output) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = units_of(output)
    assert len(kept) == 1
    run_study(folders.config_of(images, output, vit, chunk_size=128))
    assert units_of(output) == kept
    found = folders.content(output)
    assert found["statistics.csv"] == whole_study["statistics.csv"]


def test_a_deleted_list_of_images_is_written_again(
    tmp_path: Path, images: Path, vit: str, whole_study: dict[str, bytes]
) -> None:
    """By the command of a study that is done: no unit is missing."""
    output = copy_of(whole_study, tmp_path / "out")
    (output / "images.csv").unlink()
    run_study(folders.config_of(images, output, vit))
    assert folders.content(output) == whole_study


def test_a_folder_that_goes_away_ends_a_study_that_then_goes_on(
    tmp_path: Path, vit: str, whole_study: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images are not remembered as files that cannot be read."""
    images, output = folders.make_images(tmp_path / "images"), tmp_path / "out"
    config, load = folders.config_of(images, output, vit), ImageReader.__call__

    def vanish(self: ImageReader[Any], number: int) -> Any:
        if number == 4:
            images.rename(tmp_path / "away")
        return load(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(ImageReader, "__call__", vanish)
        with pytest.raises(
            InputError, match=r"images cannot be reached; .* run the same command again"
        ):
            run_study(config)
    (tmp_path / "away").rename(images)
    assert run_study(config).skipped == {}
    assert folders.content(output) == whole_study
