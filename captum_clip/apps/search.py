r"""Images that were read once, kept as vectors: they answer every later text with score and map.

:class:`DirectContribution` makes the unit embedding of an image a sum of vectors, one a position,

.. math:: \hat e = \sum_j c_j + c_0, \qquad
    \cos(x, t) = \hat e \cdot t, \qquad r_j(t) = c_j \cdot t

so an image whose vectors are kept no longer needs its tower. They lie in a table of LanceDB
(embedded, no server). A search reads all embeddings, and the vectors of the best images alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from .. import checks, maps, targets
from ..checks import as_list, check_choice, check_integer, expect, expecting
from ..errors import InputError, public
from ..explaining.explanation import Explanation
from ..explaining.hints import count_doubts, share_of_better
from ..explaining.request import Sign
from ..files import make_folder, replace_file, to_csv
from ..folders.storage import storage_of
from ..folders.workers import Progress, threads
from ..models import ClipAdapter, differing_parts, load_clip
from ..models.names import check_stated
from ..targets import Target
from ..targets.similarity import check_dimension
from ..visualization import save_figure
from ..visualization.charts import strip_legends
from ..visualization.colors import ramp, score_note, sign_colors, signed_layers
from ..visualization.grid import Legend, Panel, Row, grid
from . import search_table
from .search_table import File, IndexTable, Precision, RowMaker

__all__ = ["ImageIndex", "SearchResult"]

TABLE, FIGURE = "search.csv", "search.png"
_PANELS_ACROSS: Final = 6  # panels in a row of the figure


@dataclass(frozen=True, eq=False, repr=False)
class SearchResult:
    """The images of an index that fit best, best first.

    Attributes:
        files: the N best, relative to the folder of the index.
        scores: what they are ordered by (N,), the cosine, or the weighted mean of several.
        explanation: their maps for the K targets; its `scores` are the cosines (N, K).
        compared: how many images the index holds.
        skipped: those among the best that are gone or cannot be read: file -> why.
        doubts: sentences on texts that fit these images no better than unrelated texts do.
    """

    files: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    explanation: Explanation
    compared: int
    skipped: dict[str, str]
    doubts: tuple[str, ...] = ()

    def panels(self) -> Iterator[list[Panel]]:
        """Each image with its rank, name and score, then its map for each target; best first."""
        explanation, has_one_target = self.explanation, len(self.explanation.names) == 1
        chosen, colors = checks.current_look.get(), sign_colors(*explanation.maps)
        heatmap = explanation.heatmap(chosen.interpolation, scale=chosen.scale)
        heatmaps = [maps.numpy() for maps in heatmap.values()]
        cosines = explanation.scores.tolist()
        for index, (file, score) in enumerate(zip(self.files, self.scores.tolist(), strict=True)):
            image, note = explanation.images[index].movedim(0, -1).numpy(), score_note(score)
            if not has_one_target:  # a mean of several cosines is a cosine of none
                note = note.replace("cosine", "score")
            panels = [Panel(image, f"{index + 1}. {file.rpartition('/')[2]}", note)]
            for column, title in enumerate(explanation.names):
                first, *second = (maps[index, column] for maps in heatmaps)
                layers = signed_layers(first - second[0]) if second else [(first, colors[0])]
                note = "" if has_one_target else score_note(cosines[index][column])
                panels.append(Panel(image, title, note, layers=layers))
            yield panels

    def plot(self) -> Figure:
        """Draw :meth:`panels`, those of an image next to each other."""
        explanation, rows = self.explanation, list[Row]()
        for panels in self.panels():
            if not rows or len(rows[-1]) + len(panels) > _PANELS_ACROSS:
                rows.append([])
            rows[-1] += panels
        legends = strip_legends("supports", "contradicts")
        if len(explanation.maps) == 1:
            legends = [Legend(ramp(sign_colors(*explanation.maps)[0]), "low to high")]
        caption = f"{explanation.model} \N{MIDDLE DOT} {explanation.method}"
        return grid(rows, legends=legends, caption=" \N{MIDDLE DOT} ".join([caption, *self.doubts]))

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
        columns = {name: [f"{value:.6f}" for value in column] for name, column in numbers.items()}
        content = to_csv({"rank": range(1, len(self.files) + 1), "file": self.files, **columns})
        replace_file(folder / TABLE, lambda file: file.write(content))
        return folder / TABLE, save_figure(self.plot(), folder / FIGURE)


class ImageIndex:
    r"""Unit embeddings of images and the vectors of their positions, in a table of LanceDB.

    A search compares the embeddings, which are kept in float32, so its scores are those of
    :class:`captum_clip.ClipSimilarity`. A map is one product with the vectors of an image. By
    default they are kept in int8 with one scale per image, so a map is off by at most
    :math:`\max_{jd} |c_{jd}| / 254` times :math:`\sum_d |t_d|`. Its sum and the rest still are the
    score.

    Made by :meth:`build` or :meth:`open`; len() is the number of images. Needs the extra "search":
    ``pip install 'captum-clip[search]'``.

    Attributes:
        clip: the model, which only its texts are encoded with.
        folder: where the images lie; "" where files were given.
        method: "direct", with its options.
        table: the table itself, with columns file, bytes, modified, vector, contributions, scale,
            checksum.

    Source: the vectors are those of Gandelsman et al. 2024 (arXiv:2310.05916) for a ViT's CLS.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from captum_clip import load_clip
        >>> from captum_clip.demo.scenes import draw_scene
        >>> from captum_clip.apps.search import ImageIndex
        >>> clip, folder = load_clip("demo/vit"), tempfile.mkdtemp()
        >>> for seed in range(4):
        ...     Image.fromarray(draw_scene(seed).image).save(f"{folder}/{seed}.png")
        >>> index = ImageIndex.build(clip, folder, f"{folder}/index.lance")
        >>> found = index.search("a sad face", top=3)
        >>> len(index), len(found.files), found.explanation.maps["positive"].shape
        (4, 3, torch.Size([3, 1, 7, 7]))
    """

    def __init__(self, clip: ClipAdapter, table: IndexTable) -> None:
        self.clip, self.skipped = clip, dict[str, str]()
        self._table, self.table = table, table.lance
        self.folder, self.method = str(table.about["folder"]), str(table.about["method"])
        self._storage = storage_of(self.folder or ".")
        self._identity = table.about["identity"]
        self._check("embeds texts", clip.identity(images=False))
        # as the model stands, which in half precision may differ by more than the bound
        self._identity = {**self._identity, **clip.fixed_embeddings(images=False)}
        # once, since to read the weights takes a second a gigabyte
        self._check_images = cache(lambda: self._check("embeds images", clip.identity(texts=False)))

    @property
    def files(self) -> list[str]:
        """The images, relative to the folder."""
        return sorted(file.file for file in self._table.files())

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
                maps are those of conservative, at a backward for each number of an embedding. Or
                "removal:share=None", with options.
            precision: of the vectors, "int8" or "float16".
            progress: called with how many images were done, how many there are, and "".
            **computing: settings of :class:`captum_clip.folders.workers.RunConfig`: `engine`,
                `workers`, `gpus`, `threads`, `batch_size`, and `chunk_size`, the images that are
                written at a time (512).

        Returns:
            The index; its `skipped` has the files that could not be read, with the reason.

        Raises:
            InputError: no image, a table of another model, method or folder, one that is damaged,
                or an option out of range.
            UnsupportedModelError: a tower whose embedding is not taken apart.
        """
        expect(isinstance(clip, ClipAdapter), "an adapter from load_clip(...)", clip)
        # a DataLoader, which can be iterated, but for tensors
        expect(not hasattr(images, "dataset"), "files or a folder of images", images)
        storage, folder, files, unnamed = search_table.list_files(images)
        vectors = RowMaker(storage, clip, method, precision, **computing)
        table = IndexTable(path)
        with table.storage.lock(), threads(vectors.config.thread_count):
            table.make({**vectors.about, "folder": folder}, {file.file for file in files})
            index = cls(clip, table)
            index.skipped |= unnamed
            index._update(files, vectors, progress or (lambda *_: None))
        return index

    def _update(self, files: Sequence[File], vectors: RowMaker, progress: Progress) -> None:
        before = {*self._table.files()}
        gone, is_left = [file.file for file in before - {*files}], not before.isdisjoint(files)
        missing = [file for file in files if file not in before]
        done = len(files) - len(missing)
        progress(done, len(files), "")
        for rows in vectors.tables(missing):
            reasons = dict(zip(*rows.select(["file", "reason"]).to_pydict().values(), strict=True))
            self.skipped |= {name: reason for name, reason in reasons.items() if reason}
            whole = rows.filter([not reason for reason in reasons.values()])
            if len(whole):
                self._table.remove(gone)  # not before: else nothing may be left
                gone, is_left = [], True
                self._table.add(whole.drop_columns(["reason"]))
            done += len(rows)
            progress(done, len(files), "")
        if not is_left:
            raise _unreadable(len(files), self.skipped, "no file was given")
        self._table.remove(gone)
        # compacting writes a version of the table, even where nothing has changed
        if before != {*self._table.files()}:
            self._table.compact()

    @classmethod
    @public("ImageIndex.open")
    def open(
        cls,
        path: str | Path,
        model: str | ClipAdapter | None = None,
        *,
        images: str = "",
        **loading: Any,
    ) -> "ImageIndex":
        """Open an index with its model.

        Args:
            path: of the table.
            model: the one that it was made with, known by what its text tower computes; by
                default it is loaded by its name, which may be on a hub but no folder or file.
            images: the URL of their folder, where it lies on other machines than the table.
            **loading: options of :func:`captum_clip.load_clip`, such as ``device``.

        Raises:
            InputError: no index, one that is damaged, names that lead out of its folder, images
                in another store than named, or another model, or one that only you may name.
        """
        table = IndexTable(path).open(images)
        about = table.about
        if model is None:
            model = check_stated(about["model"], path)
        if isinstance(model, (str, Path)):
            loading = {"image_size": about["image_size"], **loading}
        return cls(load_clip(model, **loading), table)

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
        expected = f"{len(target)} weights, none below zero, that have a sum"
        with expecting(expected, weights):
            shares = np.array([1] * len(target) if weights is None else weights, np.float32)
        fits = shares.shape == (len(target),) and (shares >= 0).all() and 0 < shares.sum() < np.inf
        expect(fits, expected, weights)
        direction = (shares / shares.sum()) @ target.embeddings.float().cpu().numpy()
        rows = self._table.nearest(direction, top)
        # not LanceDB's distances, so that the same image always has the same score
        totals = (search_table.vectors_of(rows) * direction).sum(1)
        order = np.lexsort((rows["file"].to_pylist(), -totals))
        rows, totals = rows.take(order), totals[order]
        explanation, skipped, readable = self._explain(rows, target, sign)
        files = tuple(rows["file"].take(readable).to_pylist())
        doubts: tuple[str, ...] = ()
        if not isinstance(texts, Target):  # which may be no texts at all
            vectors = torch.from_numpy(search_table.vectors_of(rows.take(readable)))
            names, scores = explanation.names, explanation.scores
            doubts = count_doubts(names, share_of_better(self.clip, vectors, names, scores))
        return SearchResult(files, totals[readable], explanation, len(self), skipped, doubts)

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
        advice = "build the index again to add images"
        expect(len(rows) == len(names) > 0, "images of the index", names, advice)
        explanation, skipped, _ = self._explain(rows, self._target(texts), sign)
        if skipped:
            name, reason = next(iter(skipped.items()))
            raise InputError(f"{name}: {reason}")
        return explanation

    def _target(self, texts: Any) -> Target:
        target = texts if isinstance(texts, Target) else targets.text(self.clip, texts)
        check_dimension(target.embeddings, self._table.about["grid"][-1], self.clip)
        self._check("embeds texts", self.clip.fixed_embeddings(images=False))
        if target.source != "text":
            self._check_images()
        return target

    def _check(self, does: str, identity: dict[str, str]) -> None:
        """Refuse a model of another identity than made the table, or than it had at first."""
        if differing_parts(self._identity, identity):
            raise InputError(
                f"{self._table.storage.root} was made with {self._table.about['model']}, and "
                f"{self.clip.name} {does} differently; open it with that model and its processor."
            )

    def _explain(
        self, rows: Any, target: Target, sign: Sign
    ) -> tuple[Explanation, dict[str, str], list[int]]:
        """The explanation of rows, why some cannot be read, and the numbers of the others."""
        check_choice(sign, get_args(Sign), name="a sign")
        self._check(
            "crops or scales images", {"preprocessing": search_table.preprocessing_of(self.clip)}
        )
        files = search_table.files_of(rows)
        images, skipped = search_table.read_unchanged(self.clip, self._storage, files)
        readable = [index for index, file in enumerate(files) if file.file not in skipped]
        if not readable:
            raise _unreadable(len(files), skipped, "it holds no image")
        rows, embeddings = rows.take(readable), target.embeddings.float().cpu()
        vectors = search_table.contributions_of(rows, self._table.about)  # (N, h, w, E)
        raw = (vectors @ embeddings.T).movedim(-1, 1)  # (N, K, h, w)
        evidence = {"positive": maps.positive, "negative": maps.negative}
        explanation = Explanation(
            maps={name: side(raw) for name, side in evidence.items() if sign in (name, "both")},
            scores=torch.from_numpy(search_table.vectors_of(rows)) @ embeddings.T,
            names=target.names,
            norms=target.norms.cpu(),
            model=self.clip.name,
            method=self.method,
            images=self.clip.denormalize(torch.cat([image.pixels for image in images])).cpu(),
            crops=tuple(crop for image in images for crop in image.crops),
            photos=tuple(
                Path(self._storage.path, files[index].file)
                for index in readable * self._storage.is_local
            ),
        )
        return explanation, skipped, readable


def _unreadable(count: int, skipped: dict[str, str], absent: str) -> InputError:
    name, reason = next(iter(skipped.items()), ("the index", absent))
    return InputError(f"none of the {count} images can be read; {name}: {reason}")
