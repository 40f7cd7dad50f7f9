"""`Explanation`: the maps of images for texts, their scores, and pictures and files of them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias

import numpy as np
import torch
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from torch import Tensor

from . import photos, regions, visualization
from .checks import check_destination, find_file
from .errors import InputError
from .files import DAMAGED, replace_file
from .maps import Mode
from .metrics.segmentation import Threshold
from .models.base import ImageLike
from .models.geometry import Crop
from .regions import Region
from .visualization import saving
from .visualization.style import ALPHA

Sign = Literal["positive", "negative", "both"]
TextMap: TypeAlias = tuple[tuple[str, float], ...]
"""The words of a text, each with its value."""

FORMATS: Final = (*saving.FORMATS, ".npz")
"""Endings of the files that :meth:`Explanation.save` writes."""

SIGNS: Final = ("positive", "negative")
_PARTS: Final = ("scores", "names", "norms", "model", "method", "images", "words")


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """What :func:`explain` found; tensors on the CPU.

    Attributes:
        maps: sign ("positive", "negative") -> raw maps (B, K, h, w), none below zero, on the
            tower's own grid.
        scores: cosine similarities (B, K).
        names: of the K targets.
        norms: lengths (K,) that the targets had before they became unit rows.
        model: its name.
        method: its command-line name with its options.
        images: what the model saw, (B, 3, H, W), colours in [0, 1].
        words: whether the first target is a text and the others are its words.
        text_maps: of the text side, for each text its words with their values; start, end and
            padding are left out. Where only the text side was asked for, `maps` is empty.
        hints: of each image the sentences that say which maps should be doubted, where they were
            asked for; they stand in the caption of :meth:`plot`.
        crops: of each image where it lies in its photo; none of images that came as tensors, or by
            a processor of which that is not known.
        photos: what was given for each image, for :meth:`plot`; a file does not keep them.

    Raises:
        InputError: the shapes do not belong together.
    """

    maps: Mapping[str, Tensor]
    scores: Tensor
    names: tuple[str, ...]
    norms: Tensor
    model: str
    method: str
    images: Tensor
    words: bool = False
    text_maps: tuple[TextMap, ...] = ()
    hints: tuple[tuple[str, ...], ...] = ()
    crops: tuple[Crop, ...] = ()
    photos: tuple[ImageLike, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.images), len(self.names))
        fits = (
            self.images.ndim == 4
            and self.scores.shape == shape
            and self.norms.shape == shape[1:]
            and len(self.maps) + len(self.text_maps) > 0
            and len(self.text_maps) in (0, len(self.names))
            and all(
                len(part) in (0, len(self.images)) for part in (self.hints, self.crops, self.photos)
            )
            and all(sign in SIGNS and m.ndim == 4 for sign, m in self.maps.items())
            and all(m.shape[:2] == shape for m in self.maps.values())
        )
        if not fits:
            shapes = {sign: tuple(m.shape) for sign, m in self.maps.items()}
            raise InputError(
                f"Explanation: images {tuple(self.images.shape)}, {len(self.names)} names, scores "
                f"{tuple(self.scores.shape)} and maps {shapes} do not belong together."
            )

    def plot(
        self,
        *,
        cmap: str | Colormap | None = None,
        alpha: float = ALPHA,
        interpolation: Mode = "bicubic",
        original: bool | ImageLike | Sequence[ImageLike] = False,
    ) -> Figure:
        """The maps over the images, resized, and min-max normalised one by one.

        One row per image and one column per target; with words, one column per word, dimmed by its
        norm; with both signs, one row per image and target, positive beside negative on a scale
        that the two share. With the text side one row per text: the image, or its map, beside the
        words in their colours. For another look pass the maps to
        :mod:`captum_clip.visualization` yourself.

        Args:
            cmap: colour map, by name or as it is; by default inferno, blue for what speaks against
                alone, and orange and blue where both signs are drawn.
            alpha: opacity where a map is 1; where it is 0 the image shows through.
            interpolation: between the cells of a map: "bicubic", kept within the map's range,
                "bilinear", or "nearest", which shows the cells as they are.
            original: lay the maps on the whole photos instead of what the model saw; what it did
                not see is grey. True for those that were explained; or the photos themselves, where
                the explanation comes from a file. Drawn with 1024 pixels a side at most.

        Raises:
            InputError: an unknown colour map or interpolation, an alpha that is not in [0, 1], or
                no photos to lay the maps on, as where the images came as tensors.
        """
        if original is False:
            images, heatmap = self.images, self.heatmap(interpolation)
        else:
            images, heatmap = photos.lay_on_photos(
                self._originals(original), self.crops, self._signed(), interpolation
            )
        caption = f"{self.model} \N{MIDDLE DOT} {self.method}"
        if list(self.maps) == ["negative"]:
            caption += " \N{MIDDLE DOT} what speaks against"
        for number, sentences in enumerate(self.hints, 1):
            which = f"image {number}: " if len(self.hints) > 1 and sentences else ""
            caption += "".join(f" \N{MIDDLE DOT} {which}{sentence}" for sentence in sentences)
        shown: dict[str, Any] = {"names": self.names, "scores": self.scores, "caption": caption}
        shown["alpha"] = alpha
        if not self.words and not self.text_maps and len(heatmap) == 2:
            if cmap is not None:
                shown["cmaps"] = (cmap, cmap)
            return visualization.signs(images, heatmap["positive"], heatmap["negative"], **shown)
        first, second = (*heatmap.values(), None, None)[:2]
        if cmap is not None:
            shown["cmap"] = cmap
        elif list(heatmap) == ["negative"]:
            shown["cmap"] = visualization.NEGATIVE
        if self.text_maps:
            del shown["names"]
            return visualization.sentences(images, self.text_maps, heatmap=first, **shown)
        assert first is not None
        if self.words:
            shown.update(norms=self.norms, negative=second)
            return visualization.words(images, first, **shown)
        return visualization.overlay(images, first, **shown)

    def heatmap(self, interpolation: Mode = "bilinear") -> dict[str, Tensor]:
        """The maps resized, then min-max normalised one by one, sign -> (B, K, H, W) in [0, 1].

        The two signs of a map share one scale. Where an image was padded the map is zero, and left
        out of the scale. :meth:`plot` draws them, with the interpolation that it is given.

        Raises:
            InputError: an unknown interpolation.
        """
        size = (self.images.shape[-2], self.images.shape[-1])
        box, raw = (0.0, 0.0, float(size[1]), float(size[0])), self._signed()
        shown = [crop.of_photo(size) for crop in self.crops] or [box] * len(self.images)
        each = [
            photos.normalized(
                {sign: values[index, None] for sign, values in raw.items()},
                size,
                interpolation,
                box,
                part,
            )
            for index, part in enumerate(shown)
        ]
        return {sign: torch.cat([heatmap[sign] for heatmap in each]) for sign in raw}

    def _signed(self) -> dict[str, Tensor]:
        return {sign: self.maps[sign] for sign in SIGNS if sign in self.maps}

    def _originals(self, original: Any) -> Sequence[ImageLike]:
        """The photos that are asked for."""
        if not self.crops:
            reason = "the images came as preprocessed tensors; explain files, PIL images or arrays"
            if self.photos:
                reason = f"how the processor of {self.model} crops them is not known"
            raise InputError(f"plot: a map cannot be laid on the original photos: {reason}.")
        if original is not True:
            return list(original) if isinstance(original, (list, tuple)) else [original]
        if not self.photos:
            raise InputError(
                "plot: this explanation comes from a file, which does not hold the photos; pass "
                "them, as in plot(original='photo.jpg')."
            )
        return self.photos

    def regions(self, threshold: Threshold = "otsu") -> list[Region]:
        """What the maps mark, as masks and boxes at the photos' size, for tools that take those.

        Each map is resized (bicubic, within its range), min-max normalised as by
        :meth:`heatmap`, and marks what is above the threshold. Where it is not known which part of
        a photo an image is, the size is that of :attr:`images`.

        Args:
            threshold: "otsu" or "mean", each map's own over what the model saw, or a number in
                [0, 1): with both signs a share of the stronger one's maximum.

        Returns:
            One for each image, target and sign, in this order.

        Raises:
            InputError: an unknown threshold, or an explanation of the text side alone.
        """
        raw = self._signed()
        if not raw:
            raise InputError("regions: this explanation is of words alone, which lie nowhere.")
        size = (self.images.shape[-2], self.images.shape[-1])
        crops = self.crops or [Crop(size, (0, 0, size[1], size[0]))] * len(self.images)
        found = []
        for (index, crop), (column, name) in product(enumerate(crops), enumerate(self.names)):
            one = {sign: values[index, column] for sign, values in raw.items()}
            heatmap = photos.normalized(one, crop.size, "bicubic", crop.box)
            found += [
                regions.region(values, crop.box, threshold, image=index, target=name, sign=sign)
                for sign, values in heatmap.items()
            ]
        return found

    def save(self, path: str | Path, **look: Any) -> Path:
        """Write the picture (.png, .jpg, .pdf, .svg) or everything (.npz).

        The file appears under its name only when it is complete; an existing one is replaced. An
        .npz keeps of each photo its size and what the model saw of it, not the photo.

        Args:
            path: in an existing folder.
            **look: of the picture, as :meth:`plot` takes it.

        Returns:
            The path.

        Raises:
            InputError: another ending, or a folder that cannot be written to.
        """
        path = check_destination(path, FORMATS)
        if path.suffix.lower() != ".npz":
            return saving.save_figure(self.plot(**look), path)
        arrays: dict[str, Any] = {
            f"maps_{sign}": values.numpy() for sign, values in self.maps.items()
        }
        for part in _PARTS:
            value = getattr(self, part)
            arrays[part] = value.numpy() if isinstance(value, Tensor) else np.array(value)
        arrays["crops"] = np.array([(*c.size, *c.box) for c in self.crops], dtype=np.float64)
        for part in ("text_maps", "hints"):
            if getattr(self, part):
                arrays[part] = np.array(json.dumps(getattr(self, part)))

        def write(file: BinaryIO) -> None:
            np.savez_compressed(file, **arrays)

        replace_file(path, write)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Explanation:
        """Read what :meth:`save` wrote as .npz.

        Raises:
            InputError: there is no such file, or it holds something else.
        """
        path = find_file(path, caller="Explanation.load")
        try:
            with zipfile.ZipFile(path):
                pass
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            return cls(
                maps={
                    key.removeprefix("maps_"): torch.from_numpy(array)
                    for key, array in arrays.items()
                    if key.startswith("maps_")
                },
                names=tuple(arrays["names"].tolist()),
                model=str(arrays["model"]),
                method=str(arrays["method"]),
                words=bool(arrays["words"]),
                text_maps=tuple(
                    tuple((str(word), float(value)) for word, value in of_text)
                    for of_text in json.loads(str(arrays.get("text_maps", "[]")))
                ),
                hints=tuple(map(tuple, json.loads(str(arrays.get("hints", "[]"))))),
                crops=tuple(
                    Crop((int(height), int(width)), (left, top, right, bottom))
                    for height, width, left, top, right, bottom in arrays.get("crops", ())
                ),
                scores=torch.from_numpy(arrays["scores"]),
                norms=torch.from_numpy(arrays["norms"]),
                images=torch.from_numpy(arrays["images"]),
            )
        except DAMAGED as error:
            raise InputError(
                f"Explanation.load: {path} is not a file of Explanation.save ({error})."
            ) from error

    def __repr__(self) -> str:
        return (
            f"Explanation(model={self.model!r}, method={self.method!r}, images={len(self.images)}, "
            f"names={list(self.names)}, signs={list(self.maps)})"
        )
