"""Image features of many files, kept in one file: emotion probes and rankings from them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from .. import targets
from ..attr.registry import MethodChoice
from ..checks import check_integer, expand, expect
from ..emotions import STRENGTH, Artemis, EmotionProbe, check_fit, fit_probe
from ..errors import InputError, TargetError, public
from ..explaining.explain import explain
from ..explaining.explanation import Explanation
from ..files import DAMAGED, replace_file
from ..models import ClipAdapter, differing_parts
from ..similarity import ClipSimilarity
from ..targets import Target
from ..visualization.colors import ALPHA, HEAT, blend, colormap, ramp, score_note
from ..visualization.grid import Legend, Panel, grid, save_figure
from ..visualization.overlays import note_of
from .image_batches import ImageReader, list_images, read_ahead
from .storage import storage_of
from .units import Arrays, Skipped, from_npz, to_csv, to_npz


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of those files that could be read.

    Attributes:
        embeddings: (N, D), L2-normalised, float32.
        paths: of the N images, in the order they were given.
        indices: (N,), of these in what was given.
        skipped: file -> why it could not be read.
    """

    embeddings: npt.NDArray[np.float32]
    paths: tuple[Path, ...]
    indices: npt.NDArray[np.int64]
    skipped: dict[Path, str]


def find_images(folder: str | Path) -> list[Path]:
    """All image files in a folder and those in it, sorted; hidden ones and results are left out.

    Raises:
        InputError: there is no folder, or no image file in it.
    """
    folder = expand(folder)
    return sorted(folder / name for name in list_images(storage_of(folder)))


@public("image_features")
def image_features(
    clip: ClipAdapter,
    paths: Sequence[str | Path],
    *,
    cache: str | Path | None = None,
    batch_size: int = 16,
    workers: int = 0,
    progress: bool = False,
) -> ImageFeatures:
    """L2-normalised image features of files; a file that cannot be read is left out, with a reason.

    In which batch an image is computed changes its features by rounding.

    Args:
        clip: the adapter.
        paths: N image files.
        cache: an .npz file that keeps the features; they are computed anew where it is of another
            model, or of files with other names, sizes or dates.
        batch_size: images in a forward.
        workers: images read ahead at a time; 0 reads each when it is due.
        progress: show a bar.

    Raises:
        InputError: an option out of range, a cache that cannot be written, a model without a
            processor, or no image that can be read.
    """
    check_integer("batch_size", batch_size)
    check_integer("workers", workers, least=0)
    listed = [Path(os.path.expanduser(path)) for path in paths]
    file, kept, key = None if cache is None else expand(cache), None, Arrays()
    if file is not None:
        identity = np.array([*clip.identity(texts=False).items()])
        key = {"files": np.array([*map(_state, listed)]), "identity": identity}
        kept = _read_cache(file, key)
    if kept is None:
        kept = _compute(clip, listed, batch_size, workers, progress)
        if file is not None:
            content = to_npz({**kept, **key})
            replace_file(file, lambda opened: opened.write(content))
    reasons = kept["reasons"].tolist()
    skipped = {path: reason for path, reason in zip(listed, reasons, strict=True) if reason}
    if len(skipped) == len(listed):
        path, reason = next(iter(skipped.items()), ("", "no file was given"))
        raise InputError(f"none of the {len(skipped)} images can be read; {path}: {reason}")
    indices = np.flatnonzero(kept["reasons"] == "")
    return ImageFeatures(
        kept["embeddings"], tuple(listed[index] for index in indices), indices, skipped
    )


def _state(path: Path) -> str:
    """A file's path, size and date, by which it is known again."""
    try:
        status = path.stat()
    except OSError:
        return f"{path!r}"
    return f"{path.absolute()!r} {status.st_size} {status.st_mtime_ns}"


def _read_cache(file: Path, key: Arrays) -> Arrays | None:
    try:
        arrays = from_npz(file.read_bytes())
        then, now = (dict(each["identity"].tolist()) for each in (arrays, key))
        same = np.array_equal(arrays["files"], key["files"]) and not differing_parts(then, now)
        return arrays if same else None
    except DAMAGED:  # or there is none yet; it is computed again
        return None


def _compute(
    clip: ClipAdapter, paths: Sequence[Path], batch_size: int, workers: int, progress: bool
) -> Arrays:
    """Embeddings of the files that can be read, and why each file cannot; "" of those that can."""
    embeddings, reasons = list[npt.NDArray[np.float32]](), [""] * len(paths)
    bar: Any = {"desc": "image features", "unit": "image", "leave": False, "disable": not progress}

    def readable(images: Iterator[Image.Image | Skipped]) -> Iterator[Image.Image]:
        for image in tqdm(images, total=len(paths), **bar):
            if isinstance(image, Skipped):
                reasons[image.number] = image.reason
            else:
                yield image

    reader = ImageReader(storage_of("."), [*map(str, paths)], Image.Image.copy)
    with read_ahead(reader, range(len(paths)), workers) as read, torch.no_grad():
        images = readable(read)
        while batch := list(islice(images, batch_size)):
            encoded = clip.encode_image(clip.preprocess(batch))  # (B, D)
            embeddings.append(encoded.float().cpu().numpy())
    joined = np.concatenate(embeddings) if embeddings else np.zeros((0, 0), dtype=np.float32)
    return {"embeddings": joined, "reasons": np.array(reasons, dtype=np.str_)}


def fit_emotions(
    clip: ClipAdapter,
    data: Artemis,
    *,
    seed: int = 0,
    held_out: float = 0.2,
    strength: float = STRENGTH,
    **options: Any,
) -> tuple[EmotionProbe, dict[Path, str]]:
    """Fit a probe on the images of a data set; it keeps the model's name and identity.

    Args:
        clip: the adapter.
        data: from :func:`captum_clip.emotions.read_artemis`.
        seed: of the split by painting.
        held_out: share of the paintings kept for the scores.
        strength: of the penalty.
        **options: of :func:`image_features`.

    Returns:
        The probe, and the images that could not be read with the reason.

    Raises:
        InputError: as :func:`image_features` and :func:`captum_clip.emotions.fit_probe`.
    """
    settings: Any = {"seed": seed, "held_out": held_out, "strength": strength}
    check_fit(**settings)
    features = image_features(clip, data.images, **options)
    settings |= {"model": clip.name, "identity": clip.identity(texts=False)}
    probe = fit_probe(features.embeddings, data.votes[features.indices], **settings)
    return probe, features.skipped


TABLE, FIGURE = "ranking.csv", "ranking.png"
_WIDE: Final = 6  # panels in a row of the figure, two per image


@dataclass(frozen=True, eq=False, repr=False)
class Ranking:
    """The best images for a target, best first.

    Attributes:
        files: paths of the N best, as they were given, or relative to the folder.
        scores: their cosines (N,).
        explanations: of each one, with its map for the target.
        ranked: how many images were compared.
        skipped: file -> why it could not be read.
    """

    files: tuple[Path, ...]
    scores: npt.NDArray[np.float32]
    explanations: tuple[Explanation, ...]
    ranked: int
    skipped: dict[Path, str]

    def plot(self) -> Figure:
        """Each image with its rank, name and score, next to its map; best first."""
        colors, panels = colormap(HEAT), []
        ranked = zip(self.files, self.scores, self.explanations, strict=True)
        for number, (file, score, explanation) in enumerate(ranked, 1):
            pixels = explanation.images[0].movedim(0, -1).numpy()
            [heatmap] = explanation.heatmap("bicubic")["positive"][0].numpy()
            name = file.name.encode("utf-8", "replace").decode()  # what is no character becomes ?
            panels.append(Panel(pixels, f"{number}. {name}", score_note(float(score))))
            blended = blend(pixels, heatmap, colors, ALPHA)
            panels.append(Panel(blended, explanation.names[0], note_of(heatmap)))
        rows = [panels[start : start + _WIDE] for start in range(0, len(panels), _WIDE)]
        best = self.explanations[0]
        caption = f"{best.model} \N{MIDDLE DOT} {best.method}"
        return grid(rows, legends=[Legend(ramp(colors, ALPHA), "low to high")], caption=caption)

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write ``ranking.csv`` (rank, file, score) and ``ranking.png`` into a folder.

        Args:
            folder: made where there is none; files of these names are replaced.

        Returns:
            The two files.

        Raises:
            InputError: the folder cannot be made or written to.
        """
        folder = expand(folder)
        columns = {
            "rank": range(1, len(self.files) + 1),
            "file": [file.as_posix() for file in self.files],
            "score": [f"{score:.6f}" for score in self.scores],
        }
        storage_of(folder).write(TABLE, to_csv(columns))
        return folder / TABLE, save_figure(self.plot(), folder / FIGURE)


@public("rank")
def rank(
    clip: ClipAdapter,
    images: str | Path | Sequence[str | Path],
    target: str | Target,
    *,
    top: int = 12,
    method: str | type[Any] | None = None,
    **options: Any,
) -> Ranking:
    """Find the images that fit a target best, with a map for each.

    Images are compared by their features, so with a ``cache`` a second search in the same folder
    computes the maps of the best ones only. Of equal scores the first file comes first.

    Args:
        clip: the adapter.
        images: a folder, searched with the folders in it, where figures of this package are left
            out; or files.
        target: a text, or a :class:`captum_clip.Target` with one embedding.
        top: how many to find.
        method: a class of :mod:`captum_clip.attr` or a command-line name; `explain`'s by default.
        **options: of :func:`image_features`: ``cache``, ``batch_size``, ``workers``, ``progress``.

    Raises:
        InputError: no image, none that can be read, or an option out of range.
        TargetError: not exactly one target, or one of another model.
        UnsupportedModelError: the method does not fit the model.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from captum_clip import load_clip
        >>> from captum_clip.demo.scenes import draw_scene
        >>> from captum_clip.evaluation import rank
        >>> clip, folder = load_clip("demo/vit"), tempfile.mkdtemp()
        >>> for seed in range(4):
        ...     Image.fromarray(draw_scene(seed).image).save(f"{folder}/{seed}.png")
        >>> ranking = rank(clip, folder, "a sad face", top=3)
        >>> len(ranking.files), ranking.explanations[0].maps["positive"].shape
        (3, torch.Size([1, 1, 7, 7]))
    """
    check_integer("top", top)
    wanted = targets.text(clip, target) if isinstance(target, str) else target
    expect(len(wanted) == 1, "one target", list(wanted.names), error=TargetError)
    forward = ClipSimilarity(clip, wanted)
    # What does not fit the model fails before the images are read.
    MethodChoice.of(method, tower=clip.tower).method(forward)
    folder = None
    if isinstance(images, (str, Path)):
        folder, images = expand(images), find_images(images)
    features = image_features(clip, images, **options)
    embeddings = torch.from_numpy(features.embeddings).to(clip.device)
    scores = forward.score(embeddings)[:, 0].cpu().numpy()
    best = np.argsort(-scores, kind="stable")[:top]
    files = [features.paths[index] for index in best]
    return Ranking(
        tuple(files if folder is None else [file.relative_to(folder) for file in files]),
        scores[best],
        tuple(explain(file, wanted, model=clip, method=method) for file in files),
        len(features.paths),
        features.skipped,
    )
