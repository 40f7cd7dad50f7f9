"""The table of an index in LanceDB, and its rows: vectors of images, made here or on Ray Data."""

import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..attr.contributions import DirectContribution, any_target
from ..attr.registry import MethodChoice
from ..attr.removal import ReaderRemoval
from ..checks import (
    as_list,
    check_choice,
    excerpt,
    expand,
    expect,
    expecting,
    is_encodable,
    is_integer,
)
from ..errors import InputError, argument, parse_json
from ..explaining import regions
from ..folders.storage import (
    ImageReader,
    Skipped,
    Storage,
    find_index,
    list_images,
    read_ahead,
    storage_of,
)
from ..folders.workers import ModelLoader, RunConfig, full_name, map_on_ray, preprocess_alone
from ..models import ClipAdapter, differing_parts
from ..models.identity import fixed_images, summary
from ..targets.similarity import ClipSimilarity

_KEY, _FORMAT = "captum_clip", "captum_clip index 3"
_FIXED: Final = ("method", "precision", "grid")  # settings that say what a row holds
_IDENTITY: Final = ("weights", "image_embeddings", "text_embeddings", "preprocessing")
_FAILURES: Final = (OSError, ValueError, RuntimeError, LookupError, TypeError)  # of Lance, of Arrow
_FULL: Final = ("No space left", "quota exceeded", "File too large")
_NAMES_AT_ONCE: Final = 500  # files in one condition of a query
_LONGEST: Final = 1.0001  # squared length of a vector; a longer one has cosines above 1
Precision = Literal["int8", "float16"]
LARGEST_STORED: Final[dict[Precision, int]] = {"int8": 127, "float16": 1}
"""What the largest number of an image's vectors becomes."""
_LEAST_SCALE: Final = 1e-30  # the scale of an image whose vectors are all zero
_Result = TypeVar("_Result")
Numbers: TypeAlias = npt.NDArray[np.float32]


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
        paths = map(expand, as_list(images))
        # ".." may follow a link; the names of an index hold none
        names = [(p.resolve() if ".." in p.parts else p.absolute()).as_posix() for p in paths]
        folder, sizes = "", dict.fromkeys(names, 0)
    files = [File.of(storage, name, size) for name, size in sizes.items() if is_encodable(name)]
    unnamed = [name for name in sizes if not is_encodable(name)]
    return storage, folder, files, dict.fromkeys(unnamed, "its name is not text in UTF-8")


ROW_FIELDS: Final = (*File._fields, "vector", "contributions", "scale", "checksum")


class IndexTable:
    """A table with its settings, `about`; a failure of LanceDB is raised as an InputError."""

    def __init__(self, path: str | Path) -> None:
        try:
            import lancedb
        except ImportError as error:
            advice = "pip install 'captum-clip[search]'"
            raise InputError(f"an index of images needs LanceDB: {advice}.") from error
        self.storage, self.about = find_index(path, exists=False), dict[str, Any]()
        folder, _, name = self.storage.root.rpartition("/")
        # connecting makes the folder, so it waits until a table is opened or made
        self._connect = partial(lancedb.connect, folder or "/")
        self._name = name.removesuffix(".lance")
        self.lance: Any = None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except _FAILURES as error:
            reason = str(error).strip().partition("\n")[0].partition(", /")[0].rstrip(".")
            state, advice = "is not an index that can be read or written", "name another"
            if self.about:  # else it may be a folder of the user's
                state = "cannot be read or written"
                advice = "if it is damaged, delete it and build it again"
            if any(words in str(error) for words in _FULL):
                advice = "make room and run it again"
            sentence = f"{self.storage.root} {state} ({excerpt(reason, 200)}); {advice}."
            raise InputError(sentence) from error

    def _query(self, query: Callable[[], _Result]) -> _Result:
        """A query of the newest version, anew where another process removed files of it."""
        with self._errors():
            while True:
                version = None
                try:
                    self.lance.checkout_latest()
                    version = self.lance.version
                    return query()
                except _FAILURES:
                    self.lance.checkout_latest()
                    if self.lance.version == version:
                        raise

    def open(self, images: str = "") -> "IndexTable":
        """Open what is there, which may come from a stranger.

        Args:
            images: the folder, where it lies on other machines than the table; those are asked for
                nothing by the word of the table alone.

        Raises:
            InputError: no index, settings that none has, or names that lead out of its folder.
        """
        root = find_index(self.storage.root).root
        with self._errors():
            self.lance = self._connect().open_table(self._name)
            metadata = self.lance.schema.field("file").metadata or {}
        with expecting(f"a table of the kind {_FORMAT!r}", root, "name another"):
            written, _, content = metadata.get(_KEY.encode(), b"0 {}").partition(b" ")
            about = parse_json(content)
            if not (
                zlib.crc32(content) == int(written)
                and about.get("format") == _FORMAT
                and all(isinstance(about[name], str) for name in ("model", "method", "folder"))
                and all(isinstance(about["identity"][name], str) for name in _IDENTITY)
                and isinstance(about["image_size"], int | None)
                and about["precision"] in ("int8", "float16")
                and [is_integer(number, least=1) for number in about["grid"]] == [True] * 3
                and self.lance.schema == schema(about["grid"][-1])
            ):
                raise ValueError("its settings are others, or damaged")
        self.about, folder = about, about["folder"]
        is_here = "://" not in folder or folder.split("/")[:3] == root.split("/")[:3]
        if not is_here and folder != images.rstrip("/"):
            advice = f"to read them there, pass {argument('images', folder)}"
            raise InputError(f"{root} indexes images at {folder}; {advice}.")
        outside = "file IS NULL OR concat('/', file, '/') LIKE '%/../%'"
        outside += " OR file LIKE '/%'" * bool(folder)
        count = self._query(partial(self.lance.count_rows, outside))
        advice = f"{count} of the names lead out of it"
        expect(not count, "an index of images in its folder", root, advice)
        self._query(lambda: _check_distinct(self._columns("file")))
        return self

    def make(self, about: Mapping[str, Any], names: Collection[str] = ()) -> None:
        """Make a table, or open that of the same settings; one without images is made anew.

        Raises:
            InputError: it has others, or another folder that was not moved: it still exists, or
                none of the `names` is in the table.
        """
        about = {"format": _FORMAT, **json.loads(json.dumps(about))}
        if self.storage.holds_files() and len(self.open(about["folder"])):
            before, old = self.about, storage_of(self.about["folder"] or ".")
            differing = differing_parts(before["identity"], about["identity"])
            changes = [f"the model has other {name}" for name in differing]
            fixed = [(name, before[name], about[name]) for name in _FIXED]
            changes += [f"{name} was {a} and is {b}" for name, a, b in fixed if a != b]
            # a folder that was moved keeps its index
            is_moved = not old.system.isdir(old.path) and any(f.file in names for f in self.files())
            if before["folder"] != about["folder"] and not is_moved:
                changes.append(f"it is of {before['folder'] or 'files'}")
            if changes:
                what = f"{self.storage.root} is another index ({'; '.join(changes)})"
                raise InputError(f"{what}; name a new one.")
        content = json.dumps(about)
        settings = {_KEY: f"{zlib.crc32(content.encode())} {content}"}
        with self._errors():
            if self.lance is None or not len(self):
                columns, mode = schema(about["grid"][-1]), "overwrite" if self.about else "create"
                columns = columns.set(0, columns.field(0).with_metadata(settings))
                self.lance = self._connect().create_table(self._name, schema=columns, mode=mode)
            elif self.about != about:
                self.lance.update_field_metadata({"path": "file", "metadata": settings})
        self.about = about

    def __len__(self) -> int:
        return int(self._query(self.lance.count_rows))

    def files(self) -> list[File]:
        """All files."""
        return files_of(self._query(partial(self._columns, *File._fields)))

    def _columns(self, *names: str, start: int = 0) -> Any:
        return self.lance.search().select([*names]).offset(start).limit(None).to_arrow()

    def remove(self, names: Sequence[str]) -> None:
        """Remove the rows of files."""
        with self._errors():
            for condition in _among(names):
                self.lance.delete(condition)

    def add(self, rows: Any) -> None:
        """Append an Arrow table, whole or not at all."""
        with self._undone_unless_whole(len(self)):
            self.lance.add(rows)

    def compact(self) -> None:
        """Keep few large files, and none of what was removed."""
        with self._undone_unless_whole(0):
            self.lance.optimize()  # which leaves the versions of the last week
        with self._errors():
            self.lance.optimize(cleanup_older_than=timedelta(milliseconds=1))

    @contextmanager
    def _undone_unless_whole(self, start: int) -> Iterator[None]:
        """Go back to the version before where rows from so many on cannot be read afterwards.

        LanceDB 0.40 commits a file whose last bytes found no room, without an error.
        """
        with self._errors():
            before = self.lance.version
            yield
            try:
                self._columns("file", start=start)
            except _FAILURES as error:
                self.lance.restore(before)
                raise OSError("No space left for what was written") from error

    def rows(self, names: Sequence[str]) -> Any:
        """An Arrow table of those of some files that are there, in their order."""
        import pyarrow

        def read() -> Any:
            queries = (self.lance.search().where(condition) for condition in _among(names))
            tables = (query.limit(None).to_arrow() for query in queries)
            return self._checked(pyarrow.concat_tables([self.lance.schema.empty_table(), *tables]))

        rows = self._query(read)
        numbers = {name: number for number, name in enumerate(rows["file"].to_pylist())}
        order = [numbers[name] for name in names if name in numbers]
        return rows.take(np.array(order, dtype=np.int64))

    def nearest(self, direction: Numbers, top: int) -> Any:
        """An Arrow table of the rows whose vectors have the largest products with a direction."""

        def read() -> Any:
            most = min(top, self.lance.count_rows())
            query = self.lance.search(direction, vector_column_name="vector").distance_type("dot")
            # LanceDB refuses 0, and numbers past 64 bits
            rows = query.limit(max(1, most)).select([*ROW_FIELDS, "_distance"]).to_arrow()
            # no query finds a vector of NaN; an index of vectors may miss others, too
            is_short = len(rows) < most and not self.lance.list_indices()
            return self._checked(rows, most if is_short else 0)

        return self._query(read)

    def _checked(self, rows: Any, least: int = 0) -> Any:
        """Rows that are so many, of finite numbers, as they were written; ValueError otherwise."""
        _check_distinct(rows)
        precision, whole = self.about["precision"], rows.drop_null()
        size = math.prod(self.about["grid"]) * np.dtype(precision).itemsize
        columns = (whole[name].to_pylist() for name in ("file", *ROW_FIELDS[-3:]))
        damaged = list[str]()
        for vector, name, numbers, scale, written in zip(vectors_of(whole), *columns, strict=True):
            is_whole = checksum(vector, numbers, scale, self.about) == written
            is_whole &= len(numbers) == size and np.square(vector, dtype=float).sum() < _LONGEST
            values = np.append(scale, np.frombuffer(numbers if is_whole else b"", precision))
            if not is_whole or not np.isfinite(values).all():
                damaged.append(name)
        if count := max(least, len(rows)) - len(whole) + len(damaged):
            raise ValueError(f"{count} rows are damaged: {', '.join(damaged[:3])}".rstrip(": "))
        return rows


def _among(names: Sequence[str]) -> Iterator[str]:
    """Conditions that a row is of one of some files."""
    quoted = ["'{}'".format(name.replace("'", "''")) for name in names]
    for start in range(0, len(quoted), _NAMES_AT_ONCE):
        yield f"file IN ({', '.join(quoted[start : start + _NAMES_AT_ONCE])})"


def _check_distinct(rows: Any) -> None:
    """ValueError where two rows are of one file."""
    if len(rows["file"].unique()) < len(rows):
        [(name, _)] = Counter(rows["file"].to_pylist()).most_common(1)
        raise ValueError(f"several rows are of {name}")


def files_of(rows: Any) -> list[File]:
    """The files of an Arrow table, in its order."""
    return [*map(File, *rows.select(File._fields).to_pydict().values())]


def vectors_of(rows: Any) -> Numbers:
    """The unit embeddings (N, E) of an Arrow table."""
    flat: Numbers = rows["vector"].combine_chunks().flatten().to_numpy(False, True)
    return flat.reshape(len(rows), rows["vector"].type.list_size)


def checksum(vector: Numbers, contributions: bytes, scale: float, about: Mapping[str, Any]) -> int:
    """CRC-32 of what a row keeps of its image, with the settings that say what that is."""
    settings = json.dumps([about["identity"]["weights"], *map(about.__getitem__, _FIXED)])
    numbers = np.append(vector, np.float32(scale)).tobytes()
    return zlib.crc32(contributions, zlib.crc32(numbers, zlib.crc32(settings.encode())))


def schema(dimension: int) -> Any:
    """The columns of a table of embeddings of so many numbers."""
    import pyarrow as pa

    vector = pa.list_(pa.float32(), dimension)
    numbers = (vector, pa.binary(), pa.float32(), pa.uint32())
    kinds = (pa.string(), pa.int64(), pa.int64(), *numbers)
    return pa.schema([*zip(ROW_FIELDS, kinds, strict=True)])


class RowMaker:
    """Makes the rows of images; a process of Ray loads the model by its name.

    InputError for a method or settings whose vectors cannot be kept.
    """

    def __init__(
        self, images: Storage, clip: ClipAdapter, method: str, precision: Precision, **settings: Any
    ) -> None:
        check_choice(precision, LARGEST_STORED, name="precision")
        choice = MethodChoice.of(method, tower=clip.tower)
        options = {**choice.options}
        direct = choice.method is DirectContribution and "per" not in options
        # of removal the vectors are those of maps whose cells share nothing
        fits = direct or (choice.method is ReaderRemoval and options.pop("share", "") is None)
        expect(fits, "direct without `per`, or removal:share=None, which have vectors", choice.name)
        self.images, self.options, self.precision = images, options, precision
        self.method: Any = choice.method
        self.config = config = RunConfig(**{"chunk_size": 512, **settings})
        self.clip: ClipAdapter | None = clip
        self.models = ModelLoader(config.processor, config.tokenizer, config.image_size)
        blank = clip.preprocess(Image.new("RGB", (64, 64)))
        self.size = (blank.shape[-2], blank.shape[-1])
        self.about: dict[str, Any] = {
            "model": full_name(clip.name),
            "identity": {**clip.identity(), "preprocessing": preprocessing_of(clip)},
            "image_size": None if self.size == clip.tower.native else self.size[0],
            "method": choice.name,
            "precision": precision,
            "grid": tuple(self.split(clip, blank)[1].shape[1:]),  # (h, w, E)
        }

    def __getstate__(self) -> dict[str, Any]:
        # a model is large, and may not be picklable: a worker loads it by its name
        return {**vars(self), "clip": None}

    def split(self, clip: ClipAdapter, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings (B, E) of images, and the positions' shares in them (B, h, w, E)."""
        method = self.method(ClipSimilarity(clip, any_target(clip)))
        images = images.to(clip.device, clip.dtype)
        shares, rest = method.vectors(images, return_rest=True, **self.options)
        return (shares.sum((1, 2)) + rest).cpu(), shares.cpu()

    def tables(self, files: Sequence[File]) -> Iterator[Any]:
        """The rows of a chunk of files at a time, as :meth:`table` makes them."""
        size = self.config.chunk_size
        chunks = [files[start : start + size] for start in range(0, len(files), size)]
        if self.config.engine == "local":
            for chunk in chunks:
                yield self.table(chunk, self.config.processes)
        elif chunks:
            yield from map_on_ray(self.config, lambda n: self.table(chunks[n]), len(chunks))

    def table(self, files: Sequence[File], readers: int = 0) -> Any:
        """An Arrow table of the rows of files, each with a reason if it cannot be read."""
        import pyarrow

        if self.clip is None:
            model, identity = self.about["model"], {**self.about["identity"]}
            self.clip = self.models.load(model, self.config.device, identity)
        clip, size, rows = self.clip, self.config.batch_size, list[dict[str, Any]]()
        prepare = partial(preprocess_alone, clip.processor, self.size)
        reader = ImageReader(self.images, [file.file for file in files], prepare)
        with read_ahead(reader, range(len(files)), readers, batch=size) as images:
            while batch := list(islice(images, size)):
                whole = [image for image in batch if isinstance(image, Tensor)]
                kept = self._kept(*self.split(clip, torch.stack(whole))) if whole else iter(())
                for image in batch:
                    row = {"reason": image.reason} if isinstance(image, Skipped) else next(kept)
                    rows.append(files[len(rows)]._asdict() | row)
        columns = schema(self.about["grid"][-1]).append(pyarrow.field("reason", pyarrow.string()))
        return pyarrow.Table.from_pylist(rows, schema=columns)

    def _kept(self, embeddings: Tensor, shares: Tensor) -> Iterator[dict[str, Any]]:
        embeddings = F.normalize(embeddings.float(), dim=-1)  # which in half precision they are not
        for embedding, vectors in zip(embeddings, shares.numpy(), strict=True):
            largest = float(np.abs(vectors).max())
            if not np.isfinite(largest) or not embedding.isfinite().all():
                yield {"reason": "its embedding holds NaN or infinity"}
                continue
            scale = max(largest / LARGEST_STORED[self.precision], _LEAST_SCALE)
            numbers = np.rint(vectors / scale) if self.precision == "int8" else vectors / scale
            row: dict[str, Any] = {"vector": embedding.numpy(), "scale": scale}
            row["contributions"] = numbers.astype(self.precision).tobytes()
            yield {**row, "checksum": checksum(**row, about=self.about), "reason": ""}


def contributions_of(rows: Any, about: Mapping[str, Any]) -> Tensor:
    """The positions' vectors (N, h, w, E) of the rows of a table."""
    numbers = np.frombuffer(b"".join(rows["contributions"].to_pylist()), about["precision"])
    scales = rows["scale"].to_numpy()[:, None, None, None]
    return torch.from_numpy(numbers.reshape(len(rows), *about["grid"]) * scales)


def preprocessing_of(clip: ClipAdapter) -> str:
    """Numbers of preprocessed fixed images, which agree where maps lie on the same pixels.

    The means of 7 x 7 tiles differ by .04 of their length for a crop that is off by a pixel, as
    that of another library may be, and by .3 for another scale. The bound of numbers that agree is
    .001, so that it is .1 of a hundredth.
    """
    pixels = (clip.preprocess(image) for image in fixed_images())
    tiles = (F.adaptive_avg_pool2d(each.float().cpu(), 7).flatten(1) for each in pixels)
    return summary(F.normalize(each) / 100 for each in tiles)


def read_unchanged(
    clip: ClipAdapter, images: Storage, files: Sequence[File]
) -> tuple[list[regions.PreprocessedImages], dict[str, str]]:
    """Images as a model takes them, and why the others were skipped: gone, damaged or changed."""
    reader = ImageReader(images, [file.file for file in files], partial(regions.preprocess, clip))
    read, skipped = list[regions.PreprocessedImages](), dict[str, str]()
    for number, file in enumerate(files):
        image = reader(number)
        if isinstance(image, Skipped):
            skipped[file.file] = image.reason
        elif File.of(images, file.file) != file:
            skipped[file.file] = "it has changed; build the index again"
        else:
            read.append(image._replace(photos=()))  # as they were, of which nobody draws one
    return read, skipped
