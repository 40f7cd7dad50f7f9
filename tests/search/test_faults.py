"""Killed, two writers, a full disk, a reader beside a writer: nothing is lost, nothing is wrong."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGKILL
from threading import Thread

import pytest

from captum_clip.apps.search import ImageIndex
from captum_clip.errors import InputError
from captum_clip.models import ClipAdapter
from tests.search.conftest import COUNT, draw
from tests.search.test_index import cosines

KILLS = 10


def names_of(folder: Path) -> set[str]:
    """The images of a folder as an index has them."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def assert_right(index: ImageIndex, folder: Path, missing: int = 0) -> None:
    """All rows are whole, at most so many are not there, and scores are those of the model."""
    found, scores = index.search("a horse", 99), cosines(index.clip, folder, "a horse")
    stale = {name for name, reason in found.skipped.items() if "it has changed" in reason}
    assert stale == {*found.skipped}
    assert len(found.files) + len(stale) == len(index) >= len(scores) - missing
    assert dict(zip(found.files, found.scores, strict=True)) == pytest.approx(
        {name: scores[name][0] for name in found.files}, abs=1e-6
    )


@pytest.mark.slow
def test_ten_killed_builds_lose_and_spoil_nothing_and_a_reader_goes_on(
    clip: ClipAdapter, tmp_path: Path
) -> None:
    """Each is killed one file later than the one before: rows removed, added and compacted."""
    folder, path = tmp_path / "images", tmp_path / "index.lance"
    for seed in range(KILLS + 2):
        draw(folder / f"{seed:02d}.png", seed)
    reader = ImageIndex.build(clip, folder, path)
    command = [sys.executable, "-m", "tests.search.killed", str(folder), str(path), str(KILLS)]
    searches = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        while running.poll() is None:
            for index in (reader, ImageIndex.open(path, clip)):
                found = index.search("a horse", 99)
                assert {*found.files, *found.skipped} <= names_of(folder)
                searches += 1
            time.sleep(0.2)  # the builds need the processor, too
        assert running.stdout is not None
        assert running.stdout.read().split() == [str(int(SIGKILL))] * KILLS
    assert searches > KILLS
    for number in range(KILLS):  # what was drawn anew may not be there yet
        assert_right(ImageIndex.open(tmp_path / f"{number}.lance", clip), folder, number + 1)
    assert_right(ImageIndex.build(clip, folder, path), folder)
    assert_right(reader, folder)


def test_a_second_writer_is_refused_at_every_step(
    clip: ClipAdapter, folder: Path, tmp_path: Path
) -> None:
    """And takes nothing from the first."""
    path, refused = tmp_path / "index.lance", list[int]()

    def progress(done: int, total: int, _: str) -> None:
        with pytest.raises(InputError, match="another run is at work in"):
            ImageIndex.build(clip, folder, path, chunk_size=1)
        refused.append(done)

    index = ImageIndex.build(clip, folder, path, chunk_size=1, progress=progress)
    assert refused == [*range(COUNT + 2)]  # with the one that is broken
    assert_right(index, folder)
    assert_right(ImageIndex.build(clip, folder, path), folder)


def test_a_reader_beside_a_writer_sees_whole_versions(
    clip: ClipAdapter, folder: Path, tmp_path: Path
) -> None:
    """While files that it is about to read are removed."""
    path, seen, failures = tmp_path / "index.lance", set[int](), list[Exception]()
    reader = ImageIndex.build(clip, folder, path)
    writes = Thread(target=write_often, args=(clip, folder, path, failures))
    writes.start()
    searches = 0
    while writes.is_alive():
        found = reader.search("a horse", 99)
        seen.add(len(found.files) + len(found.skipped))
        assert len(reader.files) >= COUNT - 1
        searches += 1
    writes.join()
    assert failures == []
    assert searches > 10
    assert seen <= {COUNT - 1, COUNT}  # without the image that is drawn anew, or with it
    assert_right(reader, folder)


def write_often(clip: ClipAdapter, folder: Path, path: Path, failures: list[Exception]) -> None:
    """Twenty builds, each of one image that was drawn anew."""
    image = min(folder.rglob("*.png"))
    try:
        for seed in range(20):
            draw(image, 100 + seed)
            ImageIndex.build(clip, folder, path)
    except Exception as error:
        failures.append(error)


def test_a_disk_that_is_full_at_any_byte_loses_nothing(
    clip: ClipAdapter, folder: Path, index: ImageIndex
) -> None:
    """Files of the process may have so many bytes; afterwards the same build goes on."""
    path, new, image = index.table.uri, names_of(folder), min(folder.rglob("*.png"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    refused = list[str]()
    for number, size in enumerate((1, 100, 600, 1000, 1500, 2000, 4000, 6000, 7000, 16000)):
        draw(image, 100 + number)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            ImageIndex.build(clip, folder, path)
        except InputError as error:
            refused.append(error.reason)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        for each in (index, ImageIndex.open(path, clip)):
            assert_right(each, folder, missing=1)
    assert len(refused) > 5
    assert all(reason.endswith("; make room and run it again.") for reason in refused)
    assert {*ImageIndex.build(clip, folder, path).files} == new
    assert_right(index, folder)
