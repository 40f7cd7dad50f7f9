"""The table of an index in LanceDB: which files it holds, and their vectors."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ..checks import as_list, excerpt, expand, expect, is_encodable
from ..errors import InputError
from ..evaluation.image_batches import list_images
from ..evaluation.storage import Storage, storage_of
from ..models import differing_parts

_KEY, _FORMAT = "captum_clip", "captum_clip index 1"
_FAILURES: Final = (OSError, ValueError, RuntimeError, LookupError, TypeError)  # of Lance, of Arrow
_NAMES: Final = 500  # files in one condition of a query


class File(NamedTuple):
    """A file with what tells that it was replaced: its size, and its date in nanoseconds."""

    file: str
    bytes: int = 0
    modified: int = 0

    @classmethod
    def of(cls, storage: Storage, name: str, size: int | None = None) -> "File":
        """A file as it is now; on another machine without its date, and with the size if known."""
        try:
            if storage.is_local:
                status = Path(storage.path, name).stat()
                return cls(name, status.st_size, status.st_mtime_ns)
            size = storage.system.size(f"{storage.path}/{name}") if size is None else size
        except (OSError, ValueError):  # the reader says why, with the name of the image
            size = 0
        return cls(name, size or 0)


def list_files(
    images: str | Path | Sequence[str | Path],
) -> tuple[Storage, str, list[File], dict[str, str]]:
    """Where images lie, their folder, the files, and why some of them cannot be in a table.

    For a list of files, the folder is "" and the names are whole paths.
    """
    if isinstance(images, (str, Path)):
        storage = storage_of(images)
        folder, sizes = storage.root, list_images(storage)
    else:
        storage = storage_of(".")
        paths = [expand(path).absolute().as_posix() for path in as_list(images)]
        folder, sizes = "", dict.fromkeys(paths, 0)
    files = [File.of(storage, name, size) for name, size in sizes.items() if is_encodable(name)]
    unnamed = [name for name in sizes if not is_encodable(name)]
    return storage, folder, files, dict.fromkeys(unnamed, "its name is no text in UTF-8")


COLUMNS: Final = (*File._fields, "vector", "contributions", "scale")


class Table:
    """A table with its settings, `about`; a failure of LanceDB is raised as an InputError."""

    def __init__(self, path: str | Path) -> None:
        try:
            import lancedb
        except ImportError as error:
            advice = "pip install 'captum-clip[search]'"
            raise InputError(f"an index of images needs LanceDB: {advice}.") from error
        self.storage, self.about = storage_of(path), dict[str, Any]()
        folder, _, name = self.storage.root.rpartition("/")
        ending = "an index that ends in .lance"
        expect(name.endswith(".lance"), ending, str(path), "such as photos.lance")
        plain = re.fullmatch(r"[\w.-]+", name.removesuffix(".lance"), re.ASCII)
        expect(plain, "an index named by letters, digits, '-', '_' and '.'", name)
        # Connecting makes the folder, so it waits until a table is opened or made. Without the
        # interval, an index that is open would not see what another process has written.
        fresh: Any = {"read_consistency_interval": timedelta(0)}
        self._connect = partial(lancedb.connect, folder or "/", **fresh)
        self._name = name.removesuffix(".lance")
        self.lance: Any = None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except _FAILURES as error:
            reason = str(error).strip().partition("\n")[0].partition(", /")[0].rstrip(".")
            raise InputError(
                f"the index {self.storage.root} cannot be read or written "
                f"({excerpt(reason, 200)}); if it is damaged, delete it and build it again."
            ) from error

    def _exists(self) -> bool:
        system, path = self.storage.system, self.storage.path
        return system.isdir(path) and any(name[0] != "." for name in self.storage.files())

    def open(self) -> "Table":
        """Open what is there; InputError where that is no index."""
        root = self.storage.root
        made = f"'captum-clip index FOLDER -o {root}' makes one"
        expect(self._exists(), "an index", root, made)
        with self._errors():
            self.lance = self._connect().open_table(self._name)
            metadata = self.lance.schema.field("file").metadata or {}
            self.about = json.loads(metadata.get(_KEY.encode(), b"{}"))
        is_index = self.about.get("format") == _FORMAT
        expect(is_index, f"a table of the kind {_FORMAT!r}", root, "name another")
        return self

    def make(self, about: Mapping[str, Any]) -> None:
        """Make a table, or open that of the same settings; one without images is made anew.

        Raises:
            InputError: it has others, or another folder that still exists.
        """
        about = {"format": _FORMAT, **json.loads(json.dumps(about))}
        if self._exists() and len(self.open()):
            before, old = self.about, storage_of(self.about["folder"] or ".")
            differing = differing_parts(before["identity"], about["identity"])
            changes = [f"the model has other {name}" for name in differing]
            changes += [
                f"{name} was {before[name]} and is {about[name]}"
                for name in ("method", "precision", "grid")
                if before[name] != about[name]
            ]
            # a folder that is gone was moved, and keeps its index
            if before["folder"] != about["folder"] and old.system.isdir(old.path):
                changes.append(f"it is of {before['folder'] or 'files'}")
            if changes:
                listed = "; ".join(changes)
                raise InputError(
                    f"{self.storage.root} is another index ({listed}); name a new one."
                )
        settings = {_KEY: json.dumps(about)}
        with self._errors():
            if self.lance is None or not len(self):
                columns, mode = schema(about["grid"][-1]), "overwrite" if self.about else "create"
                columns = columns.set(0, columns.field(0).with_metadata(settings))
                self.lance = self._connect().create_table(self._name, schema=columns, mode=mode)
            elif self.about != about:
                self.lance.update_field_metadata({"path": "file", "metadata": settings})
        self.about = about

    def __len__(self) -> int:
        with self._errors():
            return int(self.lance.count_rows())

    def files(self) -> list[File]:
        """All files."""
        with self._errors():
            return files_of(self.lance.search().select([*File._fields]).limit(None).to_arrow())

    def remove(self, names: Sequence[str]) -> None:
        """Remove the rows of files."""
        with self._errors():
            for condition in _among(names):
                self.lance.delete(condition)

    def add(self, rows: Any) -> None:
        """Append an Arrow table, whole or not at all."""
        with self._errors():
            self.lance.add(rows)

    def compact(self) -> None:
        """Keep few large files, and none of what was removed."""
        with self._errors():
            self.lance.optimize(cleanup_older_than=timedelta(milliseconds=1))

    def rows(self, names: Sequence[str]) -> Any:
        """An Arrow table of those of some files that are there, in their order."""
        import pyarrow

        with self._errors():
            tables = [self.lance.schema.empty_table()]
            for condition in _among(names):
                tables.append(self.lance.search().where(condition).limit(None).to_arrow())
        rows = pyarrow.concat_tables(tables)
        numbers = {name: number for number, name in enumerate(rows["file"].to_pylist())}
        wanted = [numbers[name] for name in names if name in numbers]
        return rows.take(np.array(wanted, dtype=np.int64))

    def nearest(self, direction: npt.NDArray[np.float32], top: int) -> Any:
        """An Arrow table of the rows whose vectors have the largest products with a direction."""
        top = min(top, max(1, len(self)))  # LanceDB refuses 0, and numbers past 64 bits
        with self._errors():
            query = self.lance.search(direction, vector_column_name="vector").distance_type("dot")
            return query.limit(top).select([*COLUMNS, "_distance"]).to_arrow()


def _among(names: Sequence[str]) -> Iterator[str]:
    """Conditions that a row is of one of some files."""
    quoted = ["'{}'".format(name.replace("'", "''")) for name in names]
    for start in range(0, len(quoted), _NAMES):
        yield f"file IN ({', '.join(quoted[start : start + _NAMES])})"


def files_of(rows: Any) -> list[File]:
    """The files of an Arrow table, in its order."""
    return [*map(File, *rows.select(File._fields).to_pydict().values())]


def vectors_of(rows: Any) -> npt.NDArray[np.float32]:
    """The unit embeddings (N, E) of an Arrow table."""
    flat: npt.NDArray[np.float32] = rows["vector"].combine_chunks().flatten().to_numpy(False, True)
    return flat.reshape(len(rows), rows["vector"].type.list_size)


def schema(dimension: int) -> Any:
    """The columns of a table of embeddings of so many numbers."""
    import pyarrow as pa

    vector = pa.list_(pa.float32(), dimension)
    kinds = (pa.string(), pa.int64(), pa.int64(), vector, pa.binary(), pa.float32())
    return pa.schema([*zip(COLUMNS, kinds, strict=True)])
