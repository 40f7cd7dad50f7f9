"""Files that are there whole or not at all, on this machine and behind fsspec."""

from __future__ import annotations

import errno
import os
import signal
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from captum_clip.errors import InputError
from captum_clip.folders.storage import Storage, storage_of


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """An empty folder of either kind."""
    place = tmp_path / "out" if request.param == "local" else f"memory://{uuid.uuid4()}/out"
    made = storage_of(place)
    with made.lock():
        yield made


def test_what_is_written_is_read(storage: Storage) -> None:
    storage.write("units/a/0.npz", b"one")
    storage.write("units/a/0.npz", b"other")
    storage.write("b.csv", b"")
    assert storage.read("units/a/0.npz") == b"other"
    assert storage.read("b.csv") == b""
    found = {name: size for name, size in storage.files().items() if name != ".lock"}
    assert found == {"units/a/0.npz": 5, "b.csv": 0}


def test_what_is_not_there_is_none(storage: Storage) -> None:
    assert storage.read("a/b") is None
    storage.remove("a/b")
    storage.write("a/b", b"1")
    storage.remove("a/b")
    assert storage.read("a/b") is None


def test_a_folder_that_is_not_there_is_said() -> None:
    for place in ("/nowhere/at/all", f"memory://{uuid.uuid4()}"):
        with pytest.raises(InputError, match="there is no folder"):
            storage_of(place).files()


@pytest.mark.parametrize("url", ["nonsense://a", "github://a"])
def test_a_url_that_leads_nowhere_is_said(url: str) -> None:
    with pytest.raises(InputError, match=f"{url} cannot be reached"):
        storage_of(url)


def test_a_url_of_a_file_is_a_local_folder(tmp_path: Path) -> None:
    assert storage_of(f"file://{tmp_path}") == storage_of(tmp_path)
    assert not storage_of("memory://a").is_local


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = storage_of(tmp_path)
    storage.write("a.csv", b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"a\.csv: No space left on device; .* is kept"):
            storage.write("a.csv", b"new")
    assert os.listdir(tmp_path) == ["a.csv"]
    assert storage.read("a.csv") == b"old"


def test_a_failing_store_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no leave")

    storage = storage_of(f"memory://{uuid.uuid4()}")
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    with pytest.raises(InputError, match=r"cannot be written to: no leave; what is done is kept"):
        storage.write("a", b"")


def test_another_process_is_kept_out(tmp_path: Path) -> None:
    """And the lock leaves with the context, and nothing stays in a folder that was not used."""
    place = tmp_path / "out"
    with storage_of(place).lock():
        assert "another run is at work" in elsewhere(place)
    assert not place.exists()
    assert elsewhere(place) == ""


def test_a_lock_of_a_killed_run_is_free_although_its_children_live(tmp_path: Path) -> None:
    """Its decoding processes may outlive it by seconds; the same command is started at once."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it forks, with threads about
        run = os.fork()
    if run == 0:
        with storage_of(tmp_path).lock():
            if os.fork() == 0:
                os.read(reader, 1)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(run, 0)
    assert (tmp_path / ".lock").exists()
    with storage_of(tmp_path).lock():
        pass
    assert not (tmp_path / ".lock").exists()
    os.write(writer, b".")


def elsewhere(place: Path) -> str:
    """What another process is told when it wants the folder."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it forks, with threads about
        child = os.fork()
    if child == 0:
        try:
            with storage_of(place).lock():
                pass
        except InputError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader) as said:
        return said.read()


def test_a_folder_that_cannot_be_made_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the system makes none at all, as under /proc."""
    (tmp_path / "file").touch()

    def refused(place: Path, reason: str) -> None:
        message = f"cannot be made: {reason}; name another"
        with pytest.raises(InputError, match=message), storage_of(place).lock():
            pass

    refused(tmp_path / "file" / "out", "Not a directory")
    refused(tmp_path / "new" / ("a" * 300), "File name too long")

    def nowhere(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "makedirs", nowhere)
    refused(tmp_path / "out", "No such file or directory")


def test_a_bucket_is_not_made_by_a_typing_error() -> None:
    """Stores make one for the first part of a path that has no root."""
    from unittest.mock import Mock

    system = Mock()
    system.pipe_file.side_effect = FileNotFoundError("The specified bucket does not exist")
    storage = Storage(system, "buckte/out", "s3://buckte/out", is_local=False)
    with storage.lock(), pytest.raises(InputError, match="bucket does not exist"):
        storage.write("a/b", b"1")
    system.makedirs.assert_not_called()


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "images").symlink_to(tmp_path / "images")
    (tmp_path / "linked" / "circle").symlink_to(tmp_path / "linked")
    (tmp_path / "linked" / "nowhere.png").symlink_to(tmp_path / "none")
    found = storage_of(tmp_path / "linked").files()
    assert found == {"images/a.png": 0, "nowhere.png": -1}


@pytest.mark.parametrize("backwards", [False, True])
def test_of_two_ways_to_a_folder_the_same_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    """In whichever order the disk lists them."""
    walk = os.walk

    def ordered(*arguments: Any, **options: Any) -> Iterator[Any]:
        for place, inner, names in walk(*arguments, **options):
            inner.sort(reverse=backwards)
            yield place, inner, names

    monkeypatch.setattr(os, "walk", ordered)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").touch()
    (tmp_path / "b").symlink_to("a")
    assert storage_of(tmp_path).files() == {"a/x.png": 0}


def test_another_thread_is_kept_out(tmp_path: Path) -> None:
    """Although the system's lock is of a process; and no try takes the lock away."""
    storage = storage_of(tmp_path)
    with storage.lock():
        for _ in range(2):
            with pytest.raises(InputError, match="another run is at work"), storage.lock():
                pass
        assert "another run is at work" in elsewhere(tmp_path)
    with storage.lock():
        pass
