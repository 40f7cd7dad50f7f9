"""Folders for images and results: on this machine, or anywhere that fsspec reaches."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, final

from filelock import FileLock, Timeout
from typing_extensions import override

from ..errors import InputError
from ..files import replace_file

_RESUME: Final = "; what is done is kept; start the same command again to go on"
_LOCK: Final = ".lock"


@dataclass(frozen=True)
class Storage(ABC):
    """A folder; names in it are relative, with "/" between their parts.

    Attributes:
        root: where it is.
    """

    root: str

    @abstractmethod
    def files(self) -> list[tuple[str, int]]:
        """Name and size in bytes of every file, hidden ones too, in no order.

        Raises:
            InputError: there is no such folder, or it cannot be read.
        """

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a file that is there whole or not at all; an existing one is replaced.

        Raises:
            InputError: the folder or the disk refuses.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Take a file away; it may be gone already."""

    @abstractmethod
    def as_file(self, name: str) -> AbstractContextManager[Path]:
        """A path on this machine that has the content of a file, while the context lasts."""

    @abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Make the folder, and keep other runs out of it while the context lasts.

        Raises:
            InputError: it cannot be made, or another run is at work in it.
        """

    def name_inside(self, other: Storage) -> str | None:
        """What this folder is called in the other one; None where it is not in it."""
        if self.root == other.root:
            return "."
        start = f"{other.root.rstrip('/')}/"
        return self.root.removeprefix(start) if self.root.startswith(start) else None


def storage_of(location: str | Path) -> Storage:
    """A path, or a URL such as ``s3://bucket/folder``.

    Raises:
        InputError: a URL that fsspec does not know.
    """
    text = str(location)
    scheme, separator, rest = text.partition("://")
    if separator and scheme not in ("file", "local"):
        remote = RemoteStorage(text.rstrip("/"))
        remote.connect()
        return remote
    return LocalStorage(Path(rest or text).expanduser().resolve().as_posix())


@final
@dataclass(frozen=True)
class LocalStorage(Storage):
    """A folder on this machine, or on a disk that several machines share.

    Not fsspec's own local files: they are not brought to the disk before they take their names, and
    circles of links are followed without end.
    """

    @override
    def files(self) -> list[tuple[str, int]]:
        if not os.path.isdir(self.root):
            raise InputError(f"there is no folder {self.root}.")
        files, seen = [], set()
        for folder, inner, names in os.walk(self.root, onerror=_refuse, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                inner.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            inner.sort()  # of two ways to a folder the same one counts on every disk
            for name in names:
                path = Path(folder, name)
                try:
                    size = path.stat().st_size
                except OSError:  # a link that leads nowhere: the reader will say so
                    size = -1
                files.append((path.relative_to(self.root).as_posix(), size))
        return files

    @override
    def read(self, name: str) -> bytes | None:
        with suppress(FileNotFoundError), _explained(f"cannot read {self.root}/{name}"):
            return Path(self.root, name).read_bytes()
        return None

    @override
    def write(self, name: str, content: bytes) -> None:
        def fill(file: BinaryIO) -> None:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a name must never outlive its content

        path = Path(self.root, name)
        _make(path.parent)
        try:
            replace_file(path, fill)
        except InputError as error:
            raise InputError(f"{str(error).rstrip('.')}{_RESUME}") from error

    @override
    def remove(self, name: str) -> None:
        with _explained(f"cannot remove {self.root}/{name}"):
            Path(self.root, name).unlink(missing_ok=True)

    @override
    @contextmanager
    def as_file(self, name: str) -> Iterator[Path]:
        yield Path(self.root, name)

    @override
    @contextmanager
    def lock(self) -> Iterator[None]:
        folder = Path(self.root)
        path, is_new = folder / _LOCK, not folder.exists()
        _make(folder)
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise InputError(
                f"another run is at work in {self.root}; wait for it, or take another output "
                "folder."
            ) from error
        except OSError as error:
            raise InputError(f"cannot write to {self.root}: {error.strerror}.") from error
        try:
            yield
        finally:
            with suppress(OSError):  # it must not hide what the run has to say
                path.unlink(missing_ok=True)  # while it is held: afterwards it may be another's
                if is_new and not any(folder.iterdir()):
                    folder.rmdir()
            lock.release()


@final
@dataclass(frozen=True)
class RemoteStorage(Storage):
    """A folder behind fsspec; on object stores a file appears when it is complete."""

    def connect(self) -> tuple[Any, str]:
        """The file system, and the folder's path on it.

        Raises:
            InputError: a URL that fsspec does not know.
        """
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(self.root)
        except (ImportError, ValueError) as error:
            raise InputError(f"{self.root} cannot be reached: {error}.") from error
        return system, str(path).rstrip("/")

    @override
    def files(self) -> list[tuple[str, int]]:
        system, path = self.connect()
        system.invalidate_cache()
        with _explained(f"{self.root} cannot be listed"):
            if not system.isdir(path):
                raise InputError(f"there is no folder {self.root}.")
            infos = system.find(path, detail=True)
        start = len(path) + 1
        return [(name[start:], int(info.get("size") or 0)) for name, info in infos.items()]

    @override
    def read(self, name: str) -> bytes | None:
        system, path = self.connect()
        with suppress(FileNotFoundError), _explained(f"{self.root} cannot be read"):
            return bytes(system.cat_file(f"{path}/{name}"))
        return None

    @override
    def write(self, name: str, content: bytes) -> None:
        system, path = self.connect()
        with _explained(f"{self.root} cannot be written to", _RESUME):
            system.makedirs(str(PurePosixPath(f"{path}/{name}").parent), exist_ok=True)
            system.pipe_file(f"{path}/{name}", content)

    @override
    def remove(self, name: str) -> None:
        system, path = self.connect()
        with suppress(FileNotFoundError), _explained(f"{self.root} cannot be written to"):
            system.rm_file(f"{path}/{name}")

    @override
    @contextmanager
    def as_file(self, name: str) -> Iterator[Path]:
        system, path = self.connect()
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, PurePosixPath(name).name)
            # Of a file that is not there, whoever opens the copy will say so.
            with suppress(FileNotFoundError), _explained(f"{self.root} cannot be read"):
                system.get_file(f"{path}/{name}", str(copy))
            yield copy

    @override
    @contextmanager
    def lock(self) -> Iterator[None]:
        """Without a lock, which object stores do not have: two runs write the same files."""
        system, path = self.connect()
        with _explained(f"{self.root} cannot be made"):
            system.makedirs(path, exist_ok=True)
        yield


@contextmanager
def _explained(what: str, cure: str = "") -> Iterator[None]:
    """What the disk or the store refuses becomes an InputError; that a file is missing does not."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{what}: {error.strerror or error}{cure}.") from error


def _refuse(error: OSError) -> None:
    raise InputError(f"the folder {error.filename} cannot be read: {error.strerror}.") from error


def _make(folder: Path) -> None:
    with _explained(f"the folder {folder} cannot be made", _RESUME):
        folder.mkdir(parents=True, exist_ok=True)
