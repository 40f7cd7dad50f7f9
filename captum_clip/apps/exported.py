r"""A model that ``captum-clip export`` wrote, on onnxruntime and NumPy: torch is not imported.

The folder holds two graphs of ONNX, of which one gives the unit embedding of an image and the share
of each position in it, :math:`\hat e = \sum_j c_j + c_0`, and the other those of texts. So scores
and maps of any text are products, as :meth:`captum_clip.DirectContribution.vectors` has them.

The folder may come from a stranger or a bad disk. Each file has its SHA-256 in ``SHA256SUMS``, in
the form that ``sha256sum --check`` reads. ``manifest.json`` is a :class:`Manifest`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import partial
from hashlib import sha256
from os import devnull
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
from PIL import Image

from .. import checks
from ..errors import (
    CaptumClipError,
    InputError,
    TargetError,
    is_kind,
    parse_json,
    public,
    type_name,
)
from ..files import as_numbers, as_pil, check_size
from ..visualization.colors import Array
from ..visualization.grid import save_figure

__all__ = ["Explained", "ExportedClip", "Manifest", "Preprocessing", "Tokens", "Vectors", "load"]

FILES: Final = ("manifest.json", "image.onnx", "text.onnx", "tokenizer.json")
"""The files that are loaded."""
SUMS: Final = "SHA256SUMS"
_Cells = Annotated[int, "[1, 4096]"]  # as of `load_clip`
_Mean = Annotated[float, "[-1000, 1000]"]
_Std = Annotated[float, "[0.0001, 1000]"]


@dataclass(frozen=True)
class Preprocessing:
    """How :meth:`ExportedClip.preprocess` makes pixels (3, H, W) of an image.

    Attributes:
        size: H and W.
        resize: the shorter side before H x W are cut out of the middle; 0 resizes to H x W.
        up: 1 where half a pixel of a margin goes to the left and to the top, else 0.
        mean: of the three channels, whose colors are in [0, 1].
        std: likewise.
        resample: Pillow's number of a filter.
    """

    size: tuple[_Cells, _Cells]
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
class Manifest:
    """The content of manifest.json.

    Attributes:
        captum_clip: the version that wrote it.
        model: the name of the model, which is a label: nothing is loaded by it.
        license: of the weights, where their card names one.
        method: whose vectors the image graph gives, as a label.
        grid: rows and columns of a map.
        dimension: of an embedding.
        tokens: of the texts.
        preprocessing: of the images.
        identity: as of :meth:`captum_clip.models.ClipAdapter.identity`.
    """

    captum_clip: str
    model: str
    license: str | None
    method: str
    grid: tuple[_Cells, _Cells]
    dimension: Annotated[int, "[1, 65536]"]
    tokens: Tokens
    preprocessing: Preprocessing
    identity: dict[str, str]


class Vectors(NamedTuple):
    """Unit embeddings (B, E), the positions' shares in them (B, h, w, E), and the rest (B, E)."""

    embedding: Array
    vectors: Array
    rest: Array


@dataclass(frozen=True, eq=False)
class Explained:
    """The maps of images for texts, from :meth:`ExportedClip.explain`.

    Attributes:
        maps: "positive" and "negative" -> raw maps (B, K, h, w), none below zero.
        scores: cosines (B, K).
        names: of the K texts.
        images: what the model saw, (B, H, W, 3), colors in [0, 1].
        model: its name.
        method: with its options.
    """

    maps: Mapping[str, Array]
    scores: Array
    names: tuple[str, ...]
    images: Array
    model: str
    method: str

    @public("plot")
    def plot(self, sign: str = "positive") -> Any:
        """Draw the maps of a sign over what the model saw, as :meth:`captum_clip.Explanation.plot`.

        One row per image and one column per text, min-max normalized one by one. Loads torch.
        """
        checks.check_choice(sign, self.maps, name="a sign")
        import torch

        from ..explaining.explanation import Explanation

        images, scores, raw = map(torch.from_numpy, (self.images, self.scores, self.maps[sign]))
        seen, norms = images.movedim(-1, 1), torch.ones(len(self.names))
        about = (self.names, norms, self.model, self.method, seen)
        return Explanation({sign: raw}, scores, *about).plot()

    @public("save")
    def save(self, path: str | Path, sign: str = "positive") -> Path:
        """Write the figure as .png, .jpg, .pdf or .svg."""
        return save_figure(self.plot(sign), path)


class ExportedClip:
    """A folder that ``captum-clip export`` wrote; made by :func:`load`.

    Attributes:
        about: its :class:`Manifest`.
    """

    def __init__(self, about: Manifest, graphs: Mapping[str, Any], tokenizer: Any) -> None:
        self.about = about
        self._graphs, self._tokenizer = graphs, tokenizer

    @public("preprocess")
    def preprocess(self, images: Any) -> Array:
        """Files, PIL images or arrays of uint8, as `explain` takes them -> pixels (B, 3, H, W).

        What is transparent becomes white, whatever the model's own preprocessing makes of it.
        """
        how, pixels = self.about.preprocessing, []
        (height, width), short = how.size, how.resize
        for image in as_pil(images):
            scale = short / min(image.size) if short else 0
            across, down = (int(n * scale) for n in image.size) if short else (width, height)
            across, down = max(across, short), max(down, short)  # the short side itself, unrounded
            name = f"the image as it is resized from {image.width} x {image.height}"
            check_size(across, down, name)
            left, top = (int((side + how.up) // 2) for side in (across - width, down - height))
            resized = image.resize((across, down), Image.Resampling(how.resample))
            cut = resized.crop((left, top, left + width, top + height))
            pixels.append(np.asarray(cut, np.float32) / 255)
        mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
        return np.moveaxis((np.stack(pixels) - mean) / std, -1, 1).astype(np.float32)

    @public("vectors")
    def vectors(self, pixels: Any) -> Vectors:
        """Take the unit embeddings of preprocessed images (B, 3, H, W) apart."""
        about = self.about
        values = as_numbers("pixels", pixels, ("B", 3, *about.preprocessing.size), "f")
        rows = len(values), about.dimension
        shapes = {"embedding": rows, "vectors": (len(values), *about.grid, about.dimension)}
        return Vectors(*self._run("image.onnx", {"pixels": values}, **shapes, rest=rows))

    def _run(self, graph: str, inputs: Any, **shapes: tuple[int, ...]) -> list[Array]:
        """The outputs of a graph, finite and of their shapes."""
        with _as_ours(f"{graph} does not run"):
            outputs = dict(zip(shapes, self._graphs[graph].run([*shapes], inputs), strict=True))
        return [as_numbers(f"{n} of {graph}", outputs[n], shapes[n], "f") for n in shapes]

    @public("tokenize")
    def tokenize(self, texts: str | Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
        """The inputs of the text graph; TargetError for a text that the model cannot read."""
        about, rows = self.about.tokens, [self._ids(text) for text in checks.check_texts(texts)]
        width = about.length if about.fixed else max(map(len, rows))
        inputs = {"ids": [row + [about.pad] * (width - len(row)) for row in rows]}
        if about.mask:
            inputs["mask"] = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        return {name: np.array(values, np.int64) for name, values in inputs.items()}

    def _ids(self, text: str) -> list[int]:
        longest = self.about.tokens.length
        unknown = f"expected a text that {self.about.model} knows, got {checks.show(text)}"
        with _as_ours(unknown, TargetError):
            ids: list[int] = self._tokenizer.encode(text).ids
        checks.expect(
            len(ids) <= longest, f"a text of up to {longest} tokens", text, error=TargetError
        )
        return ids

    @public("encode_text")
    def encode_text(self, texts: str | Sequence[str]) -> Array:
        """Unit embeddings (K, E) of texts."""
        inputs = self.tokenize(texts)
        shape = (len(inputs["ids"]), self.about.dimension)
        return self._run("text.onnx", inputs, embedding=shape)[0]

    @public("explain")
    @np.errstate(over="ignore", invalid="ignore")  # infinity is named
    def explain(
        self, images: Any, texts: str | Sequence[str], *, max_pixels: int | None = None
    ) -> Explained:
        """Scores and maps of images for texts.

        Args:
            images: one or several files, PIL images or arrays of uint8.
            texts: one or several.
            max_pixels: of an image; by default ``PIL.Image.MAX_IMAGE_PIXELS``.

        Raises:
            InputError: what is no image, a larger one, one whose side is over 200 times the other,
                or a graph that does not run, or gives NaN or infinity.
            TargetError: what is no text, an empty one, or one that the model cannot read.
        """
        names, how = checks.check_texts(texts), self.about.preprocessing
        for text in names:
            is_blank = len(self._ids(text)) <= len(self._ids(""))
            checks.expect(not is_blank, "a text that has a token", text, error=TargetError)
        if max_pixels is not None:
            checks.check_integer("max_pixels", max_pixels)
        with checks.limit_pixels(max_pixels):
            pixels = self.preprocess(images)
        (embedding, vectors, _), embeddings = self.vectors(pixels), self.encode_text(names)
        size = (len(pixels), *self.about.grid, len(names))
        raw = np.moveaxis(as_numbers("maps", vectors @ embeddings.T, size), -1, 1)
        scores = as_numbers("scores", embedding @ embeddings.T, (len(pixels), len(names)))
        seen = (np.moveaxis(pixels, 1, -1) * np.array(how.std) + how.mean).clip(0, 1)
        maps = {"positive": raw.clip(0), "negative": (-raw).clip(0)}
        # of a stranger's folder
        labels = (checks.excerpt(label, 150) for label in (self.about.model, self.about.method))
        return Explained(maps, scores, tuple(names), seen.astype(np.float32), *labels)


@contextmanager
def _as_ours(sentence: str, error: type[CaptumClipError] = InputError) -> Iterator[None]:
    """An error with a sentence for those of onnxruntime and tokenizers, which share no class."""
    try:
        yield
    except Exception as reason:
        raise error(
            f"{sentence} ({checks.excerpt(' '.join(str(reason).split()), 200)})."
        ) from reason


def _read_files(folder: Path) -> dict[str, bytes]:
    """The content of the files that are loaded; InputError for one without its digest."""
    sums, contents = checks.find_file(folder / SUMS).read_bytes().splitlines(), dict[str, bytes]()
    for name in FILES:
        contents[name] = checks.find_file(folder / name).read_bytes()
        line, changed = digest_line(contents[name], name), "it is damaged, or was changed since"
        checks.expect(line in sums, f"{name} as {SUMS} has it", line.decode()[:64], changed)
    return contents


def digest_line(content: bytes, name: str) -> bytes:
    """The line of SHA256SUMS for a file."""
    return f"{sha256(content).hexdigest()}  {name}".encode()


def _annotated(name: str, kind: Any, value: Any) -> Any:
    """A value of JSON as its annotation says; of a dataclass, with all fields and no other."""
    plain, *parts = get_args(kind) if get_origin(kind) in (Annotated, tuple) else (kind,)
    if is_dataclass(kind):
        kinds = get_type_hints(kind, include_extras=True)
        fits = isinstance(value, dict) and value.keys() == kinds.keys()
        checks.expect(fits, f"{name} of {', '.join(kinds)}", value)
        make: Any = kind
        return make(**{key: _annotated(key, each, value[key]) for key, each in kinds.items()})
    if get_origin(kind) is tuple:
        fits = isinstance(value, list) and len(value) == 1 + len(parts)
        checks.expect(fits, f"{name} of {1 + len(parts)} numbers", value)
        return tuple(_annotated(name, plain, each) for each in value)
    checks.expect(is_kind(value, plain), f"{name} as {type_name(plain)}", value)
    for interval in parts:
        checks.check_interval(name, value, interval)
    return value


@public("load")
def load(folder: str | Path, *, threads: int | None = None) -> ExportedClip:
    """Load what ``captum-clip export`` wrote. Needs ``pip install 'captum-clip[export]'``.

    Args:
        folder: as it was written.
        threads: of onnxruntime; by default one per core.

    Raises:
        InputError: no such folder, a file that differs from its digest, or a manifest, a graph or a
            tokenizer that is none.
    """
    import onnxruntime
    from tokenizers import Tokenizer

    options, path = onnxruntime.SessionOptions(), checks.find_folder(folder)
    options.log_severity_level = 4  # what it would log is in its error
    # a graph could name any file for its weights, but only these four have a digest
    elsewhere = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(elsewhere, devnull)
    if threads is not None:
        checks.check_integer("threads", threads, most=2**10)
        options.intra_op_num_threads = threads
    with _as_ours(f"{path} is not a folder of captum-clip export"):
        files = _read_files(path)
        about: Manifest = _annotated("manifest", Manifest, parse_json(files["manifest.json"]))
        short, longest = about.preprocessing.resize, max(about.preprocessing.size)
        checks.expect(short == 0 or short >= longest, f"resize of 0, or of {longest} and up", short)
        tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
        session = partial(onnxruntime.InferenceSession, sess_options=options)
        graphs = {name: session(files[name]) for name in ("image.onnx", "text.onnx")}
    return ExportedClip(about, graphs, tokenizer)
