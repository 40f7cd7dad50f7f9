r"""Search images that are read once and kept as vectors, which give scores and maps for any text.

:class:`DirectContribution` makes the unit embedding of an image a sum of vectors, one per position,

.. math:: \hat e = \sum_j c_j + c_0, \qquad
    \cos(x, t) = \hat e \cdot t, \qquad r_j(t) = c_j \cdot t

so the image tower runs once per image. The vectors are kept in a table of LanceDB, which needs no
server. A search reads all embeddings, but the positions' vectors of the best images only.
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

from .. import maps, targets
from ..checks import as_list, check_choice, check_integer, expect, expecting
from ..errors import InputError, public
from ..explaining.explanation import Explanation
from ..explaining.hints import count_doubts, share_of_better
from ..explaining.request import Sign
from ..files import make_folder, replace_file, to_csv
from ..folders.storage import storage_of
from ..folders.workers import Progress, threads
from ..look import current_look
from ..models import ClipAdapter, differing_parts, load_clip
from ..models.images import Crop
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
_PANELS_ACROSS: Final = 6
"""Panels in a row of the figure."""


@dataclass(frozen=True, eq=False, repr=False)
class SearchResult:
    """The images of an index that fit best, best first.

    Attributes:
        files: the N best, relative to the folder of the index.
        scores: the cosine, or the weighted mean of several cosines, (N,); files are ordered by it.
        explanation: their maps for the K targets; its `scores` are the cosines (N, K).
        compared: the number of images in the index.
        skipped: images among the best that are gone or cannot be read, with the reason.
        doubts: sentences on texts that fit these images no better than unrelated texts do.
    """

    files: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    explanation: Explanation
    compared: int
    skipped: dict[str, str]
    doubts: tuple[str, ...] = ()

    def panels(self) -> Iterator[list[Panel]]:
        """Yield the panels of each image, best first: the image itself, then its map per target."""
        explanation = self.explanation
        look = current_look.get()
        heatmaps = explanation.heatmap(look.interpolation, scale=look.scale)
        colors = sign_colors(*heatmaps)
        has_one_target = len(explanation.names) == 1
        for index, file in enumerate(self.files):
            image = explanation.images[index].movedim(0, -1).numpy()
            score = score_note(self.scores[index].item())
            # The weighted mean of several cosines is not a cosine itself.
            if not has_one_target:
                score = score.replace("cosine", "score")
            panels = [Panel(image, f"{index + 1}. {file.rpartition('/')[2]}", score)]
            for column, name in enumerate(explanation.names):
                values = [heatmap[index, column].numpy() for heatmap in heatmaps.values()]
                if len(values) == 2:
                    layers = signed_layers(values[0] - values[1])
                else:
                    layers = [(values[0], colors[0])]
                # The cosine with a single target is the score, which stands under the image.
                note = ""
                if not has_one_target:
                    note = score_note(explanation.scores[index, column].item())
                panels.append(Panel(image, name, note, layers=layers))
            yield panels

    def plot(self) -> Figure:
        """Draw :meth:`panels`, with those of an image next to each other."""
        explanation = self.explanation
        rows: list[Row] = []
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
        """Write ``search.csv`` (rank, file, score, score for each target) and ``search.png``.

        Args:
            folder: made if there is none; files of these names are replaced.

        Returns:
            The two files.

        Raises:
            InputError: the folder cannot be made or written to.
        """
        folder = make_folder(folder)
        numbers = {"score": self.scores.tolist()}
        names = self.explanation.names
        if len(names) > 1:
            for name, cosines in zip(names, self.explanation.scores.T.tolist(), strict=True):
                numbers[f"score: {name}"] = cosines
        columns: dict[str, Any] = {"rank": range(1, len(self.files) + 1), "file": self.files}
        for name, values in numbers.items():
            columns[name] = [f"{value:.6f}" for value in values]
        content = to_csv(columns)
        replace_file(folder / TABLE, lambda file: file.write(content))
        return folder / TABLE, save_figure(self.plot(), folder / FIGURE)


class ImageIndex:
    r"""Unit embeddings of images and the vectors of their positions, in a table of LanceDB.

    A search compares the embeddings, which are kept in float32, so its scores are those of
    :class:`captum_clip.ClipSimilarity`. A map is one product with the vectors of an image. By
    default the vectors are kept in int8 with one scale per image, so a map is off by at most
    :math:`\max_{jd} |c_{jd}| / 254` times :math:`\sum_d |t_d|`. The map and the rest still add up
    to the score.

    Made by :meth:`build` or :meth:`open`; len() is the number of images. Needs the extra "search":
    ``pip install 'captum-clip[search]'``.

    Attributes:
        clip: the model; a search runs its text tower only.
        folder: the folder of the images; "" if files were given.
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
        self.clip = clip
        self.skipped: dict[str, str] = {}
        self._table = table
        self.table = table.lance
        self.folder = str(table.about["folder"])
        self.method = str(table.about["method"])
        self._storage = storage_of(self.folder or ".")
        self._identity = table.about["identity"]
        self._check_model("embeds texts", clip.identity(images=False))
        # Embeddings in half precision may differ from the table's by more than the bound of a
        # comparison, so later checks compare with the embeddings of this model.
        self._identity = {**self._identity, **clip.fixed_embeddings(images=False)}
        # Reading the weights takes a second per gigabyte, so it is done once.

        def check_images() -> None:
            self._check_model("embeds images", clip.identity(texts=False))

        self._check_images = cache(check_images)

    @property
    def files(self) -> list[str]:
        """Names of the images, relative to the folder."""
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

        Images in the index stay; new ones are added, those of another size or date are replaced,
        and those that are gone are removed. After a stop, missing images are added.

        Args:
            clip: the model; for Ray it has to be loaded by name.
            images: a folder, searched with the folders in it, or its URL; or files.
            path: path of the table, such as photos.lance, or its URL.
            method: "direct", with options as in "direct:depth=token"; with "direct:depth=all" the
                maps are those of conservative, at a backward for each number of an embedding. Or
                "removal:share=None", with options.
            precision: precision of the vectors, "int8" or "float16".
            progress: called with the number of images done, the number of all, and "".
            **computing: settings of :class:`captum_clip.folders.workers.RunConfig`: `engine`,
                `workers`, `gpus`, `threads`, `batch_size`, and `chunk_size`, the number of images
                that are written at a time (512).

        Returns:
            The index; its `skipped` has the files that could not be read, with the reason.

        Raises:
            InputError: no image, a table of another model, method or folder, one that is damaged,
                or an option out of range.
            UnsupportedModelError: a tower whose embedding cannot be taken apart.
        """
        expect(isinstance(clip, ClipAdapter), "an adapter from load_clip(...)", clip)
        # A DataLoader can be iterated, but yields tensors.
        expect(not hasattr(images, "dataset"), "files or a folder of images", images)
        storage, folder, files, unnamed = search_table.list_files(images)
        row_maker = RowMaker(storage, clip, method, precision, **computing)
        table = IndexTable(path)
        with table.storage.lock(), threads(row_maker.config.thread_count):
            table.make({**row_maker.about, "folder": folder}, {file.file for file in files})
            index = cls(clip, table)
            index.skipped |= unnamed
            index._update(files, row_maker, progress or (lambda *_: None))
        return index

    def _update(self, files: Sequence[File], row_maker: RowMaker, progress: Progress) -> None:
        """Add the rows of new and changed files, and remove those of files that are gone."""
        before = {*self._table.files()}
        missing = [file for file in files if file not in before]
        outdated = [file.file for file in before.difference(files)]
        is_empty = before.isdisjoint(files)
        done = len(files) - len(missing)
        progress(done, len(files), "")
        for rows in row_maker.tables(missing):
            reasons = rows["reason"].to_pylist()
            for name, reason in zip(rows["file"].to_pylist(), reasons, strict=True):
                if reason:
                    self.skipped[name] = reason
            readable = rows.filter([not reason for reason in reasons])
            if len(readable):
                # Outdated rows stay until there are new ones: if no file can be read, the build
                # fails and the index keeps what it has.
                self._table.remove(outdated)
                outdated = []
                self._table.add(readable.drop_columns(["reason"]))
                is_empty = False
            done += len(rows)
            progress(done, len(files), "")
        if is_empty:
            raise _unreadable(len(files), self.skipped, "no file was given")
        self._table.remove(outdated)
        # Compacting writes a new version of the table, so it is left out if nothing has changed.
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
            path: path of the table.
            model: the model that the index was made with, recognized by what its text tower
                computes. By default it is loaded by its name, which may be a name on a hub but not
                a folder or file.
            images: URL of the images' folder if it is on another machine than the table.
            **loading: options of :func:`captum_clip.load_clip`, such as ``device``.

        Raises:
            InputError: no index, a damaged one, names that lead out of its folder, images in
                another store than named, another model, or one that only you may name.
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

        Every image is compared, so the order is exact. For many millions of images, an index of
        vectors that you add to the table makes this faster, and may miss some.

        Args:
            texts: one text or several, or a Target: the difference of two texts, or a text and an
                emotion joined by ``targets.concatenate``.
            top: the number of images to find.
            weights: weights of the K targets, none below zero; by default equal.
            sign: sign of the maps: "positive", "negative" or "both".

        Raises:
            InputError: an option out of range, or none of the best images can be read any more.
            TargetError: a text that cannot be a target.
        """
        check_integer("top", top)
        target = self._target(texts)
        if weights is None:
            weights = [1] * len(target)
        expected = f"{len(target)} weights, none below zero, that have a sum"
        with expecting(expected, weights):
            shares = np.array(weights, np.float32)
        fits = shares.shape == (len(target),) and (shares >= 0).all() and 0 < shares.sum() < np.inf
        expect(fits, expected, weights)
        direction = (shares / shares.sum()) @ target.embeddings.float().cpu().numpy()
        rows = self._table.nearest(direction, top)
        # LanceDB's distances of one image differ between queries, so scores are computed here.
        scores = (search_table.vectors_of(rows) * direction).sum(1)
        order = np.lexsort((rows["file"].to_pylist(), -scores))
        rows = rows.take(order)
        scores = scores[order]
        explanation, skipped, readable = self._explain(rows, target, sign)
        files = tuple(rows["file"].take(readable).to_pylist())
        doubts: tuple[str, ...] = ()
        # A target that is given may not be made of texts at all.
        if not isinstance(texts, Target):
            vectors = torch.from_numpy(search_table.vectors_of(rows.take(readable)))
            names = explanation.names
            better = share_of_better(self.clip, vectors, names, explanation.scores)
            doubts = count_doubts(names, better)
        return SearchResult(files, scores[readable], explanation, len(self), skipped, doubts)

    @public("explanation")
    def explanation(
        self,
        paths: str | Path | Sequence[str | Path],
        texts: str | Sequence[str] | Target,
        *,
        sign: Sign = "positive",
    ) -> Explanation:
        """Explain images of the index.

        Args:
            paths: one file or several, named as in :attr:`SearchResult.files`.
            texts: as in :meth:`search`.
            sign: as in :meth:`search`.

        Raises:
            InputError: an image that is not in the index or cannot be read any more.
            TargetError: a text that cannot be a target.
        """
        if isinstance(paths, Path):
            paths = [paths]
        names = [str(path) for path in as_list(paths)]
        rows = self._table.rows(names)
        advice = "build the index again to add images"
        expect(len(rows) == len(names) > 0, "images of the index", names, advice)
        explanation, skipped, _ = self._explain(rows, self._target(texts), sign)
        if skipped:
            name, reason = next(iter(skipped.items()))
            raise InputError(f"{name}: {reason}")
        return explanation

    def _target(self, texts: Any) -> Target:
        """Make the target of a search, once the model is known to be that of the index."""
        target = texts if isinstance(texts, Target) else targets.text(self.clip, texts)
        check_dimension(target.embeddings, self._table.about["grid"][-1], self.clip)
        self._check_model("embeds texts", self.clip.fixed_embeddings(images=False))
        # Other targets, such as images, may come from the image tower of this model.
        if target.source != "text":
            self._check_images()
        return target

    def _check_model(self, task: str, identity: dict[str, str]) -> None:
        """Refuse a model whose identity is not that of the table, or has changed since opening.

        The `task` names in the message what the model does in another way: "embeds texts".
        """
        if differing_parts(self._identity, identity):
            raise InputError(
                f"{self._table.storage.root} was made with {self._table.about['model']}, and "
                f"{self.clip.name} {task} differently; open it with that model and its processor."
            )

    def _explain(
        self, rows: Any, target: Target, sign: Sign
    ) -> tuple[Explanation, dict[str, str], list[int]]:
        """Explain rows; return with it why some cannot be read, and the indices of the others."""
        check_choice(sign, get_args(Sign), name="a sign")
        preprocessing = search_table.preprocessing_of(self.clip)
        self._check_model("crops or scales images", {"preprocessing": preprocessing})
        files = search_table.files_of(rows)
        images, skipped = search_table.read_unchanged(self.clip, self._storage, files)
        readable = [index for index, file in enumerate(files) if file.file not in skipped]
        if not readable:
            raise _unreadable(len(files), skipped, "it holds no image")
        rows = rows.take(readable)
        embeddings = target.embeddings.float().cpu()
        contributions = search_table.contributions_of(rows, self._table.about)  # (N, h, w, E)
        raw = (contributions @ embeddings.T).movedim(-1, 1)  # (N, K, h, w)
        signed_maps = {}
        if sign in ("positive", "both"):
            signed_maps["positive"] = maps.positive(raw)
        if sign in ("negative", "both"):
            signed_maps["negative"] = maps.negative(raw)
        crops: list[Crop] = []
        for image in images:
            crops += image.crops
        photos: list[Path] = []
        if self._storage.is_local:
            photos = [Path(self._storage.path, files[index].file) for index in readable]
        explanation = Explanation(
            maps=signed_maps,
            scores=torch.from_numpy(search_table.vectors_of(rows)) @ embeddings.T,
            names=target.names,
            norms=target.norms.cpu(),
            model=self.clip.name,
            method=self.method,
            images=self.clip.denormalize(torch.cat([image.pixels for image in images])).cpu(),
            crops=tuple(crops),
            photos=tuple(photos),
        )
        return explanation, skipped, readable


def _unreadable(count: int, skipped: dict[str, str], absent: str) -> InputError:
    """Make the error for images of which none can be read, or of which there are none."""
    name, reason = next(iter(skipped.items()), ("the index", absent))
    return InputError(f"none of the {count} images can be read; {name}: {reason}")
