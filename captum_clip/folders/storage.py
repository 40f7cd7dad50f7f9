"""Folders of images and results, here or anywhere that fsspec reaches; images read ahead.

A folder that is wrong is refused without torch.
"""

import errno
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Generic, NamedTuple, TypeVar, final

from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from ..checks import error_context, excerpt, expand, expect
from ..errors import InputError
from ..files import (
    IMAGE_ENDINGS,
    decode_file,
    draw_names,
    image_names,
    is_io_error,
    is_own_figure,
    quiet,
    read_file,
    read_lines,
    replace_file,
)

Content = dict[str, Any]
"""What a manifest holds."""
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
        with _storage_errors(f"{self.root} cannot be listed"):
            if not self.system.isdir(self.path):
                raise InputError(f"there is no folder {self.root}.")
            if self.is_local:
                return dict(_walk(self.path))
            infos = self.system.find(self.path, detail=True)
        start = len(self.path) + 1
        return {name[start:]: int(info.get("size") or 0) for name, info in infos.items()}

    def holds_files(self) -> bool:
        """Whether the folder is there, with a file that is not hidden."""
        return self.system.isdir(self.path) and any(name[0] != "." for name in self.files())

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        with _storage_errors(f"{self.root}/{name} cannot be read"), suppress(FileNotFoundError):
            return bytes(self.system.cat_file(f"{self.path}/{name}"))
        return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file or replace it."""
        with _storage_errors(f"{self.root} cannot be written to", _RESUME):
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
        with _storage_errors(f"{self.root}/{name} cannot be removed"), suppress(FileNotFoundError):
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
        with _storage_errors(f"the folder {self.root} cannot be made", "; name another"):
            self._make(self.path)
        if not self.is_local:
            yield
            return
        lock = FileLock(path, timeout=0)
        try:
            with _storage_errors(f"cannot write to {self.root}"):
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
    for folder, inner, names in os.walk(root, onerror=_raise_unreadable, followlinks=True):
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


def _raise_unreadable(error: OSError) -> None:
    raise InputError(f"the folder {error.filename} cannot be read: {error.strerror}.") from error


@contextmanager
def _storage_errors(what: str, cure: str = "") -> Iterator[None]:
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


def find_index(path: str | Path, *, exists: bool = True) -> Storage:
    """The folder of an index of images; InputError where it cannot be one, or has to exist."""
    storage, advice = storage_of(path), "such as photos.lance"
    folder, _, name = storage.root.rpartition("/")
    expect(name.endswith(".lance"), "an index that ends in .lance", str(path), advice)
    is_lasting = storage.is_local or folder.startswith(("s3://", "gs://", "az://"))
    expect(is_lasting, "a table on this machine or at s3://, gs:// or az://", str(path))
    plain = re.fullmatch(r"[\w.-]+", name.removesuffix(".lance"), re.ASCII)
    expect(plain, "an index named by letters, digits, '-', '_' and '.'", name)
    advice = f"'captum-clip index FOLDER -o {storage.root}' makes one"
    expect(not exists or storage.holds_files(), "an index", storage.root, advice)
    return storage


def differences(before: Content, after: Content) -> list[str]:
    """Say which settings, as JSON, are not those of before."""
    from ..models.adapter import part_agrees

    then, now = dict(_leaf_values(before)), dict(_leaf_values(after))
    return [
        f"{name} was {_shown(then.get(name))} and is {_shown(now.get(name))}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)  # embeddings of another machine differ by rounding
        and not (".identity." in name and part_agrees(str(then.get(name)), str(now.get(name))))
    ]


def _leaf_values(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a JSON value by path, as "config.texts"; lists of plain values are whole."""
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        value = {str(number): each for number, each in enumerate(value)}
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _leaf_values(each, f"{path}.{name}".lstrip("."))
    else:
        yield path, value


def _shown(value: Any) -> str:
    return excerpt(json.dumps(value, ensure_ascii=False), 200)


Item = TypeVar("Item")
Read = TypeVar("Read")


class Skipped(NamedTuple):
    """A sample that was left out, or a region or map of it."""

    number: int  # of the sample
    reason: str
    again: bool = False  # its disk refused, which may pass: the unit is computed again

    @classmethod
    def of(cls, number: int, error: Exception) -> "Skipped":
        """A sample that could not be read."""
        return cls(number, getattr(error, "reason", str(error)), is_io_error(error))

    @property
    def message(self) -> str:
        """The reason, and what becomes of the sample, for people."""
        again = " It is tried again when the same command runs again."
        return self.reason + again * self.again


def list_images(
    images: Storage, output: Storage | None = None, *, limit: int | None = None, seed: int = 0
) -> dict[str, int]:
    """Image files of a folder and the folders in it with their sizes, sorted by name.

    Hidden files and results are left out; the output may lie inside. A sample of `limit` is that of
    :func:`captum_clip.files.draw_names`. On this machine figures of this package are known by their
    metadata, and left out too.

    Raises:
        InputError: there is no folder or no image file in it, or the output is the same folder.
    """
    if output is not None and output.root == images.root:
        raise InputError(
            f"the results cannot go into the folder of the images, {images.root}; name another "
            "folder, such as one inside it."
        )
    sizes, root = images.files(), f"{images.root.rstrip('/')}/"
    names = image_names(sizes)
    if output is not None and output.root.startswith(root):
        inside = f"{output.root.removeprefix(root)}/"
        names = [name for name in names if not name.startswith(inside)]
    names = draw_names(names, limit, seed)
    if images.is_local:  # a store would be asked once an image
        names = [name for name in names if not is_own_figure(Path(images.path, name))]
    if not names:
        raise InputError(f"there is no image file ({', '.join(IMAGE_ENDINGS)}) in {images.root}.")
    return {name: sizes[name] for name in names}


@dataclass(frozen=True)
class ImageReader(Generic[Read]):
    """Reads images one at a time, so that none depends on another; safe in several threads."""

    images: Storage
    names: Sequence[str]  # of files in it, or whole paths of this machine
    prepare: Callable[[Image.Image], Read]  # as by `preprocess_alone`

    def __call__(self, number: int) -> Read | Skipped:
        """The image of a number, prepared; or why there is none."""
        try:
            return self._read(self.names[number])
        except InputError as error:
            skipped = Skipped.of(number, error)
            # Without the whole folder every image that is left would count as unreadable.
            if skipped.again and self.images.is_local and not os.path.isdir(self.images.root):
                raise InputError(
                    f"the folder {self.images.root} cannot be reached; what is done is kept; run "
                    "the same command again when it is back."
                ) from error
            return skipped

    def _read(self, name: str) -> Read:
        path, is_local = Path(self.images.path, name), self.images.is_local
        content = read_file(path, name) if is_local else self.images.read(name)
        if content is None:
            missing = FileNotFoundError(errno.ENOENT, name)
            raise InputError(f"there is no image file {name}.") from missing
        image = decode_file(content, name, keep_mode=True)
        try:
            return self.prepare(image)
        except (ValueError, RuntimeError) as error:  # what processors raise on odd images
            raise InputError(f"{name} cannot be preprocessed ({error}).") from error


def readable_images(
    paths: Sequence[Path], skipped: dict[Path, str], *, workers: int = 0, progress: str = ""
) -> Iterator[Image.Image]:
    """Read images of this machine one after the other; why some cannot be goes into `skipped`."""
    reader = ImageReader(storage_of("."), [*map(str, paths)], Image.Image.copy)
    bar: Any = {"desc": progress, "unit": "image", "leave": False, "disable": not progress}
    with read_ahead(reader, range(len(paths)), workers) as read:
        for image in tqdm(read, total=len(paths), **bar):
            if isinstance(image, Skipped):
                skipped[paths[image.number]] = image.reason
            else:
                yield image
    if len(skipped) == len(paths):
        path, reason = next(iter(skipped.items()), ("", "no file was given"))
        raise InputError(f"none of the {len(skipped)} images can be read; {path}: {reason}")


@contextmanager
def read_ahead(
    read: Callable[[Item], Read], items: Iterable[Item], workers: int, *, batch: int = 1
) -> Iterator[Iterator[Read]]:
    """Read items in their order, in so many threads; with 0 of them each when it is due.

    At most two batches a thread are ahead of the item that is due. An error of `read` is raised in
    place of its result; after the context nothing runs on.
    """
    with quiet(), ThreadPoolExecutor(max(workers, 1)) as pool:

        def results() -> Iterator[Read]:
            waiting: deque[Future[Read]] = deque()
            for item in items:
                # a limit of pixels is of this thread's context
                waiting.append(pool.submit(copy_context().run, read, item))
                if len(waiting) > 2 * workers * batch:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        try:
            yield results() if workers else map(read, items)
        finally:
            pool.shutdown(cancel_futures=True)


def check_template(text: str) -> str:
    """Raise InputError unless a template has one place for a name."""
    expect(text.count("{}") == 1, 'a template with one "{}" for the name', text)
    return text


def read_templates(folder: Path) -> list[str]:
    """The lines of ``templates.txt`` in a folder, each with one "{}"; none without the file."""
    path = folder / "templates.txt"
    with error_context(str(path)):
        return [check_template(line) for line in read_lines(path) or [""]] if path.exists() else []
