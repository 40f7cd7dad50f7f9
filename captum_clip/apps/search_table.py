"""The table of an index in LanceDB, and the rows of images in it, made here or on Ray Data."""

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
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, get_args

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

_KEY: Final = "captum_clip"
_FORMAT: Final = "captum_clip index 3"
_FIXED: Final = ("method", "precision", "grid")
"""Settings that say what a row holds; they never change in a table."""
_IDENTITY: Final = ("weights", "image_embeddings", "text_embeddings", "preprocessing")
_FAILURES: Final = (OSError, ValueError, RuntimeError, LookupError, TypeError)
"""What Lance and Arrow raise."""
_DISK_FULL: Final = ("No space left", "quota exceeded", "File too large")
_NAMES_AT_ONCE: Final = 500
"""Files in one condition of a query."""
_LONGEST: Final = 1.0001
"""Squared length that no unit embedding reaches; a longer one has cosines above 1."""
Precision = Literal["int8", "float16"]
LARGEST_STORED: Final[dict[Precision, int]] = {"int8": 127, "float16": 1}
"""The stored value of the largest number in an image's vectors."""
_LEAST_SCALE: Final = 1e-30
"""The scale of an image whose vectors are all zero."""
_Result = TypeVar("_Result")
Numbers: TypeAlias = npt.NDArray[np.float32]


class File(NamedTuple):
    """A file with its size in bytes and its date in nanoseconds, which tell if it was replaced."""

    file: str
    bytes: int = 0
    modified: int = 0

    @classmethod
    def of(cls, storage: Storage, name: str, size: int | None = None) -> "File":
        """Describe a file as it is now; on another machine it has no date.

        There the size is looked up unless it is given.
        """
        # A file that cannot be looked up is no error here: the reader of the image reports it.
        try:
            if storage.is_local:
                status = Path(storage.path, name).stat()
                return cls(name, status.st_size, status.st_mtime_ns)
            if size is None:
                size = storage.system.size(f"{storage.path}/{name}")
        except (OSError, ValueError):
            size = 0
        return cls(name, size or 0)


def list_files(
    images: str | Path | Sequence[str | Path],
) -> tuple[Storage, str, list[File], dict[str, str]]:
    """List images: their storage, their folder, the files, and reasons to leave some out, by name.

    For a list of files, the folder is "" and the names are whole paths.
    """
    sizes: dict[str, int] = {}
    if isinstance(images, (str, Path)):
        storage = storage_of(images)
        folder = storage.root
        sizes = list_images(storage)
    else:
        storage = storage_of(".")
        folder = ""
        for image in as_list(images):
            path = expand(image)
            # No name in an index holds "..", which after a link leads elsewhere than it reads.
            path = path.resolve() if ".." in path.parts else path.absolute()
            sizes[path.as_posix()] = 0
    files: list[File] = []
    left_out: dict[str, str] = {}
    for name, size in sizes.items():
        if is_encodable(name):
            files.append(File.of(storage, name, size))
        else:
            left_out[name] = "its name is not text in UTF-8"
    return storage, folder, files, left_out


ROW_FIELDS: Final = (*File._fields, "vector", "contributions", "scale", "checksum")


class IndexTable:
    """A table of LanceDB; its failures are raised as InputErrors.

    Attributes:
        storage: the folder of the table.
        about: the settings of the table; empty until it is opened or made.
        lance: the table itself; None until then.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import lancedb
        except ImportError as error:
            advice = "pip install 'captum-clip[search]'"
            raise InputError(f"an index of images needs LanceDB: {advice}.") from error
        self.storage = find_index(path, exists=False)
        self.about: dict[str, Any] = {}
        folder, _, name = self.storage.root.rpartition("/")
        # Connecting creates the folder, so it waits until a table is opened or made.
        self._connect = partial(lancedb.connect, folder or "/")
        self._name = name.removesuffix(".lance")
        self.lance: Any = None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn an error of Lance or Arrow into an InputError that says what to do."""
        try:
            yield
        except _FAILURES as error:
            first_line = str(error).strip().partition("\n")[0]
            # Rust adds the path of its source after ", ".
            reason = first_line.partition(", /")[0].rstrip(".")
            # Without settings it may be any folder of the user, who must not be told to delete it.
            state = "is not an index that can be read or written"
            advice = "name another"
            if self.about:
                state = "cannot be read or written"
                advice = "if it is damaged, delete it and build it again"
            if any(words in str(error) for words in _DISK_FULL):
                advice = "make room and run it again"
            sentence = f"{self.storage.root} {state} ({excerpt(reason, 200)}); {advice}."
            raise InputError(sentence) from error

    def _query(self, query: Callable[[], _Result]) -> _Result:
        """Run a query on the newest version; again if another process has replaced that version."""
        with self._errors():
            while True:
                version = None
                try:
                    self.lance.checkout_latest()
                    version = self.lance.version
                    return query()
                except _FAILURES:
                    # The files of a version may be removed while it is read. Then there is a newer
                    # one to query; otherwise the failure is real.
                    self.lance.checkout_latest()
                    if self.lance.version == version:
                        raise

    def open(self, images: str = "") -> "IndexTable":
        """Open an existing table, which may come from a stranger.

        Args:
            images: URL of the images' folder if it is on another machine than the table. No machine
                is contacted just because the table names it.

        Raises:
            InputError: there is no index, its settings are none that an index has, or names of
                files lead out of its folder.
        """
        root = find_index(self.storage.root).root
        with self._errors():
            self.lance = self._connect().open_table(self._name)
            metadata = self.lance.schema.field("file").metadata or {}
        with expecting(f"a table of the kind {_FORMAT!r}", root, "name another"):
            # The settings follow their checksum. Another table has none, and fails the check below.
            crc, _, content = metadata.get(_KEY.encode(), b"0 {}").partition(b" ")
            about = parse_json(content)
            if zlib.crc32(content) != int(crc) or not self._can_be_settings(about):
                raise ValueError("its settings are others, or damaged")
        self.about = about
        folder = about["folder"]
        is_here = "://" not in folder or folder.split("/")[:3] == root.split("/")[:3]
        if not is_here and folder != images.rstrip("/"):
            advice = f"to read them there, pass {argument('images', folder)}"
            raise InputError(f"{root} indexes images at {folder}; {advice}.")
        # Reading an image must not lead out of the folder, whatever a stranger has written.
        outside = "file IS NULL OR concat('/', file, '/') LIKE '%/../%'"
        if folder:
            outside += " OR file LIKE '/%'"
        count = self._query(partial(self.lance.count_rows, outside))
        advice = f"{count} of the names lead out of it"
        expect(not count, "an index of images in its folder", root, advice)
        self._query(lambda: _check_distinct(self._columns("file")))
        return self

    def _can_be_settings(self, about: Any) -> bool:
        """Tell whether settings are of this format and describe the columns of the table.

        A setting that is missing raises a KeyError, which :meth:`open` reports like a wrong one.
        """
        if about.get("format") != _FORMAT:
            return False
        texts = [about["model"], about["method"], about["folder"]]
        texts += [about["identity"][name] for name in _IDENTITY]
        if not all(isinstance(text, str) for text in texts):
            return False
        if not isinstance(about["image_size"], int | None):
            return False
        # The value may be a list, which cannot be looked up in a set or a dictionary.
        if about["precision"] not in get_args(Precision):
            return False
        grid = about["grid"]
        if len(grid) != 3 or not all(is_integer(number, least=1) for number in grid):
            return False
        return bool(self.lance.schema == schema(grid[-1]))

    def make(self, about: Mapping[str, Any], names: Collection[str] = ()) -> None:
        """Make a table, or open the table with these settings. A table without images is made anew.

        Args:
            about: the settings.
            names: files of the images, by which a folder is recognized after it was moved.

        Raises:
            InputError: the existing table has other settings, or is of another folder which was not
                moved here: it still exists, or none of the `names` is in the table.
        """
        # The settings of an existing table were read from JSON, where a tuple is a list.
        about = {"format": _FORMAT, **json.loads(json.dumps(about))}
        if self.storage.holds_files() and len(self.open(about["folder"])):
            changes = self._changes(about, names)
            if changes:
                what = f"{self.storage.root} is another index ({'; '.join(changes)})"
                raise InputError(f"{what}; name a new one.")
        content = json.dumps(about)
        settings = {_KEY: f"{zlib.crc32(content.encode())} {content}"}
        with self._errors():
            if self.lance is None or not len(self):
                columns = schema(about["grid"][-1])
                columns = columns.set(0, columns.field(0).with_metadata(settings))
                mode = "overwrite" if self.about else "create"
                self.lance = self._connect().create_table(self._name, schema=columns, mode=mode)
            elif self.about != about:
                self.lance.update_field_metadata({"path": "file", "metadata": settings})
        self.about = about

    def _changes(self, about: Mapping[str, Any], names: Collection[str]) -> list[str]:
        """Say how settings differ from those of the table, if it cannot be continued with them."""
        before = self.about
        differing = differing_parts(before["identity"], about["identity"])
        changes = [f"the model has other {part}" for part in differing]
        for name in _FIXED:
            if before[name] != about[name]:
                changes.append(f"{name} was {before[name]} and is {about[name]}")
        if before["folder"] != about["folder"]:
            old_folder = storage_of(before["folder"] or ".")
            exists = old_folder.system.isdir(old_folder.path)
            # A folder that was moved keeps its index.
            is_moved = not exists and any(file.file in names for file in self.files())
            if not is_moved:
                changes.append(f"it is of {before['folder'] or 'files'}")
        return changes

    def __len__(self) -> int:
        return int(self._query(self.lance.count_rows))

    def files(self) -> list[File]:
        """List the files of all rows."""
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
        """Merge the table into a few large files without the rows that were removed."""
        with self._undone_unless_whole(0):
            # This leaves the versions of the last week, which the second call removes.
            self.lance.optimize()
        with self._errors():
            self.lance.optimize(cleanup_older_than=timedelta(milliseconds=1))

    @contextmanager
    def _undone_unless_whole(self, start: int) -> Iterator[None]:
        """Go back to the version before the block if rows cannot be read after it.

        LanceDB 0.40 commits a file whose last bytes found no room, without an error.

        Args:
            start: number of the first row to read.
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
        """Read the rows of some files as an Arrow table, in their order, without absent ones."""
        import pyarrow

        def read() -> Any:
            tables = [self.lance.schema.empty_table()]
            for condition in _among(names):
                query = self.lance.search().where(condition)
                tables.append(query.limit(None).to_arrow())
            return self._checked(pyarrow.concat_tables(tables))

        rows = self._query(read)
        numbers = {name: number for number, name in enumerate(rows["file"].to_pylist())}
        order = [numbers[name] for name in names if name in numbers]
        return rows.take(np.array(order, dtype=np.int64))

    def nearest(self, direction: Numbers, top: int) -> Any:
        """Read the rows whose vectors have the largest products with a direction, as Arrow."""

        def read() -> Any:
            most = min(top, self.lance.count_rows())
            query = self.lance.search(direction, vector_column_name="vector").distance_type("dot")
            # LanceDB refuses a limit of 0, and one past 64 bits.
            query = query.limit(max(1, most))
            rows = query.select([*ROW_FIELDS, "_distance"]).to_arrow()
            # No query finds a vector of NaN. An index of vectors may miss other rows as well, so
            # with one a missing row is no sign of damage.
            is_exhaustive = not self.lance.list_indices()
            return self._checked(rows, most if is_exhaustive else 0)

        return self._query(read)

    def _checked(self, rows: Any, least: int = 0) -> Any:
        """Return rows as they are, if there are enough of them and none is damaged.

        Raises:
            ValueError: there are fewer than `least`, two are of one file, or one has other contents
                than were written or numbers that are not finite.
        """
        _check_distinct(rows)
        complete = rows.drop_null()
        contents = complete.select(["file", *ROW_FIELDS[-3:]]).to_pylist()
        damaged: list[str] = []
        for vector, row in zip(vectors_of(complete), contents, strict=True):
            if not self._is_intact(vector, row):
                damaged.append(row["file"])
        # This counts rows that are missing, that lack a value, or whose numbers are wrong.
        count = max(least, len(rows)) - len(complete) + len(damaged)
        if count:
            # Rows that are missing or incomplete may have no name.
            examples = f": {', '.join(damaged[:3])}" if damaged else ""
            raise ValueError(f"{count} rows are damaged{examples}")
        return rows

    def _is_intact(self, vector: Numbers, row: Mapping[str, Any]) -> bool:
        """Tell whether a row is as it was written, with finite numbers of the right count."""
        contributions = row["contributions"]
        scale = row["scale"]
        if checksum(vector, contributions, scale, self.about) != row["checksum"]:
            return False
        precision = self.about["precision"]
        size = math.prod(self.about["grid"]) * np.dtype(precision).itemsize
        if len(contributions) != size or not math.isfinite(scale):
            return False
        # A stranger can write a table with valid checksums. Its vectors may hold NaN, for which
        # this comparison is false.
        fits = np.square(vector, dtype=float).sum() < _LONGEST
        return bool(fits and np.isfinite(np.frombuffer(contributions, precision)).all())


def _among(names: Sequence[str]) -> Iterator[str]:
    """Yield SQL conditions that together select the rows of some files."""
    quoted = ["'{}'".format(name.replace("'", "''")) for name in names]
    for start in range(0, len(quoted), _NAMES_AT_ONCE):
        part = quoted[start : start + _NAMES_AT_ONCE]
        yield f"file IN ({', '.join(part)})"


def _check_distinct(rows: Any) -> None:
    """Raise a ValueError if two rows are of one file."""
    if len(rows["file"].unique()) < len(rows):
        [(name, _)] = Counter(rows["file"].to_pylist()).most_common(1)
        raise ValueError(f"several rows are of {name}")


def files_of(rows: Any) -> list[File]:
    """Return the files of an Arrow table, in its order."""
    columns = rows.select(File._fields).to_pydict()
    return [File(*values) for values in zip(*columns.values(), strict=True)]


def vectors_of(rows: Any) -> Numbers:
    """Return the unit embeddings (N, E) of an Arrow table."""
    column = rows["vector"]
    flat: Numbers = column.combine_chunks().flatten().to_numpy(zero_copy_only=False, writable=True)
    return flat.reshape(len(rows), column.type.list_size)


def checksum(vector: Numbers, contributions: bytes, scale: float, about: Mapping[str, Any]) -> int:
    """Return the CRC-32 of a row's numbers and of the settings that they were computed with."""
    settings = json.dumps([about["identity"]["weights"], *(about[name] for name in _FIXED)])
    numbers = np.append(vector, np.float32(scale)).tobytes()
    return zlib.crc32(settings.encode() + numbers + contributions)


def schema(dimension: int) -> Any:
    """Return the Arrow schema of a table of embeddings with so many numbers."""
    import pyarrow as pa

    types = {
        "file": pa.string(),
        "bytes": pa.int64(),
        "modified": pa.int64(),
        "vector": pa.list_(pa.float32(), dimension),
        "contributions": pa.binary(),
        "scale": pa.float32(),
        "checksum": pa.uint32(),
    }
    return pa.schema(types)


class RowMaker:
    """Computes the rows of images; a process of Ray loads the model by its name.

    Attributes:
        about: the settings of a table of these rows.

    Raises:
        InputError: a method or settings whose vectors cannot be kept.
    """

    def __init__(
        self, images: Storage, clip: ClipAdapter, method: str, precision: Precision, **settings: Any
    ) -> None:
        check_choice(precision, LARGEST_STORED, name="precision")
        choice = MethodChoice.of(method, tower=clip.tower)
        options = {**choice.options}
        is_direct = choice.method is DirectContribution and "per" not in options
        # Removal is a sum of vectors only if the cells of its maps share nothing. Its `vectors`
        # computes just that, without the option.
        is_removal = choice.method is ReaderRemoval and options.pop("share", "") is None
        expected = "direct without `per`, or removal:share=None, which have vectors"
        expect(is_direct or is_removal, expected, choice.name)
        self.images = images
        self.options = options
        self.precision = precision
        self.method: Any = choice.method
        self.config = RunConfig(**{"chunk_size": 512, **settings})
        self.clip: ClipAdapter | None = clip
        self.models = ModelLoader(
            self.config.processor, self.config.tokenizer, self.config.image_size
        )
        # An image of any size shows the size that the processor makes, and the grid of the vectors.
        blank = clip.preprocess(Image.new("RGB", (64, 64)))  # (1, 3, H, W)
        self.size = (blank.shape[-2], blank.shape[-1])
        _, shares = self.split(clip, blank)
        self.about: dict[str, Any] = {
            "model": full_name(clip.name),
            "identity": {**clip.identity(), "preprocessing": preprocessing_of(clip)},
            "image_size": None if self.size == clip.tower.native else self.size[0],
            "method": choice.name,
            "precision": precision,
            "grid": tuple(shares.shape[1:]),  # (h, w, E)
        }

    def __getstate__(self) -> dict[str, Any]:
        # A model is large and may not be picklable, so a worker loads it by its name.
        return {**vars(self), "clip": None}

    def split(self, clip: ClipAdapter, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute embeddings (B, E) and the positions' shares in them, (B, h, w, E)."""
        method = self.method(ClipSimilarity(clip, any_target(clip)))
        images = images.to(clip.device, clip.dtype)
        shares, rest = method.vectors(images, return_rest=True, **self.options)
        embeddings = shares.sum((1, 2)) + rest
        return embeddings.cpu(), shares.cpu()

    def tables(self, files: Sequence[File]) -> Iterator[Any]:
        """Yield the rows of files, a chunk at a time, as :meth:`table` computes them."""
        size = self.config.chunk_size
        chunks = [files[start : start + size] for start in range(0, len(files), size)]
        if self.config.engine == "local":
            for chunk in chunks:
                yield self.table(chunk, self.config.processes)
        elif chunks:
            yield from map_on_ray(self.config, lambda n: self.table(chunks[n]), len(chunks))

    def table(self, files: Sequence[File], readers: int = 0) -> Any:
        """Compute the rows of files as an Arrow table.

        It has one more column, "reason": why an image has no vectors, else "".
        """
        import pyarrow

        if self.clip is None:
            identity = {**self.about["identity"]}
            self.clip = self.models.load(self.about["model"], self.config.device, identity)
        prepare = partial(preprocess_alone, self.clip.processor, self.size)
        reader = ImageReader(self.images, [file.file for file in files], prepare)
        size = self.config.batch_size
        rows: list[dict[str, Any]] = []
        with read_ahead(reader, range(len(files)), readers, batch=size) as images:
            for start in range(0, len(files), size):
                contents = self._contents(self.clip, list(islice(images, size)))
                for file, content in zip(files[start : start + size], contents, strict=True):
                    rows.append({**file._asdict(), **content})
        columns = schema(self.about["grid"][-1]).append(pyarrow.field("reason", pyarrow.string()))
        return pyarrow.Table.from_pylist(rows, schema=columns)

    def _contents(self, clip: ClipAdapter, images: Sequence[Any]) -> list[dict[str, Any]]:
        """Compute what rows hold besides the file, from preprocessed or unreadable images."""
        readable = [image for image in images if isinstance(image, Tensor)]
        computed: Iterator[dict[str, Any]] = iter(())
        if readable:
            embeddings, shares = self.split(clip, torch.stack(readable))
            # In half precision embeddings are not of unit length.
            embeddings = F.normalize(embeddings.float(), dim=-1)
            computed = map(self._content, embeddings, shares.numpy())
        contents: list[dict[str, Any]] = []
        for image in images:
            if isinstance(image, Skipped):
                contents.append({"reason": image.reason})
            else:
                contents.append(next(computed))
        return contents

    def _content(self, embedding: Tensor, shares: Numbers) -> dict[str, Any]:
        """Compute what the row of an image holds: shares at the precision, with their scale."""
        largest = float(np.abs(shares).max())
        if not np.isfinite(largest) or not embedding.isfinite().all():
            return {"reason": "its embedding holds NaN or infinity"}
        scale = max(largest / LARGEST_STORED[self.precision], _LEAST_SCALE)
        numbers = shares / scale
        if self.precision == "int8":
            numbers = np.rint(numbers)
        contributions = numbers.astype(self.precision).tobytes()
        vector = embedding.numpy()
        return {
            "vector": vector,
            "contributions": contributions,
            "scale": scale,
            "checksum": checksum(vector, contributions, scale, self.about),
            "reason": "",
        }


def contributions_of(rows: Any, about: Mapping[str, Any]) -> Tensor:
    """Return the positions' vectors (N, h, w, E) of the rows of a table."""
    # The numbers of all images are joined first, so that one call reads them.
    stored = b"".join(rows["contributions"].to_pylist())
    numbers = np.frombuffer(stored, about["precision"]).reshape(len(rows), *about["grid"])
    scales = rows["scale"].to_numpy()[:, None, None, None]
    return torch.from_numpy(numbers * scales)


def preprocessing_of(clip: ClipAdapter) -> str:
    """Return numbers of preprocessed fixed images, which agree if maps lie on the same pixels.

    The means of 7 x 7 tiles differ by .04 of their length if the crop is off by a pixel, as in
    another library, and by .3 at another scale. Numbers agree up to .001, so they are divided by
    100, which makes that bound .1 of the length.
    """
    tiles = []
    for image in fixed_images():
        pixels = clip.preprocess(image).float().cpu()
        means = F.adaptive_avg_pool2d(pixels, 7).flatten(1)
        tiles.append(F.normalize(means) / 100)
    return summary(tiles)


def read_unchanged(
    clip: ClipAdapter, images: Storage, files: Sequence[File]
) -> tuple[list[regions.PreprocessedImages], dict[str, str]]:
    """Preprocess images, and say why the others were skipped: gone, damaged or changed."""
    reader = ImageReader(images, [file.file for file in files], partial(regions.preprocess, clip))
    preprocessed: list[regions.PreprocessedImages] = []
    skipped: dict[str, str] = {}
    for number, file in enumerate(files):
        image = reader(number)
        if isinstance(image, Skipped):
            skipped[file.file] = image.reason
        elif File.of(images, file.file) != file:
            skipped[file.file] = "it has changed; build the index again"
        else:
            # Nothing draws the original photos, and they would fill the memory.
            preprocessed.append(image._replace(photos=()))
    return preprocessed, skipped
