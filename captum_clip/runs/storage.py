"""Folders for images and results: on this machine, or anywhere that fsspec reaches."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, final

from filelock import FileLock, Timeout

from ..checks import expand
from ..errors import InputError
from ..files import replace_file

_RESUME: Final = "; what is done is kept; start the same command again to go on"
_LOCK: Final = ".lock"


def storage_of(location: str | Path) -> Storage:
    """A path, or a URL such as ``s3://bucket/folder``; InputError where fsspec knows none such."""
    text = str(location)
    scheme, separator, rest = text.partition("://")
    if separator and scheme not in ("file", "local"):
        storage = Storage(text.rstrip("/"), is_local=False)
        storage.connect()
        return storage
    return Storage(expand(rest or text).resolve().as_posix(), is_local=True)


@final
@dataclass(frozen=True)
class Storage:
    """A folder; names in it are relative, with "/" between their parts. It can be pickled.

    It is on this machine or a disk of its, or else behind fsspec, where a file appears when it is
    complete. What a disk or a store refuses is an InputError.
    """

    root: str
    is_local: bool

    def connect(self) -> tuple[Any, str]:
        """The file system of fsspec, and the folder's path on it."""
        import fsspec

        if self.is_local:  # which may have any character in it, as a URL may not
            return fsspec.filesystem("file"), self.root
        try:
            system, path = fsspec.core.url_to_fs(self.root)
        except (ImportError, ValueError) as error:
            raise InputError(f"{self.root} cannot be reached: {error}.") from error
        return system, str(path).rstrip("/")

    def files(self) -> list[tuple[str, int]]:
        """Name and size in bytes of every file, hidden ones too, in no order."""
        system, path = self.connect()
        system.invalidate_cache()
        with _explained(f"{self.root} cannot be listed"):
            if not system.isdir(path):
                raise InputError(f"there is no folder {self.root}.")
            if self.is_local:
                return list(_walk(self.root))
            infos = system.find(path, detail=True)
        start = len(path) + 1
        return [(name[start:], int(info.get("size") or 0)) for name, info in infos.items()]

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        system, path = self.connect()
        with suppress(FileNotFoundError), _explained(f"{self.root}/{name} cannot be read"):
            return bytes(system.cat_file(f"{path}/{name}"))
        return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file that is there whole or not at all; an existing one is replaced."""
        system, path = self.connect()
        self._make(str(PurePosixPath(name).parent))
        if not self.is_local:
            with _explained(f"{self.root} cannot be written to", _RESUME):
                system.pipe_file(f"{path}/{name}", content)
            return

        def fill(file: BinaryIO) -> None:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a name must never outlive its content

        try:
            replace_file(Path(self.root, name), fill)
        except InputError as error:
            raise InputError(f"{str(error).rstrip('.')}{_RESUME}.") from error

    def remove(self, name: str) -> None:
        """Take a file away; it may be gone already."""
        system, path = self.connect()
        with suppress(FileNotFoundError), _explained(f"{self.root}/{name} cannot be removed"):
            system.rm_file(f"{path}/{name}")

    @contextmanager
    def as_file(self, name: str) -> Iterator[Path]:
        """A path on this machine that has the content of a file, while the context lasts."""
        if self.is_local:
            yield Path(self.root, name)
            return
        system, path = self.connect()
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, PurePosixPath(name).name)
            # Of a file that is not there, whoever opens the copy will say so.
            with suppress(FileNotFoundError), _explained(f"{self.root} cannot be read"):
                system.get_file(f"{path}/{name}", str(copy))
            yield copy

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and keep other runs out of it while the context lasts.

        Object stores have no locks: there two runs write the same files.
        """
        folder = Path(self.root)
        path, is_new = folder / _LOCK, not folder.exists()
        self._make(".")
        if not self.is_local:
            yield
            return
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

    def name_inside(self, other: Storage) -> str | None:
        """What this folder is called in the other one; None where it is not in it."""
        if self.root == other.root:
            return "."
        start = f"{other.root.rstrip('/')}/"
        return self.root.removeprefix(start) if self.root.startswith(start) else None

    def _make(self, name: str) -> None:
        system, path = self.connect()
        with _explained(f"the folder {self.root} cannot be made", _RESUME):
            system.makedirs(f"{path}/{name}".removesuffix("/."), exist_ok=True)


def _walk(root: str) -> Iterator[tuple[str, int]]:
    """Links to folders are followed, circles of them are not, as fsspec would."""
    seen = set()
    for folder, inner, names in os.walk(root, onerror=_refuse, followlinks=True):
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
            yield path.relative_to(root).as_posix(), size


def _refuse(error: OSError) -> None:
    raise InputError(f"the folder {error.filename} cannot be read: {error.strerror}.") from error


@contextmanager
def _explained(what: str, cure: str = "") -> Iterator[None]:
    """What the disk or the store refuses becomes an InputError; that a file is missing does not."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{what}: {error.strerror or error}{cure}.") from error
