"""Files that are there whole or not at all, on this machine and behind fsspec."""

from __future__ import annotations

import errno
import os
import signal
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

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
