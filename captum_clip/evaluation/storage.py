"""Folders for images and results: on this machine, or anywhere that fsspec reaches."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, final

from filelock import FileLock, Timeout

from ..checks import expand
from ..errors import InputError
from ..files import replace_file

_RESUME: Final = "; what is done is kept; start the same command again to go on"
_LOCK: Final = ".lock"


def storage_of(location: str | Path) -> "Storage":
    """A path, or a URL such as ``s3://bucket/folder``; InputError where fsspec knows no such."""
    import fsspec

    text = str(location)
    scheme, separator, rest = text.partition("://")
    if not separator and re.match("[a-z][a-z0-9+.-]+:/", text):
        raise InputError(f"{text} has one slash where a URL has two; give it as a str, not a Path.")
    if not separator or scheme in ("file", "local"):
        # not by its URL, in which some characters that a path may have mean something
        path = expand(rest or text).resolve().as_posix()
        return Storage(fsspec.filesystem("file"), path, path, is_local=True)
    try:
        system, path = fsspec.core.url_to_fs(text)
    except (ImportError, ValueError, TypeError, OSError) as error:
        raise InputError(f"{text} cannot be reached: {error}.") from error
    return Storage(system, path.rstrip("/"), text.rstrip("/"), is_local=False)


@final
@dataclass(frozen=True)
class Storage:
    """A folder; names in it are relative, with "/" between their parts. It can be pickled.

    A file is there whole or not at all. What a disk or a store refuses is an InputError.
    """

    system: Any  # a file system of fsspec
    path: str  # of the folder in it
    root: str  # as the user knows it
    is_local: bool

    def files(self) -> dict[str, int]:
        """The size in bytes of every file by name, hidden ones too."""
        # fsspec keeps listings, and would not see what other processes have written since.
        self.system.invalidate_cache()
        with _explained(f"{self.root} cannot be listed"):
            if not self.system.isdir(self.path):
                raise InputError(f"there is no folder {self.root}.")
            if self.is_local:
                return dict(_walk(self.path))
            infos = self.system.find(self.path, detail=True)
        start = len(self.path) + 1
        return {name[start:]: int(info.get("size") or 0) for name, info in infos.items()}

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        with _explained(f"{self.root}/{name} cannot be read"), suppress(FileNotFoundError):
            return bytes(self.system.cat_file(f"{self.path}/{name}"))
        return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file or replace it."""
        with _explained(f"{self.root} cannot be written to", _RESUME):
            self._make(str(PurePosixPath(self.path, name).parent))
            # A store replaces an object as a whole; a local file needs the detour of a rename.
            if not self.is_local:
                self.system.pipe_file(f"{self.path}/{name}", content)
                return
        try:
            replace_file(Path(self.path, name), lambda file: file.write(content))
        except InputError as error:
            raise InputError(f"{str(error).rstrip('.')}{_RESUME}.") from error

    def remove(self, name: str) -> None:
        """Remove a file, which may be gone already."""
        with _explained(f"{self.root}/{name} cannot be removed"), suppress(FileNotFoundError):
            self.system.rm_file(f"{self.path}/{name}")

    def _make(self, folder: str) -> None:
        # a path that has no root begins with a bucket, which a typing error would make
        if self.is_local or folder.startswith("/"):
            self.system.makedirs(folder, exist_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and keep other runs out of it while the context lasts.

        Object stores have no locks: there two runs write the same files.
        """
        folder = Path(self.path)
        path, is_new = folder / _LOCK, not folder.exists()
        with _explained(f"the folder {self.root} cannot be made", "; name another"):
            self._make(self.path)
        if not self.is_local:
            yield
            return
        lock = FileLock(path, timeout=0)
        try:
            with _explained(f"cannot write to {self.root}"):
                lock.acquire()
        except Timeout as error:
            raise InputError(
                f"another run is at work in {self.root}; wait for it, or take another output "
                "folder."
            ) from error
        try:
            yield
        finally:
            with suppress(OSError):  # it must not hide the error of the run
                path.unlink(missing_ok=True)  # while it is held: afterwards it may be another's
                if is_new and not any(folder.iterdir()):
                    folder.rmdir()
            lock.release()


def _walk(root: str) -> Iterator[tuple[str, int]]:
    """Names and sizes; links to folders are followed, which fsspec does not, circles are not."""
    visited = set()
    for folder, inner, names in os.walk(root, onerror=_refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            inner.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        inner.sort()  # of two ways to a folder the same one counts on every disk
        for name in names:
            path = Path(folder, name)
            # of a link that leads nowhere the reader will say so
            yield path.relative_to(root).as_posix(), path.stat().st_size if path.exists() else -1


def _refuse(error: OSError) -> None:
    raise InputError(f"the folder {error.filename} cannot be read: {error.strerror}.") from error


@contextmanager
def _explained(what: str, cure: str = "") -> Iterator[None]:
    """Turn what the disk or the store refuses into an InputError.

    A time-out of the lock is an OSError too, and passes as it is.
    """
    try:
        yield
    except (Timeout, InputError):
        raise
    except (OSError, ValueError) as error:  # ValueError: a name that the store cannot have
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise InputError(f"{what}: {reason}{cure}.") from error
