r"""Images that were read once, kept as vectors: they answer every later text with score and map.

:class:`DirectContribution` makes the unit embedding of an image a sum of vectors, one a position,

.. math:: \hat e = \sum_j c_j + c_0, \qquad
    \cos(x, t) = \hat e \cdot t, \qquad r_j(t) = c_j \cdot t

so an image whose vectors are kept needs its tower no more. They lie in a table of LanceDB
(embedded, no server), of which a search reads the embeddings, and the vectors of the best alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .. import maps, targets
from ..attr.contributions import DirectContribution
from ..attr.registry import MethodChoice
from ..checks import (
    as_list,
    check_choice,
    check_integer,
    expand,
    expect,
    expecting,
    is_encodable,
)
from ..errors import InputError, TargetError, public
from ..evaluation.config import RunConfig
from ..evaluation.features import ImageFeatures
from ..evaluation.image_batches import ImageReader, list_images
from ..evaluation.run import Progress, threads
from ..evaluation.storage import storage_of
from ..evaluation.units import Skipped, to_csv
from ..explaining import photos
from ..explaining.explanation import Explanation, Sign
from ..explaining.fields import SIGNS
from ..files import make_folder
from ..models import ClipAdapter, differing_parts, load_clip
from ..targets import Target
from ..visualization import save_figure
from ..visualization.colors import (
    ALPHA,
    HEAT,
    NEGATIVE,
    POSITIVE,
    blend,
    blend_signed,
    colormap,
    ramp,
    score_note,
)
from ..visualization.grid import Legend, Panel, Row, grid
from .table import File, Table, files_of, vectors_of
from .vectors import LARGEST, Precision, Vectors

TABLE, FIGURE = "search.csv", "search.png"
_WIDE: Final = 6  # panels in a row of the figure


@dataclass(frozen=True, eq=False, repr=False)
class SearchResult:
    """The images of an index that fit best, best first.

    Attributes:
        files: the N best, relative to the folder of the index.
        scores: what they are ordered by (N,), the cosine, or the weighted mean of several.
        explanation: their maps for the K targets; its `scores` are the cosines (N, K).
        compared: how many images the index holds.
        skipped: those among the best that are gone or cannot be read: file -> why.
    """

    files: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    explanation: Explanation
    compared: int
    skipped: dict[str, str]

    def panels(self) -> Iterator[list[Panel]]:
        """Each image with its rank, name and score, then its map for each target; best first."""
        found = self.explanation
        heatmap = [values.numpy() for values in found.heatmap(interpolation="bicubic").values()]
        colors = colormap(HEAT if "positive" in found.maps else NEGATIVE)
        cosines = found.scores.tolist()
        for number, (file, score) in enumerate(zip(self.files, self.scores, strict=True)):
            pixels, name = found.images[number].movedim(0, -1).numpy(), file.rpartition("/")[2]
            note = score_note(float(score))
            if len(found.names) > 1:  # it is no cosine of one
                note = note.replace("cosine", "score")
            panels = [Panel(pixels, f"{number + 1}. {name}", note)]
            for column, title in enumerate(found.names):
                first, *other = (values[number, column] for values in heatmap)
                drawn = blend(pixels, first, colors, ALPHA)
                if other:
                    drawn = blend_signed(pixels, first - other[0], ALPHA)
                note = score_note(cosines[number][column]) if len(found.names) > 1 else ""
                panels.append(Panel(drawn, title, note))
            yield panels

    def plot(self) -> Figure:
        """Draw :meth:`panels`, those of an image next to each other."""
        found, rows = self.explanation, list[Row]()
        for panels in self.panels():
            if not rows or len(rows[-1]) + len(panels) > _WIDE:
                rows.append([])
            rows[-1] += panels
        bars = {"low to high": colormap(HEAT if "positive" in found.maps else NEGATIVE)}
        if len(found.maps) == 2:
            bars = {"supports": POSITIVE, "contradicts": NEGATIVE}
        legends = [Legend(ramp(colors, ALPHA), label) for label, colors in bars.items()]
        return grid(rows, legends=legends, caption=f"{found.model} \N{MIDDLE DOT} {found.method}")

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write ``search.csv`` (rank, file, score; that of each target) and ``search.png``.

        Args:
            folder: made where there is none; files of these names are replaced.

        Returns:
            The two files.

        Raises:
            InputError: the folder cannot be made or written to.
        """
        folder, numbers = make_folder(folder), {"score": self.scores.tolist()}
        if len(names := [f"score: {name}" for name in self.explanation.names]) > 1:
            numbers |= zip(names, self.explanation.scores.T.tolist(), strict=True)
        columns = {name: [f"{value:.6f}" for value in of] for name, of in numbers.items()}
        ranks = range(1, len(self.files) + 1)
        storage_of(folder).write(TABLE, to_csv({"rank": ranks, "file": self.files, **columns}))
        return folder / TABLE, save_figure(self.plot(), folder / FIGURE)


class ImageIndex:
    r"""Unit embeddings of images and the vectors of their positions, in a table of LanceDB.

    A search compares the embeddings, which are kept in float32, so its scores are those of
    :class:`captum_clip.ClipSimilarity`. A map is one product with the vectors of an image, kept in
    int8 with one scale an image by default, and is off by at most :math:`\max_{jd} |c_{jd}| / 254`
    times :math:`\sum_d |t_d|`; its sum and the rest still are the score.

    Made by :meth:`build` or :meth:`open`; len() is the number of images. Needs the extra "search":
    ``pip install 'captum-clip[search]'``.

    Attributes:
        clip: the model, which only its texts are encoded with.
        folder: where the images lie; "" where files were given.
        method: "direct", with its options.
        table: the table itself, with columns file, bytes, modified, vector, contributions, scale.

    Source: the vectors are those of Gandelsman et al. 2024 (arXiv:2310.05916) for a ViT's CLS.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from captum_clip import load_clip
        >>> from captum_clip.demo.scenes import draw_scene
        >>> from captum_clip.search import ImageIndex
        >>> clip, folder = load_clip("demo/vit"), tempfile.mkdtemp()
        >>> for seed in range(4):
        ...     Image.fromarray(draw_scene(seed).image).save(f"{folder}/{seed}.png")
        >>> index = ImageIndex.build(clip, folder, f"{folder}/index.lance")
        >>> found = index.search("a sad face", top=3)
        >>> len(index), len(found.files), found.explanation.maps["positive"].shape
        (4, 3, torch.Size([3, 1, 7, 7]))
    """

    def __init__(self, clip: ClipAdapter, table: Table) -> None:
        self.clip, self.skipped = clip, dict[str, str]()
        self._table, self.table = table, table.lance
        self.folder, self.method = str(table.about["folder"]), str(table.about["method"])

    @property
    def files(self) -> list[str]:
        """The images, relative to the folder."""
        return sorted(self._table.files())

    @classmethod
    @public("ImageIndex.build")
    def build(
        cls,
        clip: ClipAdapter,
        images: str | Path | Sequence[str | Path],
        path: str | Path,
        *,
        method: str = "direct",
        precision: Precision = "int8",
        progress: Progress | None = None,
        **computing: Any,
    ) -> "ImageIndex":
        """Make an index of images, or bring one up to date.

        Images that are in it stay; new ones are added, those of another size or date are replaced,
        and those that are gone are removed. After a stop it goes on with what is missing.

        Args:
            clip: the model; for Ray it is one that was loaded by name.
            images: a folder, searched with the folders in it, or its URL; or files.
            path: of the table, such as photos.lance; or its URL.
            method: "direct", with options as in "direct:depth=token"; with "direct:depth=all" the
                maps are those of conservative, at a backward for each number of an embedding.
            precision: of the vectors, "int8" or "float16".
            progress: called with how many images were done, how many there are, and "".
            **computing: settings of :class:`captum_clip.evaluation.StudyConfig`: `engine`,
                `workers`, `gpus`, `threads`, `batch_size`, and `chunk_size`, the images that are
                written at a time (512).

        Returns:
            The index; its `skipped` has the files that could not be read, with the reason.

        Raises:
            InputError: no image, a table of another model, method or folder, one that is damaged,
                or an option out of range.
            UnsupportedModelError: a tower whose embedding is not taken apart.
        """
        check_choice(precision, LARGEST, name="precision")
        expect(isinstance(clip, ClipAdapter), "an adapter from load_clip(...)", clip)
        choice = MethodChoice.of(method, tower=clip.tower)
        fits = choice.method is DirectContribution and "per" not in choice.options
        expect(fits, "direct with its options but `per`, whose vectors can be kept", choice.name)
        config = RunConfig(**{"chunk_size": 512, **computing})
        if isinstance(images, (str, Path)):
            storage = storage_of(images)
            folder, listed = storage.root, list_images(storage)
        else:
            storage = storage_of(".")
            folder, listed = "", dict.fromkeys(map(_absolute, as_list(images)), 0)
        sizes = {name: size for name, size in listed.items() if is_encodable(name)}
        files = [File.of(storage, name, size) for name, size in sizes.items()]
        vectors = Vectors(storage, choice, precision, config, clip)
        about = {
            "model": vectors.model,
            "identity": vectors.identity,
            "image_size": None if vectors.size == clip.tower.native else vectors.size[0],
            "method": choice.name,
            "precision": precision,
            "grid": vectors.shape,
            "folder": folder,
        }
        table = Table(path)
        with table.storage.lock(), threads(config.thread_count):
            table.make(about)
            index = cls(clip, table)
            odd = [name for name in listed if name not in sizes]
            index.skipped |= dict.fromkeys(odd, "its name is no text in UTF-8")
            index._bring_up_to_date(files, vectors, progress or (lambda *_: None))
        return index

    def _bring_up_to_date(
        self, files: Sequence[File], vectors: Vectors, progress: Progress
    ) -> None:
        kept, wanted = {*self._table.files().values()}, {*files}
        self._table.remove([file.file for file in kept - wanted])
        missing = [file for file in files if file not in kept]
        done = len(files) - len(missing)
        progress(done, len(files), "")
        for made in vectors.tables(missing):
            why = dict(zip(*made.select(["file", "reason"]).to_pydict().values(), strict=True))
            self.skipped |= {name: reason for name, reason in why.items() if reason}
            whole = made.filter([not reason for reason in why.values()])
            if len(whole):
                self._table.add(whole.drop_columns(["reason"]))
            done += len(made)
            progress(done, len(files), "")
        if kept != {*self._table.files().values()}:
            self._table.compact()
        if not len(self):
            name, reason = next(iter(self.skipped.items()), ("", "no file was given"))
            raise InputError(f"none of the {len(files)} images can be read; {name}: {reason}")

    @classmethod
    @public("ImageIndex.open")
    def open(
        cls, path: str | Path, model: str | ClipAdapter | None = None, **loading: Any
    ) -> "ImageIndex":
        """Open an index with its model.

        Args:
            path: of the table.
            model: the one that it was made with, known by what its text tower computes; by
                default it is loaded by its name.
            **loading: options of :func:`captum_clip.load_clip`, such as ``device``.

        Raises:
            InputError: no index, one that is damaged, or another model.
        """
        table = Table(path).open()
        about = table.about
        if model is None:
            model, loading = about["model"], {"image_size": about["image_size"], **loading}
        clip = load_clip(model, **loading)
        if differing_parts(about["identity"], clip.identity(images=False)):
            raise InputError(
                f"{path} was made with {about['model']}, and {clip.name} embeds texts otherwise; "
                "open it with that model."
            )
        return cls(clip, table)

    def __len__(self) -> int:
        return len(self._table)

    @public("search")
    def search(
        self,
        texts: str | Sequence[str] | Target,
        top: int = 12,
        *,
        weights: Sequence[float] | None = None,
        sign: Sign = "positive",
    ) -> SearchResult:
        r"""Find the images that fit best, with a map for each.

        .. math:: s(x) = \sum_k w_k \cos(x, t_k), \quad \sum_k w_k = 1

        Every image is compared, so the order is that of the scores; an index of vectors that you
        give the table makes it faster for many millions, and may miss some.

        Args:
            texts: what to look for, one text or several, or a Target: the difference of two texts,
                or a text and an emotion joined by ``targets.concatenate``.
            top: how many to find.
            weights: of the K targets, none below zero; by default equal.
            sign: of the maps: "positive", "negative" or "both".

        Raises:
            InputError: an option out of range, or none of the best can be read any more.
            TargetError: a text that cannot be a target.
        """
        check_integer("top", top)
        target = self._target(texts)
        direction = _shares(weights, len(target)) @ target.embeddings.float().cpu().numpy()
        rows = self._table.nearest(direction, min(top, max(1, len(self))))
        totals = (vectors_of(rows) * direction).sum(1)  # the same for the same image
        order = np.lexsort((rows["file"].to_pylist(), -totals))
        explanation, skipped, kept = self._explain(rows.take(order), target, sign)
        best = order[kept]
        files = tuple(rows["file"].take(best).to_pylist())
        return SearchResult(files, totals[best], explanation, len(self), skipped)

    @public("explanation")
    def explanation(
        self,
        paths: str | Path | Sequence[str | Path],
        texts: str | Sequence[str] | Target,
        *,
        sign: Sign = "positive",
    ) -> Explanation:
        """Explain images of the index; errors as of :meth:`search`.

        Args:
            paths: one or several, as :attr:`SearchResult.files` has them.
            texts: as of :meth:`search`, like what follows.
            sign: of the maps.
        """
        names = [*map(str, as_list([paths] if isinstance(paths, Path) else paths))]
        rows = self._table.rows(names)
        known = len(rows) == len(names) > 0
        expect(known, "images of the index", names, "build it anew to add some")
        explanation, skipped, _ = self._explain(rows, self._target(texts), sign)
        if skipped:
            name, reason = next(iter(skipped.items()))
            raise InputError(f"{name}: {reason}")
        return explanation

    @public("features")
    def features(self, paths: Sequence[str | Path]) -> ImageFeatures:
        """The unit embeddings of files, as :func:`captum_clip.evaluation.image_features` has them.

        Files that are not in the index are skipped.
        """
        listed = [Path(path) for path in paths]
        within = f"{self.folder}/" if self.folder else ""
        names = [_absolute(path, within).removeprefix(within) for path in listed]
        rows = self._table.rows(names, ("file", "vector"))
        found = {*rows["file"].to_pylist()}
        indices = [number for number, name in enumerate(names) if name in found]
        missing = [path for path, name in zip(listed, names, strict=True) if name not in found]
        return ImageFeatures(
            vectors_of(rows),
            tuple(listed[number] for number in indices),
            np.array(indices, dtype=np.int64),
            dict.fromkeys(missing, "it is not in the index"),
        )

    def _target(self, texts: Any) -> Target:
        target = texts if isinstance(texts, Target) else targets.text(self.clip, texts)
        size, given = self._table.about["grid"][-1], target.embeddings.shape[1]
        wanted = f"a target of {size} numbers, as embeddings of {self.clip.name} have"
        expect(given == size, wanted, given, "make it with this model", error=TargetError)
        return target

    def _explain(
        self, rows: Any, target: Target, sign: Sign
    ) -> tuple[Explanation, dict[str, str], list[int]]:
        """The explanation of rows, why some images cannot be read, and the places of the others."""
        check_choice(sign, get_args(Sign), name="a sign")
        storage, names = storage_of(self.folder or "."), rows["file"].to_pylist()
        reader = ImageReader(storage, names, partial(photos.preprocess, self.clip))
        seen, skipped, kept = list[photos.PreprocessedImages](), dict[str, str](), list[int]()
        files = files_of(rows)
        for place, name in enumerate(names):  # one may come twice
            read = reader(place)
            if isinstance(read, Skipped):
                skipped[name] = read.reason
            elif File.of(storage, name) != files[name]:
                skipped[name] = "it has changed; build the index anew"
            else:
                seen.append(read)
                kept.append(place)
        if not kept:
            name, reason = next(iter(skipped.items()), ("the index", "it holds no image"))
            raise InputError(f"none of the {len(names)} images can be read; {name}: {reason}")
        rows, embeddings = rows.take(kept), target.embeddings.float().cpu()
        raw = (self._contributions(rows) @ embeddings.T).movedim(-1, 1)  # (N, K, h, w)
        signed = {"positive": raw, "negative": -raw}
        explanation = Explanation(
            maps={name: maps.positive(signed[name]) for name in SIGNS if sign in (name, "both")},
            scores=torch.from_numpy(vectors_of(rows)) @ embeddings.T,
            names=target.names,
            norms=target.norms.cpu(),
            model=self.clip.name,
            method=self.method,
            images=self.clip.denormalize(torch.cat([each.pixels for each in seen])).cpu(),
            crops=tuple(crop for each in seen for crop in each.crops),
            photos=tuple(Path(storage.path, names[place]) for place in kept * storage.is_local),
        )
        return explanation, skipped, kept

    def _contributions(self, rows: Any) -> Tensor:
        """The positions' vectors (N, h, w, E) of rows."""
        precision, shape = self._table.about["precision"], self._table.about["grid"]
        numbers = np.frombuffer(b"".join(rows["contributions"].to_pylist()), precision)
        scales = rows["scale"].to_numpy()[:, None, None, None]
        return torch.from_numpy(numbers.reshape(len(rows), *shape) * scales)


def _absolute(path: str | Path, within: str = "") -> str:
    file = expand(path).absolute()
    if not file.as_posix().startswith(within):  # a link may lead there
        file = file.parent.resolve() / file.name
    return file.as_posix()


def _shares(weights: Sequence[float] | None, count: int) -> npt.NDArray[np.float32]:
    """Weights of so many targets, divided by their sum."""
    if weights is None:
        return np.full(count, 1 / count, np.float32)
    with expecting(f"{count} weights, none below zero", weights):
        shares: npt.NDArray[np.float32] = np.array(weights, np.float32)
    fit = shares.shape == (count,) and (shares >= 0).all() and 0 < shares.sum() < np.inf
    expect(fit, f"{count} weights, none below zero, that have a sum", weights)
    shares /= shares.sum()
    return shares
