"""Folders for images and results: on this machine, or anywhere that fsspec reaches."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, TextIO, final

from ..errors import InputError
from ..files import replace_file

_RESUME = "what is done is kept; start the same command again to go on."
_ATTEMPTS: Final = 10  # to lock a file that others take away meanwhile
_HELD: Final[dict[tuple[int, str], object]] = {}  # the system's lock is of a process, not a thread


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
    @contextmanager
    def as_file(self, name: str) -> Iterator[Path]:
        """A path on this machine that has the content of a file, while the context lasts."""

    @abstractmethod
    @contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder, and keep other studies out of it while the context lasts.

        Raises:
            InputError: it cannot be made, or another run is at work in it.
        """

    @abstractmethod
    def name_inside(self, other: Storage) -> str | None:
        """What this folder is called in the other one; None where it is not in it."""


def storage_of(place: str | Path) -> Storage:
    """A path, or a URL such as ``s3://bucket/folder``.

    Raises:
        InputError: a URL that fsspec does not know.
    """
    text = str(place)
    scheme, mark, rest = text.partition("://")
    if not mark:
        return LocalStorage(str(Path(text).expanduser().resolve()))
    if scheme in ("file", "local"):
        return LocalStorage(str(Path(rest).resolve()))
    remote = RemoteStorage(text.rstrip("/"))
    remote.connected()
    return remote


@final
@dataclass(frozen=True)
class LocalStorage(Storage):
    """A folder on this machine, or on a disk that several machines share."""

    def files(self) -> list[tuple[str, int]]:
        """See :class:`Storage`; links to folders are followed, circles are not."""
        if not os.path.isdir(self.root):
            raise InputError(f"there is no folder {self.root}.")
        found, seen = [], set()
        for place, inner, names in os.walk(self.root, onerror=_unreadable, followlinks=True):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                inner.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            inner.sort()  # of two ways to a folder the same one counts on every disk
            for name in names:
                path = Path(place, name)
                try:
                    size = path.stat().st_size
                except OSError:  # a link that leads nowhere: the reader will say so
                    size = -1
                found.append((path.relative_to(self.root).as_posix(), size))
        return found

    def read(self, name: str) -> bytes | None:
        """See :class:`Storage`."""
        try:
            return Path(self.root, name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"cannot read {self.root}/{name}: {error.strerror}.") from error

    def write(self, name: str, content: bytes) -> None:
        """See :class:`Storage`; a temporary file beside it takes its name when it is complete."""

        def fill(file: BinaryIO) -> None:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a name must never outlive its content

        path = Path(self.root, name)
        self._make(path.parent)
        try:
            replace_file(path, fill)
        except InputError as error:
            raise InputError(f"{str(error).rstrip('.')}; {_RESUME}") from error

    def remove(self, name: str) -> None:
        """See :class:`Storage`."""
        try:
            Path(self.root, name).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"cannot remove {self.root}/{name}: {error.strerror}.") from error

    @contextmanager
    def as_file(self, name: str) -> Iterator[Path]:
        """See :class:`Storage`."""
        yield Path(self.root, name)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """See :class:`Storage`; the system lets go of the lock when a process dies."""
        folder = Path(self.root)
        made = not folder.exists()
        with _held(self.root), self._locked(folder / ".lock") as lock:
            try:
                yield
            finally:
                with suppress(OSError):  # it must not hide what the study has to say
                    lock.unlink(missing_ok=True)
                    if made and not any(folder.iterdir()):
                        folder.rmdir()

    @contextmanager
    def _locked(self, lock: Path) -> Iterator[Path]:
        """Hold the lock, which whoever held it before may have taken away after it was opened."""
        for _ in range(_ATTEMPTS):
            self._make(lock.parent)
            with self._open(lock) as file:
                _lock(file.fileno(), self.root)
                if _is_file(file, lock):
                    yield lock
                    return
        raise _busy(self.root)

    def _open(self, lock: Path) -> TextIO:
        try:
            return open(lock, "a")
        except OSError as error:
            raise InputError(f"cannot write to {self.root}: {error.strerror}.") from error

    def name_inside(self, other: Storage) -> str | None:
        """See :class:`Storage`."""
        try:
            return Path(self.root).relative_to(other.root).as_posix()
        except ValueError:
            return None

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"the folder {folder} cannot be made: {reason}; {_RESUME}") from error


def _unreadable(error: OSError) -> None:
    raise InputError(f"the folder {error.filename} cannot be read: {error.strerror}.") from error


@contextmanager
def _held(root: str) -> Iterator[None]:
    """Keep out other threads of this process."""
    key, own = (os.getpid(), root), object()
    if _HELD.setdefault(key, own) is not own:
        raise _busy(root)
    try:
        yield
    finally:
        del _HELD[key]


def _is_file(file: TextIO, path: Path) -> bool:
    """Whether an open file still is the one of this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _busy(root: str) -> InputError:
    return InputError(
        f"another run is at work in {root}; wait for it, or take another output folder."
    )


def _lock(descriptor: int, root: str) -> None:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows; two studies would write the same files there
        return
    try:
        # Of the process and not of the file: children that outlive it do not hold it.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise _busy(root) from error
    except OSError:  # a file system without locks
        return


@final
@dataclass(frozen=True)
class RemoteStorage(Storage):
    """A folder behind fsspec; on object stores a file appears when it is complete."""

    def connected(self) -> tuple[Any, str]:
        """The file system, and the folder's path on it."""
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(self.root)
        except (ImportError, ValueError) as error:
            raise InputError(f"{self.root} cannot be reached: {error}.") from error
        return system, str(path).rstrip("/")

    def files(self) -> list[tuple[str, int]]:
        """See :class:`Storage`."""
        system, path = self.connected()
        system.invalidate_cache()
        with self._asked("listed"):
            if not system.isdir(path):
                raise InputError(f"there is no folder {self.root}.")
            found = system.find(path, detail=True)
        start = len(path) + 1
        return [(name[start:], int(info.get("size") or 0)) for name, info in found.items()]

    def read(self, name: str) -> bytes | None:
        """See :class:`Storage`."""
        system, path = self.connected()
        try:
            with self._asked("read"):
                return bytes(system.cat_file(f"{path}/{name}"))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """See :class:`Storage`."""
        system, path = self.connected()
        with self._asked("written to", _RESUME):
            parent = str(PurePosixPath(f"{path}/{name}").parent)
            system.makedirs(parent, exist_ok=True)
            system.pipe_file(f"{path}/{name}", content)

    def remove(self, name: str) -> None:
        """See :class:`Storage`."""
        system, path = self.connected()
        try:
            with self._asked("written to"):
                system.rm_file(f"{path}/{name}")
        except FileNotFoundError:
            return

    @contextmanager
    def as_file(self, name: str) -> Iterator[Path]:
        """See :class:`Storage`."""
        system, path = self.connected()
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, PurePosixPath(name).name)
            try:
                with self._asked("read"):
                    system.get_file(f"{path}/{name}", str(copy))
            except FileNotFoundError:
                pass  # whoever opens the copy will say so
            yield copy

    @contextmanager
    def alone(self) -> Iterator[None]:
        """See :class:`Storage`; without a lock: two studies at once write the same files."""
        system, path = self.connected()
        with self._asked("made"):
            system.makedirs(path, exist_ok=True)
        yield

    def name_inside(self, other: Storage) -> str | None:
        """See :class:`Storage`."""
        if self.root == other.root:
            return "."
        start = f"{other.root}/"
        return self.root.removeprefix(start) if self.root.startswith(start) else None

    @contextmanager
    def _asked(self, what: str, cure: str = "") -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise InputError(
                f"{self.root} cannot be {what}: {error}; {cure}".rstrip("; ")
            ) from error
