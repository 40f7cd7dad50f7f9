"""What ``captum-clip export`` writes beside its graphs, and how it is checked when it is loaded.

A folder may come from a stranger or a bad disk. Each file has its SHA-256 in ``SHA256SUMS``, in the
form that ``sha256sum --check`` reads, and ``manifest.json`` holds nothing but these dataclasses.
"""

from dataclasses import dataclass, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast, get_args, get_origin, get_type_hints

from ..checks import check_interval, expect, find_file
from ..kinds import is_kind, parse_json, type_name

FILES: Final = ("manifest.json", "image.onnx", "text.onnx", "tokenizer.json")
"""The files that are loaded."""
SUMS: Final = "SHA256SUMS"
Precision = Literal["float32", "float16", "int8"]
_Side = Annotated[int, "[1, 4096]"]  # as of `load_clip`
_Mean = Annotated[float, "[-1000, 1000]"]
_Std = Annotated[float, "[0.0001, 1000]"]


@dataclass(frozen=True)
class Preprocessing:
    """How :func:`captum_clip.exported.preprocess` makes pixels (3, H, W) of an image.

    Attributes:
        size: H and W.
        resize: the shorter side before H x W are cut out of the middle; 0 resizes to H x W.
        up: 1 where half a pixel of a margin goes to the left and to the top, else 0.
        mean: of the three channels, whose colors are in [0, 1].
        std: likewise.
        resample: Pillow's number of a filter.
    """

    size: tuple[_Side, _Side]
    resize: Annotated[int, "[0, 4096]"]
    up: Literal[0, 1]
    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Std, _Std, _Std]
    resample: Annotated[int, "[0, 5]"]


@dataclass(frozen=True)
class Tokens:
    """How the rows of the text graph are made of tokens.

    Attributes:
        length: the most tokens of a text.
        fixed: whether each row is as long, or as the longest text of a batch.
        pad: what fills a row.
        mask: whether the graph takes a mask.
        card: texts with their tokens, None where the model refuses them.
    """

    length: Annotated[int, "[1, 16384]"]
    fixed: bool
    pad: Annotated[int, "[0, 2147483647]"]
    mask: bool
    card: dict[str, list[int] | None]


@dataclass(frozen=True)
class Identity:
    """The model identity, as of :meth:`captum_clip.models.ClipAdapter.identity`."""

    weights: str
    image_embeddings: str
    text_embeddings: str


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
        captum_clip: the version that wrote it.
        model: the name of the model, which is a label: nothing is loaded by it.
        license: of the weights, where their card names one.
        method: whose vectors the image graph gives, as a label.
        precision: of the weights.
        grid: rows and columns of a map.
        dimension: of an embedding.
        tokens: of the texts.
        preprocessing: of the images.
        identity: of the model.
    """

    captum_clip: str
    model: str
    license: str | None
    method: str
    precision: Precision
    grid: tuple[_Side, _Side]
    dimension: Annotated[int, "[1, 65536]"]
    tokens: Tokens
    preprocessing: Preprocessing
    identity: Identity


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file of a folder into it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    lines = [_line(path.read_bytes(), path.relative_to(folder).as_posix()) for path in files]
    (folder / SUMS).write_bytes(b"".join(line + b"\n" for line in lines))


def read_files(folder: Path) -> dict[str, bytes]:
    """The content of the files that are loaded; InputError for one without its digest."""
    sums, contents = find_file(folder / SUMS).read_bytes().splitlines(), dict[str, bytes]()
    for name in FILES:
        contents[name] = find_file(folder / name).read_bytes()
        line, changed = _line(contents[name], name), "it is damaged, or was changed since"
        expect(line in sums, f"{name} as {SUMS} has it", line.decode()[:64], changed)
    return contents


def _line(content: bytes, name: str) -> bytes:
    return f"{sha256(content).hexdigest()}  {name}".encode()


def read_manifest(content: bytes) -> Manifest:
    """The manifest in the content of a file.

    Raises:
        InputError: another key or none, or a value of another type or outside of its range.
        ValueError: no JSON.
    """
    about = cast("Manifest", _read("manifest", Manifest, parse_json(content)))
    how = about.preprocessing
    fits = how.resize == 0 or how.resize >= max(how.size)
    expect(fits, f"resize of 0, or of {max(how.size)} and up", how.resize)
    return about


def _read(name: str, kind: Any, value: Any) -> Any:
    """A value of JSON as its annotation says; of a dataclass, with all fields and no other."""
    plain, *parts = get_args(kind) if get_origin(kind) in (Annotated, tuple) else (kind,)
    if is_dataclass(kind):
        kinds = get_type_hints(kind, include_extras=True)
        fits = isinstance(value, dict) and value.keys() == kinds.keys()
        expect(fits, f"{name} of {', '.join(kinds)}", value)
        made: Any = kind
        return made(**{key: _read(key, each, value[key]) for key, each in kinds.items()})
    if get_origin(kind) is tuple:
        fits = isinstance(value, list) and len(value) == 1 + len(parts)
        expect(fits, f"{name} of {1 + len(parts)} numbers", value)
        return tuple(_read(name, plain, each) for each in value)
    expect(is_kind(value, plain), f"{name} as {type_name(plain)}", value)
    for interval in parts:
        check_interval(name, value, interval)
    return value
