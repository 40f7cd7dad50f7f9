"""An `Explanation`: maps and scores, with its figures and files."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, SupportsIndex, get_type_hints

import numpy as np
import torch
from torch import Tensor

from ..attr.registry import TextMap
from ..checks import (
    Mode,
    check_destination,
    check_flag,
    error_context,
    excerpt,
    expect,
    find_file,
    is_integer,
    show,
)
from ..errors import InputError, argument, check_kinds, public
from ..files import DAMAGED, replace_file
from ..look import Look, current_look, draws
from ..maps import Threshold
from ..models.adapter import ImageLike
from ..models.images import Crop
from ..visualization.colors import score_note, signed_number
from . import drawing, regions
from .regions import Region
from .request import ENDINGS, SIGNS


class Shown(NamedTuple):
    """The text and the brightness of a map, wherever it is shown: in figures, pages and tables.

    Attributes:
        title: the name of the target; of a class, with its probability.
        note: under the map: the cosine of a text, the norm or the share of a word.
        detail: what the note adds to the cosine, or the share, if anything.
        weight: the brightness; that of a word is its norm or its peak over the largest, else 1.
    """

    title: str
    note: str
    detail: str
    weight: float


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(drawing.Drawable):
    """The maps of images for texts with their scores, from :func:`explain`; tensors on the CPU.

    Attributes:
        maps: sign ("positive", "negative") -> raw maps (B, K, h, w), none below zero, on the
            tower's own grid.
        scores: cosine similarities (B, K).
        names: those of the K targets.
        norms: lengths (K,) that the targets had before they became unit rows.
        model: the name of the model.
        method: the command-line name of the method, with its options.
        images: the images as the model saw them, (B, 3, H, W), colors in [0, 1].
        words: whether the first target is a text and the others are its words.
        text_maps: on the text side, the words of each text with their values; start, end and
            padding are left out. If only the text side was requested, `maps` is empty.
        hints: for each image, sentences about maps that should be doubted; the caption of
            :meth:`plot` has them. Empty where no hints were requested.
        crops: the part of its photo that each image shows; empty for images that came as tensors,
            and for a processor that crops in an unknown way.
        photos: the images as they were given, for :meth:`plot`; a file does not keep them.
        leave_one_out: for pairs with a text (``side="pairs"``), the loss of cosine without the
            text, and without each of its words, (B, K). `maps` are then the map of the whole text
            and each word's share of it; `scores` the cosine and the sum of each share.
        reference: for a pair of images, the other image, (3, H, W), colors in [0, 1]. `names` are
            its name, then the cells of its grid row by row.
        cells: rows and columns of this grid, kept by :meth:`match`; (1, N) if the explanation is
            for a word of a pair with N words, or for N tokens of a late interaction.
        contrast: the two texts of ``explain(..., against=)``. The target is the embedding of the
            first minus that of the second; ``scores * norms`` is the difference of their cosines.
        probabilities: of the classes of :func:`captum_clip.classify`, (1, K); otherwise None.
        calibration: how the probabilities follow from the cosines.

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
    leave_one_out: Tensor | None = None
    reference: Tensor | None = None
    cells: tuple[int, int] = (0, 0)
    contrast: tuple[str, ...] = ()
    probabilities: Tensor | None = None
    calibration: str = ""

    @public("Explanation")
    def __post_init__(self) -> None:
        count = len(self.images) if self.images.ndim else 0
        targets = len(self.names)
        shape = (count, targets)
        lost = self.leave_one_out
        probabilities = self.probabilities
        do_tensors_fit = (
            self.images.ndim == 4
            and self.scores.shape == shape
            and self.norms.shape == (targets,)
            and (lost is None or lost.shape == shape)
            and (probabilities is None or probabilities.shape == (1, targets))
        )
        # The signs have a fixed order, by which figures and files tell the first from the second.
        do_maps_fit = (
            len(self.maps) + len(self.text_maps) > 0
            and len(self.text_maps) in (0, targets)
            and list(self.maps) == [sign for sign in SIGNS if sign in self.maps]
            and all(m.ndim == 4 and m.shape[:2] == shape for m in self.maps.values())
        )
        lists_of_images = (self.hints, self.crops, self.photos)
        fits = (
            do_tensors_fit
            and do_maps_fit
            and all(len(values) in (0, count) for values in lists_of_images)
            and min(self.cells) >= 0
            and (not self.contrast or (len(self.contrast) == 2 and targets == 1))
            and (self.reference is None or targets == 1 + self.cells[0] * self.cells[1])
        )
        if not fits:
            shapes = {sign: tuple(m.shape) for sign, m in self.maps.items()}
            raise InputError(
                f"images {tuple(self.images.shape)}, {targets} names, scores "
                f"{tuple(self.scores.shape)} and maps {shapes} do not belong together."
            )

    @property
    def label(self) -> str:
        """Model and method, as they stand next to the rows of a figure."""
        return f"{self.model} ({self.method})"

    def shown(self) -> list[list[Shown]]:
        """The text and the brightness of each map, B times K."""
        titles = self._titles()
        weights = self._weights().tolist()
        rows = []
        for row, scores in enumerate(self.scores.tolist()):
            shown = []
            for column, score in enumerate(scores):
                note, detail = self._note(row, column, score)
                shown.append(Shown(titles[column], note, detail, weights[row][column]))
            rows.append(shown)
        return rows

    def _titles(self) -> list[str]:
        """The names of the targets, those of classes with their probabilities."""
        if self.probabilities is None:
            return list(self.names)
        among = " among the named" if self.calibration.startswith("shares") else ""
        titles = []
        for name, probability in zip(self.names, self.probabilities[0].tolist(), strict=True):
            # 0.0% would read as impossible, and a softmax never says so.
            share = "below 0.1%" if probability < 0.001 else f"{probability:.1%}"
            titles.append(f"{name}: {share}{among}")
        return titles

    def _weights(self) -> Tensor:
        """The brightness (B, K) of the maps, which tells strong words from weak ones."""
        weights = torch.ones(len(self), len(self.names))
        if self.leave_one_out is not None:
            # A word counts by the higher peak of its two signs; the whole text stays at one.
            peaks_by_sign = [values.amax((-2, -1)) for values in self.maps.values()]  # (B, K) each
            peaks = torch.stack(peaks_by_sign).amax(0)[:, 1:]  # (B, K - 1)
            # Where all maps are empty, 0 / 0 would be NaN, and so would each map times its weight.
            largest = peaks.amax(1, keepdim=True).clamp(min=torch.finfo(peaks.dtype).tiny)
            weights[:, 1:] = peaks / largest
        elif self.words and len(self.names) > 1:
            weights[:, 1:] = self.norms[1:] / self.norms[1:].max()
        return weights

    def _note(self, row: int, column: int, score: float) -> tuple[str, str]:
        """The note under a map, and its detail."""
        if self.reference is None and self.cells != (0, 0):
            # The target is a word or token of a pair, whose score is its share of the cosine.
            return f"share {signed_number(score)}", ""
        if self.leave_one_out is not None:
            lost = f"lost {signed_number(float(self.leave_one_out[row, column]))}"
            if column == 0:  # the whole text
                return score_note(score), lost
            return f"share {signed_number(score)}, {lost}", lost
        if self.words and column > 0:
            norm = f"norm {float(self.norms[column]):.2f}"
            return norm, norm
        if self.contrast:
            difference = float(self.scores[row, column] * self.norms[column])
            return score_note(score), f"cosines differ by {signed_number(difference)}"
        return score_note(score), ""

    @public("match")
    def match(self, row: int, column: int) -> "Explanation":
        """Show one cell of the reference of a pair of images: its map on the image.

        Args:
            row: of the reference's grid, from the top, 0-based.
            column: from the left.

        Raises:
            InputError: no such cell, or an explanation without a pair of images.
        """
        if self.reference is None:
            raise InputError(
                "this explanation has no pair of images; explain(image, reference=other, "
                "side='pairs') makes one."
            )
        rows, columns = self.cells
        for name, index, count in (("row", row, rows), ("column", column, columns)):
            # A negative index would count from the end, and True is the integer 1.
            if not is_integer(index, least=0) or index >= count:
                raise InputError(f"expected a {name} from 0 to {count - 1}, got {index!r}.")
        return self._target(1 + row * columns + column)

    def _target(self, index: int) -> "Explanation":
        """The explanation of one target; a part of the whole, such as a word, keeps its share."""
        # A slice, unlike a number, keeps the dimension of the targets.
        column = slice(index, index + 1)
        name = self.names[index]
        cells = self.cells
        if index == 0 and self.reference is not None:
            # The whole reference has a cosine, where its cells have shares.
            cells = (0, 0)
        elif index > 0 and self.leave_one_out is not None:
            cells = (1, len(self.names) - 1)
        hints = []
        for sentences in self.hints:
            # A sentence that quotes no text is about all of them.
            kept = []
            for sentence in sentences:
                if f"“{name}”" in sentence or "“" not in sentence:
                    kept.append(sentence)
            hints.append(tuple(kept))
        probabilities = self.probabilities
        if probabilities is not None:
            probabilities = probabilities[:, column]
        return replace(
            self,
            maps={sign: values[:, column] for sign, values in self.maps.items()},
            scores=self.scores[:, column],
            names=(name,),
            norms=self.norms[column],
            words=False,
            text_maps=self.text_maps[column],
            hints=tuple(hints),
            leave_one_out=None,
            reference=None,
            cells=cells,
            probabilities=probabilities,
        )

    @public("heatmap")
    def heatmap(
        self, interpolation: Mode = "bilinear", *, original: bool = False, scale: Any = "own"
    ) -> dict[str, Tensor]:
        """Resize the maps and min-max normalize them one by one, sign -> (B, K, H, W) in [0, 1].

        The two signs of a map share one scale. Where an image was padded, the map is zero and left
        out of the scale. :meth:`plot` draws these maps, in the interpolation that it is given. For
        the map of one text, call ``explanation["a horse"].heatmap()``.

        Args:
            interpolation: as of :meth:`plot`.
            original: at the photos' own size, zero where the model did not see them.
            scale: "own", "shared" by all maps, or the value that becomes 1, as in a figure.

        Raises:
            InputError: an unknown look; photos that are not known, or differ in size.
        """
        scaling = self.scaling(Look(interpolation=interpolation, scale=scale))
        check_flag("original", original)
        if original:
            regions.check_crops(self)
            sizes = sorted({crop.size for crop in self.crops})
            if len(sizes) > 1:
                raise InputError(
                    f"the photos differ in height and width, {sizes}; take one, as in "
                    "explanation[0].heatmap(...)."
                )
        height, width = self.images.shape[-2:]
        size = (height, width)
        frame = (0.0, 0.0, float(width), float(height))
        heatmaps = []
        for index in range(len(self)):
            # The image keeps its dimension, (1, K, h, w), so that all can be joined at the end.
            raw = {sign: values[index, None] for sign, values in self.maps.items()}
            if original:
                crop = self.crops[index]
                heatmaps.append(regions.normalized(raw, crop.size, scaling, crop.box))
            else:
                # Padding has no evidence, and would be the minimum of the scale.
                visible = self.crops[index].of_photo(size) if self.crops else frame
                heatmaps.append(regions.normalized(raw, size, scaling, frame, visible))
        joined = {}
        for sign in self.maps:
            joined[sign] = torch.cat([heatmap[sign] for heatmap in heatmaps])
        return joined

    def scaling(self, look: Look) -> regions.Scaling:
        """The interpolation of a look, and the value of the maps that it draws as 1, if any."""
        if look.scale == "shared":
            peaks = [float(values.max()) for values in self.maps.values()]
            # Maps are divided by this value, so it must not be zero where all of them are empty.
            return look.interpolation, max(peaks, default=0) or 1.0
        return look.interpolation, look.top

    @public("regions")
    def regions(self, threshold: Threshold = "otsu") -> list[Region]:
        """The regions that the maps mark, as masks and boxes at the photos' size, for other tools.

        Each map is resized (bicubic, within its range), min-max normalized as by
        :meth:`heatmap`, and marks what is above the threshold. Preprocessed tensors have no photo,
        so the size is that of :attr:`images`.

        Args:
            threshold: "otsu" or "mean", of each map over what the model saw, or a number in [0, 1):
                with both signs a share of the stronger map's maximum.

        Returns:
            One for each image, target and sign, in this order.

        Raises:
            InputError: an unknown threshold, an explanation of the text side alone, or a processor
                that crops in an unknown way.
        """
        if self.photos:
            regions.check_crops(self)
        marked = []
        for index, crop in enumerate(self._crops_or_images()):
            for column, name in enumerate(self.names):
                # Both signs are on one scale: a weak one on a scale of its own would mark as much
                # as a strong one.
                raw = {sign: values[index, column] for sign, values in self.maps.items()}
                heatmap = regions.normalized(raw, crop.size, ("bicubic", None), crop.box)
                for sign, values in heatmap.items():
                    region = regions.region(
                        values, crop.box, threshold, image=index, target=name, sign=sign
                    )
                    marked.append(region)
        return marked

    def _crops_or_images(self) -> Sequence[Crop]:
        """The crops of the photos; if they are unknown, each image is a photo of its own."""
        if not self.maps:
            both = argument("side", "both")
            raise InputError(f"this explanation has words only, no map of an image; use {both}.")
        height, width = self.images.shape[-2:]
        return self.crops or [Crop((height, width), (0, 0, width, height))] * len(self.images)

    @public("save")
    @draws
    def save(self, path: str | Path, *, original: Any = None, **_: Any) -> Path:
        """Write the figure (.png, .jpg, .pdf, .svg), a page (.html), or everything (.npz).

        The file appears under its name only when it is complete; an existing one is replaced. An
        .npz has the size of each photo and what the model saw of it, not the photo. A page needs no
        network: pointing at a word shows its map, at a region the words that match it. An .npy has
        the raw maps (B, K, h, w) alone; for both signs it has their difference.

        Args:
            path: in an existing folder.
            original: as in :meth:`plot`.
            **_: the look of the figure, as in :meth:`plot`.

        Returns:
            The path.

        Raises:
            InputError: another ending, a folder that cannot be written to, or a look that the file
                cannot have.
        """
        path = check_destination(path, ENDINGS)
        current_look.get().check_file(path)
        ending = path.suffix.lower()
        if ending == ".npz":
            arrays = self._arrays()
            replace_file(path, lambda file: np.savez_compressed(file, **arrays))
        elif ending == ".html":
            # A name may hold half a surrogate pair, which UTF-8 cannot write.
            text = drawing.html_page(self, original).encode(errors="replace")
            replace_file(path, lambda file: file.write(text))
        elif ending == ".npy":
            # An explanation without maps is refused there; the crops themselves are not needed.
            self._crops_or_images()
            # The signs come in a fixed order, so the second map can only be the negative one.
            signed, *second = self.maps.values()
            if second:
                signed = signed - second[0]
            replace_file(path, lambda file: np.save(file, signed.numpy()))
        else:
            super().save(path, original=original)
        return path

    def _arrays(self) -> dict[str, Any]:
        """The arrays of an .npz, all fields that are no tensors as JSON in one of them."""
        arrays = {f"maps_{sign}": values.numpy() for sign, values in self.maps.items()}
        for name in _TENSORS:
            tensor = getattr(self, name)
            if tensor is not None:
                arrays[name] = tensor.numpy()
        about = {name: getattr(self, name) for name in _FACTS}
        arrays["about"] = np.array(json.dumps(about, default=astuple))
        return arrays

    @classmethod
    @public("Explanation.load")
    def load(cls, path: str | Path) -> "Explanation":
        """Read an .npz file that :meth:`save` wrote.

        Raises:
            InputError: there is no such file, or it holds something else.
        """
        path = find_file(path)
        with error_context(str(path)):
            fields = _read_fields(path)
            check_kinds(cls, (), fields)
            return cls(**fields)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    @public("Explanation")
    def __getitem__(self, index: int | slice | str) -> "Explanation":
        """The explanation of one image, of some, or of the first target with a name."""
        if isinstance(index, str):
            if index not in self.names:
                listed = excerpt(", ".join(map(repr, self.names)), 300)
                raise InputError(f"there is no text {show(index)}; the texts are {listed}.")
            return self._target(self.names.index(index))
        if not isinstance(index, slice):
            # range raises IndexError past the last image, as iteration needs it. A slice keeps the
            # dimension of the images.
            number = range(len(self))[index]
            index = slice(number, number + 1)
        chosen: dict[str, Any] = {}
        for name in ("scores", "images", "hints", "crops", "photos", "leave_one_out"):
            values = getattr(self, name)
            chosen[name] = None if values is None else values[index]
        maps = {sign: values[index] for sign, values in self.maps.items()}
        return replace(self, maps=maps, **chosen)

    def _repr_jpeg_(self) -> bytes | None:
        """The figure, which a notebook shows where there is no page."""
        if self.words or self.reference is not None:
            return None
        return super()._repr_jpeg_()

    def _repr_html_(self) -> str | None:
        """The page of :meth:`save`, which a notebook shows for words and pairs."""
        if not self.words and self.reference is None:
            return None
        frame = 'title="Explanation" style="width: 100%; height: 40rem; border: 0"'
        # Without the escape a quote in a text would end the attribute. In a frame, the page's
        # styles and scripts do not meet those of the notebook.
        page = html.escape(drawing.html_page(self))
        return f'<iframe srcdoc="{page}" {frame}></iframe>'

    def __repr__(self) -> str:
        return (
            f"Explanation(model={self.model!r}, method={self.method!r}, images={len(self.images)}, "
            f"names={excerpt(str(list(self.names)), 300)}, signs={list(self.maps)})"
        )


_FIELD_KINDS: Final = get_type_hints(Explanation)
_TENSORS: Final = [name for name, kind in _FIELD_KINDS.items() if kind in (Tensor, Tensor | None)]
"""The fields that a file has as arrays, next to the maps."""
_FACTS: Final = [name for name in _FIELD_KINDS if name not in ("maps", "photos", *_TENSORS)]
"""The fields that a file has as JSON."""


def _read_fields(path: Path) -> dict[str, Any]:
    """Read a file of :meth:`Explanation.save`; InputError where it holds something else."""
    try:
        # NumPy would not close a damaged file that it opened itself. Unpickling is refused, since
        # it would run whatever code a file holds.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        # NumPy keeps text as UTF-32 and does not check its characters, so it is decoded here.
        text = arrays.pop("about").astype(str).tobytes()
        about = json.loads(text.decode("utf-32"))
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if not all(tensor.is_floating_point() for tensor in tensors.values()):
            raise ValueError("it has arrays of another type")
        maps = {}
        for sign in SIGNS:
            if f"maps_{sign}" in tensors:
                maps[sign] = tensors.pop(f"maps_{sign}")
        unknown = sorted(tensors.keys() - set(_TENSORS))
        if unknown:
            raise ValueError(f"it has {', '.join(unknown)}")
        facts = {name: _frozen(about[name]) for name in _FACTS}
        facts["crops"] = tuple(Crop(size, box) for size, box in facts["crops"])
        return {"maps": maps, **tensors, **facts}
    except DAMAGED as error:
        raise InputError(f"not a file of Explanation.save ({error}).") from error


def _frozen(value: Any) -> Any:
    """A value of JSON with tuples for its lists, as a frozen dataclass has them."""
    if isinstance(value, list):
        return tuple(_frozen(entry) for entry in value)
    return value


class Comparison(tuple[Explanation, ...], drawing.Drawable):
    """Explanations by several models, from :func:`explain`: ``found[0]``, ``found["RN50 (2)"]``."""

    @public("Comparison")
    def __getitem__(self, index: SupportsIndex | slice | str) -> Any:
        """The explanation of one model, by its position or name; for a slice, those of several."""
        if isinstance(index, str):
            names = [explanation.model for explanation in self]
            expect(index in names, f"a model of {', '.join(names)}", index)
            index = names.index(index)
        chosen = super().__getitem__(index)
        return chosen if isinstance(chosen, Explanation) else Comparison(chosen)
