r"""A model that ``captum-clip export`` wrote, on onnxruntime and NumPy: torch is not imported.

The folder holds two graphs of ONNX, of which one gives the unit embedding of an image and the share
of each position in it, :math:`\hat e = \sum_j c_j + c_0`, and the other those of texts. So scores
and maps of any text are products, as :meth:`captum_clip.DirectContribution.vectors` has them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from os import devnull
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..checks import (
    check_choice,
    check_integer,
    check_texts,
    excerpt,
    expect,
    find_folder,
    limit_pixels,
    show,
)
from ..errors import CaptumClipError, InputError, TargetError, public
from ..pictures import as_numbers, as_pil, check_size
from ..visualization.colors import ALPHA, HEAT, NEGATIVE, blend, colormap, ramp, score_note
from ..visualization.grid import Legend, Panel, folded, grid, save_figure
from .manifest import Manifest, Preprocessing, read_files, read_manifest

__all__ = ["Explained", "ExportedClip", "Vectors", "load"]

Array = npt.NDArray[np.float32]


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
        label: model and method.
    """

    maps: Mapping[str, Array]
    scores: Array
    names: tuple[str, ...]
    images: Array
    label: str

    @public("plot")
    def plot(self, sign: str = "positive") -> Any:
        """Draw the maps of a sign over what the model saw, as :meth:`captum_clip.Explanation.plot`.

        One row per image and one column per text, min-max normalized one by one.
        """
        check_choice(sign, self.maps, name="a sign")
        colors, rows = colormap(HEAT if sign == "positive" else NEGATIVE), []
        for image, maps, scores in zip(self.images, self.maps[sign], self.scores, strict=True):
            cells = []
            for raw, name, score in zip(maps, self.names, scores, strict=True):
                heat, empty = _heat(raw, image.shape), ", empty map" * (not raw.any())
                cells.append(Panel(blend(image, heat, colors), name, score_note(score) + empty))
            rows += folded(cells, Panel(image, "image"))
        label = self.label + " · negative evidence" * (sign == "negative")
        return grid(rows, legends=[Legend(ramp(colors, ALPHA), "low to high")], caption=label)

    @public("save")
    def save(self, path: str | Path, sign: str = "positive") -> Path:
        """Write the figure as .png, .jpg, .pdf or .svg."""
        return save_figure(self.plot(sign), path)


def _heat(raw: Array, size: Sequence[int]) -> Array:
    """A map (h, w) resized by bicubic interpolation inside of its range, then in [0, 1]."""
    rows, columns = (_taps(cells, side) for cells, side in zip(raw.shape, size[:2], strict=True))
    large = (rows @ raw @ columns.T).clip(raw.min(), raw.max())
    span = large.max() - large.min()
    if span <= 8 * np.finfo(np.float32).eps * np.abs(large).max():
        return np.zeros_like(large)
    return np.asarray((large - large.min()) / span, np.float32)


def _taps(cells: int, side: int) -> Array:
    """The weights (side, cells) of torch's bicubic interpolation, whose edges repeat."""
    at = (np.arange(side) + 0.5) * cells / side - 0.5
    index = np.floor(at)[:, None] + np.arange(-1, 3)
    t = np.abs(at[:, None] - index)
    near, far = (1.25 * t - 2.25) * t * t + 1, ((3.75 - 0.75 * t) * t - 6) * t + 3
    weights = np.zeros((side, cells), np.float32)
    places = np.arange(side)[:, None], index.clip(0, cells - 1).astype(int)
    np.add.at(weights, places, np.where(t < 1, near, far))
    return weights


class ExportedClip:
    """A folder that ``captum-clip export`` wrote; made by :func:`load`.

    Attributes:
        about: its :class:`~captum_clip.exported.manifest.Manifest`.
    """

    def __init__(self, about: Manifest, graphs: Mapping[str, Any], tokenizer: Any) -> None:
        self.about = about
        self._graphs, self._tokenizer = graphs, tokenizer

    @public("preprocess")
    def preprocess(self, images: Any) -> Array:
        """Files, PIL images or arrays of uint8, as `explain` takes them -> pixels (B, 3, H, W)."""
        return np.stack([preprocess(image, self.about.preprocessing) for image in as_pil(images)])

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
            made = dict(zip(shapes, self._graphs[graph].run([*shapes], inputs), strict=True))
        return [as_numbers(f"{n} of {graph}", made[n], shapes[n], "f") for n in shapes]

    @public("tokenize")
    def tokenize(self, texts: str | Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
        """The inputs of the text graph; TargetError for a text that the model cannot read."""
        about, rows = self.about.tokens, [self._ids(text) for text in check_texts(texts)]
        width = about.length if about.fixed else max(map(len, rows))
        made = {"ids": [row + [about.pad] * (width - len(row)) for row in rows]}
        if about.mask:
            made["mask"] = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        return {name: np.array(values, np.int64) for name, values in made.items()}

    def _ids(self, text: str) -> list[int]:
        longest = self.about.tokens.length
        unknown = f"expected a text that {self.about.model} knows, got {show(text)}"
        with _as_ours(unknown, TargetError):
            ids: list[int] = self._tokenizer.encode(text).ids
        fits = len(ids) <= longest
        expect(fits, f"a text of up to {longest} tokens", text, error=TargetError)
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
        names, how = check_texts(texts), self.about.preprocessing
        for text in names:
            is_blank = len(self._ids(text)) <= len(self._ids(""))
            expect(not is_blank, "a text that has a token", text, error=TargetError)
        if max_pixels is not None:
            check_integer("max_pixels", max_pixels)
        with limit_pixels(max_pixels):
            pixels = self.preprocess(images)
        (embedding, vectors, _), embeddings = self.vectors(pixels), self.encode_text(names)
        size = (len(pixels), *self.about.grid, len(names))
        raw = np.moveaxis(as_numbers("maps", vectors @ embeddings.T, size), -1, 1)
        scores = as_numbers("scores", embedding @ embeddings.T, (len(pixels), len(names)))
        seen = (np.moveaxis(pixels, 1, -1) * np.array(how.std) + how.mean).clip(0, 1)
        label = excerpt(f"{self.about.model} · {self.about.method}", 300)
        maps = {"positive": raw.clip(0), "negative": (-raw).clip(0)}
        return Explained(maps, scores, tuple(names), seen.astype(np.float32), label)


def preprocess(image: Image.Image, how: Preprocessing) -> Array:
    """An RGB image as the model takes it, (3, H, W), resized by Pillow."""
    (height, width), short = how.size, how.resize
    scale = short / min(image.size) if short else 0
    across, down = (int(side * scale) for side in image.size) if short else (width, height)
    across, down = max(across, short), max(down, short)  # the short side itself, unrounded
    check_size(across, down, f"the image as it is resized from {image.width} x {image.height}")
    left, top = (int((side + how.up) // 2) for side in (across - width, down - height))
    resized = image.resize((across, down), Image.Resampling(how.resample))
    pixels = np.asarray(resized.crop((left, top, left + width, top + height)), np.float32)
    mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    return np.moveaxis((pixels / 255 - mean) / std, -1, 0).astype(np.float32)


@contextmanager
def _as_ours(sentence: str, error: type[CaptumClipError] = InputError) -> Iterator[None]:
    """An error with a sentence for those of onnxruntime and tokenizers, which share no class."""
    try:
        yield
    except Exception as reason:
        raise error(f"{sentence} ({excerpt(' '.join(str(reason).split()), 200)}).") from reason


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

    options, path = onnxruntime.SessionOptions(), find_folder(folder)
    options.log_severity_level = 4  # what it would log is in its error
    # a graph could name any file for its weights, but only these four have a digest
    elsewhere = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(elsewhere, devnull)
    if threads is not None:
        check_integer("threads", threads, most=2**10)
        options.intra_op_num_threads = threads
    with _as_ours(f"{path} is not a folder of captum-clip export"):
        files = read_files(path)
        about = read_manifest(files["manifest.json"])
        tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
        session = partial(onnxruntime.InferenceSession, sess_options=options)
        graphs = {name: session(files[name]) for name in ("image.onnx", "text.onnx")}
    return ExportedClip(about, graphs, tokenizer)
