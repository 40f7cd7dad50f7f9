r"""A model that ``captum-clip export`` wrote, on onnxruntime and NumPy: torch is not imported.

The folder holds two graphs of ONNX, of which one gives the unit embedding of an image and the share
of each position in it, :math:`\hat e = \sum_j c_j + c_0`, and the other those of texts. So scores
and maps of any text are products, as :meth:`captum_clip.DirectContribution.vectors` has them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ..checks import as_list, check_choice, check_texts, expect, expecting, find_folder
from ..errors import InputError, TargetError, public
from ..visualization.colors import ALPHA, HEAT, NEGATIVE, blend, colormap, ramp, score_note
from ..visualization.grid import Legend, Panel, folded, grid, save_figure

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
        about: its manifest.json.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0

        def session(name: str) -> Any:
            return onnxruntime.InferenceSession(folder / name, options)

        self.about: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
        self._image, self._text = session("image.onnx"), session("text.onnx")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def preprocess(self, images: Any) -> Array:
        """Files, PIL images or uint8 arrays (H, W, 3) -> pixels (B, 3, H, W)."""
        several = list(images) if isinstance(images, (list, tuple)) else [images]
        return np.stack([preprocess(image, self.about["preprocessing"]) for image in several])

    def vectors(self, pixels: Array) -> Vectors:
        """Take the unit embeddings of preprocessed images (B, 3, H, W) apart."""
        shape = (3, *self.about["preprocessing"]["size"])
        expect(pixels.shape[1:] == shape, f"pixels (B, {str(shape)[1:]}", pixels)
        return Vectors(*self._image.run(None, {"pixels": np.asarray(pixels, np.float32)}))

    @public("tokenize")
    def tokenize(self, texts: str | Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
        """The inputs of the text graph; TargetError for a text that the model cannot read."""
        about, rows = self.about["tokens"], []
        for text in check_texts(texts):
            expected = f"a text that {self.about['model']} knows"
            with expecting(expected, text, error=TargetError):
                try:
                    ids = self._tokenizer.encode(text).ids
                except Exception as error:  # which tokenizers raises for an unknown word
                    raise ValueError(error) from error
            fits, longest = len(ids) <= about["length"], f"a text of up to {about['length']} tokens"
            expect(fits, longest, text, error=TargetError)
            rows.append(ids)
        width = about["length"] if about["fixed"] else max(map(len, rows))
        made = {"ids": np.full((len(rows), width), about["pad"], np.int64)}
        if about["mask"]:
            made["mask"] = np.zeros((len(rows), width), np.int64)
        for index, row in enumerate(rows):
            for name, values in made.items():
                values[index, : len(row)] = row if name == "ids" else 1
        return made

    def encode_text(self, texts: str | Sequence[str]) -> Array:
        """Unit embeddings (K, E) of texts."""
        return np.asarray(self._text.run(None, self.tokenize(texts))[0])

    @public("explain")
    def explain(self, images: Any, texts: str | Sequence[str]) -> Explained:
        """Scores and maps of images for texts; InputError or TargetError for what is neither."""
        pixels, embeddings = self.preprocess(images), self.encode_text(texts)
        embedding, vectors, _ = self.vectors(pixels)
        raw = np.moveaxis(vectors @ embeddings.T, -1, 1)
        mean, std = (np.array(self.about["preprocessing"][name]) for name in ("mean", "std"))
        seen = (np.moveaxis(pixels, 1, -1) * std + mean).clip(0, 1).astype(np.float32)
        label = f"{self.about['model']} · {self.about['method']}"
        maps = {"positive": raw.clip(0), "negative": (-raw).clip(0)}
        return Explained(maps, embedding @ embeddings.T, tuple(as_list(texts)), seen, label)


def preprocess(image: Any, how: Mapping[str, Any]) -> Array:
    """An image as the model takes it, (3, H, W), resized by Pillow."""
    if not isinstance(image, (np.ndarray, Image.Image)):
        with expecting("an image file", image):
            image = Image.open(image)
    opened = image if isinstance(image, Image.Image) else Image.fromarray(image)
    colors = ImageOps.exif_transpose(opened).convert("RGBA")
    # what is transparent becomes white
    picture = Image.alpha_composite(Image.new("RGBA", colors.size, "white"), colors).convert("RGB")
    (height, width), short = how["size"], how["resize"]
    scale = short / min(picture.size) if short else 0
    across, down = (int(side * scale) for side in picture.size) if short else (width, height)
    across, down = max(across, short), max(down, short)  # the short side itself, unrounded
    left, top = (int((side + how["up"]) // 2) for side in (across - width, down - height))
    resized = picture.resize((across, down), how["resample"])
    pixels = np.asarray(resized.crop((left, top, left + width, top + height)), np.float32)
    mean, std = (np.array(how[name], np.float32) for name in ("mean", "std"))
    return np.moveaxis((pixels / 255 - mean) / std, -1, 0).astype(np.float32)


@public("load")
def load(folder: str | Path, *, threads: int | None = None) -> ExportedClip:
    """Load what ``captum-clip export`` wrote. Needs ``pip install 'captum-clip[export]'``.

    Args:
        folder: as it was written.
        threads: of onnxruntime; by default one per core.

    Raises:
        InputError: no such folder, or none that it wrote.
    """
    path = find_folder(folder)
    try:
        return ExportedClip(path, threads)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # those of onnxruntime and tokenizers have no class of their own
        raise InputError(f"{folder} is not a folder of captum-clip export ({error}).") from error
