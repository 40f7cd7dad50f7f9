"""Interrupted at any point, a study resumes and ends as if nothing had happened."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from captum_clip.errors import InputError
from captum_clip.studies import Subject, run_study
from captum_clip.studies.image_loader import ImageLoader
from tests.studies import folders

ROOT = Path(__file__).parents[2]
# Renames of a whole study: list, manifest, two shards, manifest, mean maps, picture, statistics
SHARD, STATISTICS = 3, 8


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


def shards_of(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (output / "shards").rglob("*.npz")}


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again_ends_the_same(
    tmp_path: Path, images: Path, vit: str, whole: dict[str, bytes]
) -> None:
    """With a shard half-way to its name, after a shard, and just before the statistics."""
    output = tmp_path / "out"
    kept: dict[str, int] = {}
    moments: Sequence[tuple[str, int, int]] = (
        ("before", SHARD, 0),
        ("after", SHARD, 1),
        ("before", STATISTICS - 1, 2),  # its first shard is there already
    )
    for when, count, shards in moments:
        process = start("tests.studies.killed", images, output, vit, when, count)
        assert process.wait(timeout=300) == -signal.SIGKILL
        assert not (output / "statistics.csv").exists()
        found = shards_of(output)
        assert len(found) == shards
        assert kept.items() <= found.items()
        kept = found
        if shards == 0:
            assert [path.name for path in output.rglob("*.part")]
    run_study(folders.config_of(images, output, vit))
    assert shards_of(output) == kept
    assert folders.content(output) == whole


@pytest.mark.slow
def test_a_command_that_is_killed_from_outside_goes_on(
    tmp_path: Path, images: Path, vit: str, whole: dict[str, bytes]
) -> None:
    """Kill -9 as soon as the first shard is seen, decoding processes and all."""
    output = tmp_path / "out"
    texts = ["--text", "a horse", "--text", "a dog"]
    arguments = ["study", "statistics", images, *texts, "--model", vit, "--batch-size", 2]
    process = start("captum_clip", *arguments, "--workers", 1, "-o", output)
    until = time.monotonic() + 300
    while not shards_of(output) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = shards_of(output)
    assert len(kept) == 1
    run_study(folders.config_of(images, output, vit, shard_size=128))
    assert shards_of(output) == kept
    found = folders.content(output)
    assert found["statistics.csv"] == whole["statistics.csv"]


def copy_of(whole: dict[str, bytes], output: Path) -> Path:
    for name, data in whole.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(data)
    return output


def test_a_lost_or_damaged_shard_is_computed_again(
    tmp_path: Path, images: Path, vit: str, whole: dict[str, bytes]
) -> None:
    """And only that one; what a stop left half-written goes away."""
    output = copy_of(whole, tmp_path / "out")
    first, second = sorted((output / "shards").rglob("*.npz"))
    first.write_bytes(first.read_bytes()[:-100])
    (output / "shards" / ".half.npz.01234567.part").touch()
    before = second.stat().st_mtime_ns
    run_study(folders.config_of(images, output, vit))
    assert second.stat().st_mtime_ns == before
    assert folders.content(output) == whole


def test_shards_of_two_methods_that_were_exchanged_are_computed_again(
    tmp_path: Path, images: Path, vit: str
) -> None:
    """Their images and their shapes are the same."""
    config = folders.config_of(images, tmp_path / "out", vit)
    config = replace(config, subjects=(Subject(vit, "last-grad"), Subject(vit, "all-grad")))
    run_study(config)
    before = folders.content(tmp_path / "out")
    first, _, other, _ = sorted(name for name in before if name.startswith("shards/"))
    (tmp_path / "out" / first).write_bytes(before[other])
    (tmp_path / "out" / other).write_bytes(before[first])
    run_study(config)
    assert folders.content(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4}, "batch_size was 2 and is 4"),
        ({"texts": ("a cat",)}, r'texts was \["a horse", "a dog"\] and is \["a cat"\]'),
        ({"limit": 99, "seed": 2}, "seed was null and is 2; limit was null and is 99"),
        ({"method": "all-grad"}, r'subjects was \["small-vit last-grad"\] and is'),
    ],
)
def test_another_study_in_the_same_folder_is_refused(
    tmp_path: Path,
    images: Path,
    vit: str,
    whole: dict[str, bytes],
    change: dict[str, Any],
    message: str,
) -> None:
    """With what differs; nothing is touched."""
    output = copy_of(whole, tmp_path / "out")
    change = dict(change)
    method = change.pop("method", None)
    config = replace(folders.config_of(images, output, vit), **change)
    with pytest.raises(InputError, match=f"holds a study with other settings: .*{message}"):
        run_study(replace(config, subjects=(Subject(vit, method),)))
    assert folders.content(output) == whole


def test_what_changes_no_result_may_change(
    tmp_path: Path, images: Path, vit: str, whole: dict[str, bytes]
) -> None:
    """Workers, the place of the results, the method by its name instead of by default."""
    output = copy_of(whole, tmp_path / "elsewhere")
    next((output / "shards").rglob("*.npz")).unlink()
    config = folders.config_of(images, output, vit, workers=1)
    run_study(replace(config, subjects=(Subject(vit, "last-grad"),)))
    found = folders.content(output)
    assert found.pop("manifest.json") != b""
    assert found == {name: data for name, data in whole.items() if name != "manifest.json"}


def test_other_images_are_refused(tmp_path: Path, vit: str, whole: dict[str, bytes]) -> None:
    """More, fewer, or of another size, each with an example."""
    output = copy_of(whole, tmp_path / "out")
    images = folders.make_images(tmp_path / "images")
    (images / "new.png").touch()
    (images / "image0.png").unlink()
    (images / "image2.png").write_bytes(b"1")
    with pytest.raises(InputError, match=r"the images changed: 1 new \(such as new\.png\), 1 gone"):
        run_study(folders.config_of(images, output, vit))
    assert folders.content(output) == whole


def test_another_model_of_the_same_name_is_refused(
    tmp_path: Path, images: Path, whole: dict[str, bytes]
) -> None:
    from tests import builders
    from tests.models.checkpoints import save_transformers

    save_transformers(builders.hf_vit(seed=1), tmp_path / "small-vit")
    output = copy_of(whole, tmp_path / "out")
    with pytest.raises(InputError, match="the fingerprint of small-vit changed"):
        run_study(folders.config_of(images, output, str(tmp_path / "small-vit")))


def test_a_full_disk_ends_with_an_error_and_the_study_goes_on(
    tmp_path: Path,
    images: Path,
    vit: str,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the second shard: the first one stays, and nothing half-written."""
    output, written = tmp_path / "out", 0
    sync = os.fsync

    def full(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written > SHARD:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left on device; what is done is kept"):
            run_study(folders.config_of(images, output, vit))
    assert len(shards_of(output)) == 1
    assert not list(output.rglob(".*"))
    run_study(folders.config_of(images, output, vit))
    assert folders.content(output) == whole


def test_a_decoding_process_that_dies_is_said(
    tmp_path: Path,
    images: Path,
    vit: str,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not the whole study with it: it goes on."""
    parent, load = os.getpid(), ImageLoader.load

    def die(self: ImageLoader, indices: Sequence[int]) -> Any:
        if os.getpid() != parent and 4 in indices:
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, indices)

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(ImageLoader, "load", die)
        with pytest.raises(InputError, match="a process that decodes images died"):
            run_study(folders.config_of(images, output, vit, workers=1))
    run_study(folders.config_of(images, output, vit))
    assert folders.content(output) == whole


def test_images_that_were_away_are_tried_again(
    tmp_path: Path, vit: str, whole: dict[str, bytes]
) -> None:
    """Those that a disk refused: moved back, they are in the results of the next run."""
    images, output = folders.make_images(tmp_path / "images"), tmp_path / "out"
    (images / "image0.png").rename(tmp_path / "kept.png")
    (images / "image0.png").symlink_to(tmp_path / "away" / "image0.png")
    config = folders.config_of(images, output, vit)
    assert "tried again" in run_study(config).skipped["image0.png"]
    assert len(shards_of(output)) == 2
    (tmp_path / "away").mkdir()
    shutil.copy(tmp_path / "kept.png", tmp_path / "away" / "image0.png")
    (output / "images.csv").write_bytes(whole["images.csv"])  # with the size that it has now
    assert run_study(config).skipped == {}
    assert folders.content(output) == whole


def test_a_folder_that_goes_away_ends_a_study_that_then_goes_on(
    tmp_path: Path, vit: str, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images are not remembered as files that cannot be read."""
    images, output = folders.make_images(tmp_path / "images"), tmp_path / "out"
    config, load = folders.config_of(images, output, vit), ImageLoader.load

    def vanish(self: ImageLoader, indices: Sequence[int]) -> Any:
        if 4 in indices:
            images.rename(tmp_path / "away")
        return load(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(ImageLoader, "load", vanish)
        with pytest.raises(
            InputError, match=r"images cannot be reached; .* run the same command again"
        ):
            run_study(config)
    (tmp_path / "away").rename(images)
    assert run_study(config).skipped == {}
    assert folders.content(output) == whole
