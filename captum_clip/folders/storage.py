"""Folders of images and results, on this machine or anywhere that fsspec reaches.

Images are read ahead. A wrong folder is refused before torch is imported.
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
"""The content of a manifest."""
_RESUME: Final = "; what is done is kept; start the same command again to go on"
_LOCK: Final = ".lock"


def storage_of(location: str | Path) -> "Storage":
    """Return the folder at a path or a URL such as ``s3://bucket/folder``.

    Raises:
        InputError: fsspec cannot reach it.
    """
    import fsspec

    text = str(location)
    scheme, separator, rest = text.partition("://")
    if not separator and re.match("[a-z][a-z0-9+.-]+:/", text):
        raise InputError(f"{text} has one slash where a URL has two; give it as a str, not a Path.")
    if not separator or scheme in ("file", "local"):
        # Some characters that a path may contain have a meaning in a URL, so the path is used.
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

    A file is written whole or not at all. If a disk or a store refuses an operation, an InputError
    is raised.

    Attributes:
        system: the file system of fsspec.
        path: path of the folder in it.
        root: the folder as the user knows it.
        is_local: whether the folder is on this machine.
    """

    system: Any
    path: str
    root: str
    is_local: bool

    def files(self) -> dict[str, int]:
        """Return the size in bytes of every file by name, of hidden files too."""
        # fsspec caches listings, and would not see files that other processes have written since.
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
        """Tell whether the folder exists and has a file that is not hidden."""
        if not self.system.isdir(self.path):
            return False
        return any(not name.startswith(".") for name in self.files())

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if there is no such file."""
        with _storage_errors(f"{self.root}/{name} cannot be read"), suppress(FileNotFoundError):
            return bytes(self.system.cat_file(f"{self.path}/{name}"))
        return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file or replace it."""
        with _storage_errors(f"{self.root} cannot be written to", _RESUME):
            self._make_folder(str(PurePosixPath(self.path, name).parent))
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

    def _make_folder(self, folder: str) -> None:
        """Make a folder of this file system and those above it, unless they are there."""
        # A path without a root begins with a bucket; a mistyped bucket must not be created.
        if self.is_local or folder.startswith("/"):
            self.system.makedirs(folder, exist_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and keep other runs out of it while the context lasts.

        Object stores have no locks: two runs in the same folder write the same files.
        """
        folder = Path(self.path)
        lock_path = folder / _LOCK
        is_new = not folder.exists()
        with _storage_errors(f"the folder {self.root} cannot be made", "; name another"):
            self._make_folder(self.path)
        if not self.is_local:
            yield
            return
        lock = FileLock(lock_path, timeout=0)
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
            # An error here must not hide the error of the run.
            with suppress(OSError):
                # This comes before the release, after which the file may belong to another run.
                lock_path.unlink(missing_ok=True)
                if is_new and not any(folder.iterdir()):
                    folder.rmdir()
            lock.release()


def _walk(root: str) -> Iterator[tuple[str, int]]:
    """Yield names and sizes of files.

    Unlike in fsspec, links to folders are followed; a folder is entered once, so circles end.
    """
    visited = set()
    for folder, subfolders, names in os.walk(root, onerror=_raise_unreadable, followlinks=True):
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in visited:
            subfolders.clear()
            continue
        visited.add(identity)
        # If two ways lead to a folder, sorting makes the same one count on every disk.
        subfolders.sort()
        for name in names:
            path = Path(folder, name)
            # A broken link is listed; whoever reads it gets the error. Its size is unknown, -1.
            size = path.stat().st_size if path.exists() else -1
            yield path.relative_to(root).as_posix(), size


def _raise_unreadable(error: OSError) -> None:
    raise InputError(f"the folder {error.filename} cannot be read: {error.strerror}.") from error


@contextmanager
def _storage_errors(failure: str, advice: str = "") -> Iterator[None]:
    """Turn an error of the disk or the store into an InputError.

    A time-out of the lock is an OSError too, and passes as it is.
    """
    try:
        yield
    except (Timeout, InputError):
        raise
    # A store raises a ValueError for a name that it does not allow.
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise InputError(f"{failure}: {reason}{advice}.") from error


def find_index(path: str | Path, *, exists: bool = True) -> Storage:
    """Return the folder of an index of images.

    Raises:
        InputError: the path cannot be an index, or there is none although it has to exist.
    """
    storage = storage_of(path)
    folder, _, name = storage.root.rpartition("/")
    is_index = name.endswith(".lance")
    expect(is_index, "an index that ends in .lance", str(path), "such as photos.lance")
    is_supported = storage.is_local or folder.startswith(("s3://", "gs://", "az://"))
    expect(is_supported, "a table on this machine or at s3://, gs:// or az://", str(path))
    is_plain = re.fullmatch(r"[\w.-]+", name.removesuffix(".lance"), re.ASCII)
    expect(is_plain, "an index named by letters, digits, '-', '_' and '.'", name)
    advice = f"'captum-clip index FOLDER -o {storage.root}' makes one"
    expect(not exists or storage.holds_files(), "an index", storage.root, advice)
    return storage


def differences(before: Content, after: Content) -> list[str]:
    """Describe each setting in which two manifests differ, or parts of them."""
    from ..models.identity import part_agrees

    values_before = dict(_leaf_values(before))
    values_after = dict(_leaf_values(after))
    changes = []
    for name in {**values_before, **values_after}:
        old = values_before.get(name)
        new = values_after.get(name)
        if old == new:
            continue
        # The embeddings in a model's identity differ by rounding between machines.
        if ".identity." in name and part_agrees(str(old), str(new)):
            continue
        changes.append(f"{name} was {_shown(old)} and is {_shown(new)}")
    return changes


def _leaf_values(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a JSON value with their paths, such as "config.texts".

    A list of plain values is one leaf.
    """
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        value = {str(index): entry for index, entry in enumerate(value)}
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _leaf_values(child, f"{path}.{name}".lstrip("."))
    else:
        yield path, value


def _shown(value: Any) -> str:
    return excerpt(json.dumps(value, ensure_ascii=False), 200)


Item = TypeVar("Item")
Read = TypeVar("Read")


class Skipped(NamedTuple):
    """A sample that was left out, or a region or map of it.

    Args:
        number: number of the sample.
        reason: why it was left out.
        again: whether its unit is computed again, since an error of a disk may pass.
    """

    number: int
    reason: str
    again: bool = False

    @classmethod
    def of(cls, number: int, error: Exception) -> "Skipped":
        """Make the entry of a sample that could not be read."""
        reason = getattr(error, "reason", str(error))
        return cls(number, reason, is_io_error(error))

    @property
    def message(self) -> str:
        """The reason for people, and whether the sample is tried again."""
        if self.again:
            return f"{self.reason} It is tried again when the same command runs again."
        return self.reason


def list_images(
    images: Storage, output: Storage | None = None, *, limit: int | None = None, seed: int = 0
) -> dict[str, int]:
    """List the image files of a folder and the folders in it with their sizes, sorted by name.

    Hidden files and results are left out; the output may lie inside the folder. With a `limit`,
    :func:`captum_clip.files.draw_names` draws a sample. On this machine, figures of this package
    are recognized by their metadata and left out too.

    Raises:
        InputError: there is no folder or no image file in it, or the output is the same folder.
    """
    if output is not None and output.root == images.root:
        raise InputError(
            f"the results cannot go into the folder of the images, {images.root}; name another "
            "folder, such as one inside it."
        )
    sizes = images.files()
    names = image_names(sizes)
    root = f"{images.root.rstrip('/')}/"
    if output is not None and output.root.startswith(root):
        inside = f"{output.root.removeprefix(root)}/"
        names = [name for name in names if not name.startswith(inside)]
    names = draw_names(names, limit, seed)
    # In a store this would take a request for each image.
    if images.is_local:
        names = [name for name in names if not is_own_figure(Path(images.path, name))]
    if not names:
        raise InputError(f"there is no image file ({', '.join(IMAGE_ENDINGS)}) in {images.root}.")
    return {name: sizes[name] for name in names}


@dataclass(frozen=True)
class ImageReader(Generic[Read]):
    """Reads images one at a time, so that none depends on another; safe in several threads.

    Attributes:
        images: the folder.
        names: names of files in it, or whole paths on this machine.
        prepare: the last step, such as `preprocess_alone`.
    """

    images: Storage
    names: Sequence[str]
    prepare: Callable[[Image.Image], Read]

    def __call__(self, number: int) -> Read | Skipped:
        """Read and prepare the image of a number, or return why it is skipped."""
        try:
            return self._read(self.names[number])
        except InputError as error:
            skipped = Skipped.of(number, error)
            is_folder_lost = self.images.is_local and not os.path.isdir(self.images.root)
            # If the whole folder is gone, every remaining image would count as unreadable.
            if skipped.again and is_folder_lost:
                raise InputError(
                    f"the folder {self.images.root} cannot be reached; what is done is kept; run "
                    "the same command again when it is back."
                ) from error
            return skipped

    def _read(self, name: str) -> Read:
        content: bytes | None
        if self.images.is_local:
            content = read_file(Path(self.images.path, name), name)
        else:
            content = self.images.read(name)
        if content is None:
            missing = FileNotFoundError(errno.ENOENT, name)
            raise InputError(f"there is no image file {name}.") from missing
        image = decode_file(content, name, keep_mode=True)
        try:
            return self.prepare(image)
        # These are the errors that processors raise on unusual images.
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{name} cannot be preprocessed ({error}).") from error


def readable_images(
    paths: Sequence[Path], skipped: dict[Path, str], *, workers: int = 0, progress: str = ""
) -> Iterator[Image.Image]:
    """Read images of this machine one by one.

    The reason why an image cannot be read goes into `skipped`.
    """
    names = [str(path) for path in paths]
    # The images are wanted as they are, so the last step is one that changes nothing.
    reader = ImageReader(storage_of("."), names, Image.Image.copy)
    bar: Any = {"desc": progress, "unit": "image", "leave": False, "disable": not progress}
    with read_ahead(reader, range(len(paths)), workers) as read:
        for image in tqdm(read, total=len(paths), **bar):
            if isinstance(image, Skipped):
                skipped[paths[image.number]] = image.reason
            else:
                yield image
    # A path may be given twice.
    if all(path in skipped for path in paths):
        path, reason = next(iter(skipped.items()), ("", "no file was given"))
        raise InputError(f"none of the {len(paths)} images can be read; {path}: {reason}")


@contextmanager
def read_ahead(
    read: Callable[[Item], Read], items: Iterable[Item], workers: int, *, batch: int = 1
) -> Iterator[Iterator[Read]]:
    """Read items in their order in `workers` threads, or each item when it is due without any.

    Each thread reads at most two batches ahead. An error of `read` is raised in place of its
    result. No thread outlives the context.
    """
    with quiet(), ThreadPoolExecutor(max(workers, 1)) as pool:

        def results() -> Iterator[Read]:
            waiting: deque[Future[Read]] = deque()
            for item in items:
                # The limit of pixels is a context variable, so the other thread needs a copy.
                future = pool.submit(copy_context().run, read, item)
                waiting.append(future)
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
    """Return the lines of ``templates.txt`` in a folder, each with one "{}"; none without it."""
    path = folder / "templates.txt"
    with error_context(str(path)):
        if not path.exists():
            return []
        # An empty file is refused, as a template without a place for a name.
        lines = read_lines(path) or [""]
        return [check_template(line) for line in lines]
