"""An `Explanation`: maps and scores, with its figures and files."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import product
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
    """What is written with a map, wherever it is shown: in figures, pages, tables and lines.

    Attributes:
        title: the name of the target; of a class, with its probability.
        note: under the map: the cosine of a text, the norm or the share of a word.
        detail: what the note adds to the cosine, or the share, if anything.
        weight: the brightness of the map: of a word its norm or its peak over the largest, else 1.
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
        names: of the K targets.
        norms: lengths (K,) that the targets had before they became unit rows.
        model: its name.
        method: its command-line name with its options.
        images: what the model saw, (B, 3, H, W), colors in [0, 1].
        words: whether the first target is a text and the others are its words.
        text_maps: of the text side, for each text its words with their values; start, end and
            padding are left out. Where only the text side was asked for, `maps` is empty.
        hints: for each image sentences about the maps that should be doubted, where they were
            looked for; they stand in the caption of :meth:`plot`.
        crops: the part of its photo that each image is; empty for images that came as tensors, and
            where the processor is not known to crop in a way that can be read.
        photos: what was given for each image, for :meth:`plot`; a file does not keep them.
        leave_one_out: for pairs with a text (``side="pairs"``), what the cosine loses without the
            text, and without each of its words, (B, K). `maps` are then the map of the whole text
            and each word's share of it; `scores` the cosine and the sum of each share.
        reference: for a pair of images the other image, (3, H, W), colors in [0, 1]. `names` are
            its own, then the cells of its grid row by row.
        cells: rows and columns of this grid, kept by :meth:`match`; (1, N) where the explanation is
            for a word of a pair with N words, or for N tokens of a late interaction.
        contrast: the two texts of ``explain(..., against=)``; the target is the first's embedding
            less the second's, and ``scores * norms`` the difference of their cosines.
        probabilities: of the classes of :func:`captum_clip.classify`, (1, K); otherwise None.
        calibration: how they follow from the cosines.

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
        count, targets = len(self.images) if self.images.ndim else 0, len(self.names)
        shape = (count, targets)
        lost, shares = self.leave_one_out, self.probabilities
        fits = (
            self.images.ndim == 4
            and (self.scores.shape, self.norms.shape) == (shape, (targets,))
            and (lost is None or lost.shape == shape)
            and (shares is None or shares.shape == (1, targets))
            and len(self.maps) + len(self.text_maps) > 0
            and len(self.text_maps) in (0, targets)
            and all(len(x) in (0, count) for x in (self.hints, self.crops, self.photos))
            and list(self.maps) == [sign for sign in SIGNS if sign in self.maps]
            and all(m.ndim == 4 and m.shape[:2] == shape for m in self.maps.values())
            and min(self.cells) >= 0
            and (not self.contrast or (len(self.contrast), targets) == (2, 1))
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
        """What is written with each map, B times K."""
        among = " among the named" * self.calibration.startswith("shares")
        titles = list(self.names)
        if self.probabilities is not None:
            # 0.0% would read as impossible, and a softmax never says so
            shares = [
                "below 0.1%" if p < 0.001 else f"{p:.1%}" for p in self.probabilities[0].tolist()
            ]
            titles = [f"{name}: {p}{among}" for name, p in zip(titles, shares, strict=True)]
        weights = torch.ones(len(self), len(titles))
        if self.leave_one_out is not None:
            peaks = torch.stack([m.amax((-2, -1)) for m in self.maps.values()]).amax(0)[:, 1:]
            # where all maps are empty, 0 / 0 would be NaN, and so would each map times its weight
            largest = peaks.amax(1, keepdim=True).clamp(min=torch.finfo(peaks.dtype).tiny)
            weights[:, 1:] = peaks / largest
        elif self.words and len(titles) > 1:
            weights[:, 1:] = self.norms[1:] / self.norms[1:].max()
        differences, rows = self.scores * self.norms, list[list[Shown]]()
        is_part = self.reference is None and self.cells != (0, 0)  # a word or token of a pair
        for row, scores in enumerate(self.scores.tolist()):
            rows.append([])
            for column, (title, score) in enumerate(zip(titles, scores, strict=True)):
                note, detail = score_note(score), ""
                if is_part:
                    note = f"share {signed_number(score)}"
                elif self.leave_one_out is not None:
                    detail = f"lost {signed_number(float(self.leave_one_out[row, column]))}"
                    note = f"share {signed_number(score)}, {detail}" if column else note
                elif self.words and column:
                    note = detail = f"norm {float(self.norms[column]):.2f}"
                elif self.contrast:
                    detail = f"cosines differ by {signed_number(float(differences[row, column]))}"
                rows[-1].append(Shown(title, note, detail, float(weights[row, column])))
        return rows

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
        # a negative index would count from the end, and True is the integer 1
        for name, index, count in zip(("row", "column"), (row, column), self.cells, strict=True):
            if not is_integer(index, least=0) or index >= count:
                raise InputError(f"expected a {name} from 0 to {count - 1}, got {index!r}.")
        return self._target(1 + row * self.cells[1] + column)

    def _target(self, index: int) -> "Explanation":
        """The explanation of one target; a part of the whole, such as a word, keeps its share."""
        column, name, cells = slice(index, index + 1), self.names[index], self.cells
        if index == 0 and self.reference is not None:  # the whole, with its cosine
            cells = (0, 0)
        elif index and self.leave_one_out is not None:
            cells = (1, len(self.names) - 1)
        return replace(
            self,
            maps={sign: m[:, column] for sign, m in self.maps.items()},
            scores=self.scores[:, column],
            names=(name,),
            norms=self.norms[column],
            words=False,
            text_maps=self.text_maps[column],
            hints=tuple(
                tuple(h for h in hints if f"“{name}”" in h or "“" not in h) for hints in self.hints
            ),
            leave_one_out=None,
            reference=None,
            cells=cells,
            probabilities=None if self.probabilities is None else self.probabilities[:, column],
        )

    @public("heatmap")
    def heatmap(
        self, interpolation: Mode = "bilinear", *, original: bool = False, scale: Any = "own"
    ) -> dict[str, Tensor]:
        """The maps resized, then min-max normalized one by one, sign -> (B, K, H, W) in [0, 1].

        The two signs of a map share one scale. Where an image was padded the map is zero, and left
        out of the scale. :meth:`plot` draws them, with the interpolation that it is given. The map
        of one text is that of ``explanation["a horse"].heatmap()``.

        Args:
            interpolation: as of :meth:`plot`.
            original: at the photos' own size, zero where the model did not see them.
            scale: "own", "shared" by all maps, or the value that becomes 1, as of a figure.

        Raises:
            InputError: an unknown look; photos that are not known, or differ in size.
        """
        how = self.scaling(Look(interpolation=interpolation, scale=scale))
        check_flag("original", original)
        height, width = self.images.shape[-2:]
        size, box = (height, width), (0.0, 0.0, float(width), float(height))
        # padding has no evidence, and would be the minimum of the scale
        views = [(size, box, crop.of_photo(size)) for crop in self.crops]
        views = views or [(size, box, box)] * len(self)
        if original:
            regions.check_crops(self)
            views = [(crop.size, crop.box, crop.box) for crop in self.crops]
            if len(sizes := sorted({crop.size for crop in self.crops})) > 1:
                differ = f"the photos differ in height and width, {sizes}"
                raise InputError(f"{differ}; take one, as in explanation[0].heatmap(...).")
        each = []
        for index, (size, box, visible) in enumerate(views):
            raw = {sign: values[index, None] for sign, values in self.maps.items()}
            each.append(regions.normalized(raw, size, how, box, visible))
        return {sign: torch.cat([heatmap[sign] for heatmap in each]) for sign in self.maps}

    def scaling(self, look: Look) -> regions.Scaling:
        """How a look resizes the maps, and the value of theirs that it draws as 1, if any."""
        largest = max((float(values.max()) for values in self.maps.values()), default=0) or 1.0
        return look.interpolation, largest if look.scale == "shared" else look.top

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
                of which it is not known how it crops a photo.
        """
        if self.photos:
            regions.check_crops(self)
        marked = []
        views = enumerate(self._crops_or_images())
        for (index, crop), (column, name) in product(views, enumerate(self.names)):
            # both signs on one scale: a weak one on its own would mark as much as a strong one
            raw = {sign: values[index, column] for sign, values in self.maps.items()}
            heatmap = regions.normalized(raw, crop.size, ("bicubic", None), crop.box)
            marked += [
                regions.region(values, crop.box, threshold, image=index, target=name, sign=sign)
                for sign, values in heatmap.items()
            ]
        return marked

    def _crops_or_images(self) -> Sequence[Crop]:
        """Where each image lies in its photo; where that is unknown, the image is its own photo."""
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
        .npz keeps of each photo its size and what the model saw of it, not the photo. A page needs
        no network: a word that is pointed at shows its map, a region what answers it. An .npy has
        the raw maps (B, K, h, w) alone; of both signs their difference.

        Args:
            path: in an existing folder.
            original: as of :meth:`plot`.
            **_: the look of the figure, as :meth:`plot` takes it.

        Returns:
            The path.

        Raises:
            InputError: another ending, a folder that cannot be written to, or no look of the file.
        """
        path = check_destination(path, ENDINGS)
        current_look.get().check_file(path)
        kind = path.suffix.lower()
        if kind == ".npz":
            arrays = {f"maps_{sign}": values.numpy() for sign, values in self.maps.items()}
            tensors = {name: getattr(self, name) for name in _TENSORS}
            arrays |= {name: v.numpy() for name, v in tensors.items() if v is not None}
            about = {name: getattr(self, name) for name in _FACTS}
            arrays["about"] = np.array(json.dumps(about, default=astuple))
            replace_file(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
        elif kind == ".html":
            # a name may hold half a surrogate pair, which UTF-8 cannot write
            text = drawing.html_page(self, original).encode(errors="replace")
            replace_file(path, lambda file: file.write(text))
        elif kind == ".npy":
            self._crops_or_images()
            first, *second = self.maps.values()
            replace_file(path, lambda file: np.save(file, (first - sum(second)).numpy()))
        else:
            super().save(path, original=original)
        return path

    @classmethod
    @public("Explanation.load")
    def load(cls, path: str | Path) -> "Explanation":
        """Read what :meth:`save` wrote as .npz.

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
            number = range(len(self))[index]  # IndexError past the last, as iteration needs it
            # a slice, which keeps the dimension of the images
            index = slice(number, number + 1)
        names = ("scores", "images", "hints", "crops", "photos", "leave_one_out")
        values = {name: getattr(self, name) for name in names}
        chosen: Any = {name: None if v is None else v[index] for name, v in values.items()}
        return replace(self, maps={s: m[index] for s, m in self.maps.items()}, **chosen)

    def _repr_jpeg_(self) -> bytes | None:
        """The figure, where no page stands for it."""
        return None if self.words or self.reference is not None else super()._repr_jpeg_()

    def _repr_html_(self) -> str | None:
        """The page of :meth:`save`, which a notebook shows for words and pairs."""
        if not self.words and self.reference is None:
            return None
        frame = 'title="Explanation" style="width: 100%; height: 40rem; border: 0"'
        # Without the escape a quote in a text would end the attribute. In a frame, its styles and
        # scripts do not meet those of the notebook.
        return f'<iframe srcdoc="{html.escape(drawing.html_page(self))}" {frame}></iframe>'

    def __repr__(self) -> str:
        return (
            f"Explanation(model={self.model!r}, method={self.method!r}, images={len(self.images)}, "
            f"names={excerpt(str(list(self.names)), 300)}, signs={list(self.maps)})"
        )


_FIELD_KINDS: Final = get_type_hints(Explanation)
_TENSORS: Final = [name for name, kind in _FIELD_KINDS.items() if kind in (Tensor, Tensor | None)]
_FACTS: Final = [name for name in _FIELD_KINDS if name not in ("maps", "photos", *_TENSORS)]
"""Fields that a file has as arrays, and as JSON."""


def _read_fields(path: Path) -> dict[str, Any]:
    """Read what :meth:`Explanation.save` wrote; InputError where a file holds something else."""
    try:
        # NumPy would not close a damaged file that it opened itself
        # allow_pickle: unpickling would run whatever code a file holds.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        text = arrays.pop("about").astype(str).tobytes()
        about = json.loads(text.decode("utf-32"))  # NumPy checks no characters
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if not all(tensor.is_floating_point() for tensor in tensors.values()):
            raise ValueError("it has arrays of another type")
        if unknown := tensors.keys() - {*_TENSORS, *(f"maps_{sign}" for sign in SIGNS)}:
            raise ValueError(f"it has {', '.join(sorted(unknown))}")
        return {
            "maps": {sign: tensors[f"maps_{sign}"] for sign in SIGNS if f"maps_{sign}" in tensors},
            **{name: tensors[name] for name in _TENSORS if name in tensors},
            **{name: _frozen(about[name]) for name in _FACTS},
            "crops": tuple(Crop(size, box) for size, box in _frozen(about["crops"])),
        }
    except DAMAGED as error:
        raise InputError(f"not a file of Explanation.save ({error}).") from error


def _frozen(value: Any) -> Any:
    """A value of JSON with tuples for its lists, as a frozen dataclass has them."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


class Comparison(tuple[Explanation, ...], drawing.Drawable):
    """Explanations by several models, from :func:`explain`: ``found[0]``, ``found["RN50 (2)"]``."""

    @public("Comparison")
    def __getitem__(self, index: SupportsIndex | slice | str) -> Any:
        """The explanation of one model, by its place or name; for a slice, those of several."""
        if isinstance(index, str):
            names = [explanation.model for explanation in self]
            expect(index in names, f"a model of {', '.join(names)}", index)
            index = names.index(index)
        chosen = super().__getitem__(index)
        return chosen if isinstance(chosen, Explanation) else Comparison(chosen)
