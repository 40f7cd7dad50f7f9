"""Which images of a folder fit best, and why?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .. import maps, targets
from ..attr.registry import MethodChoice, default_method
from ..checks import check_integer, expand
from ..errors import TargetError
from ..models import ClipAdapter
from ..similarity import ClipSimilarity
from ..targets import Target
from ..visualization.blend import blend, ramp
from ..visualization.grid import Legend, Panel, grid
from ..visualization.overlay import note_of
from ..visualization.saving import save_figure
from ..visualization.style import ALPHA, HEAT, colormap, score_note
from .features import find_images, image_features
from .storage import storage_of
from .units import to_csv

TABLE, FIGURE = "ranking.csv", "ranking.png"
_WIDE: Final = 6  # panels in a row of the figure, two per image


@dataclass(frozen=True, eq=False, repr=False)
class Ranking:
    """The best images for a target, best first.

    Attributes:
        target: its name.
        files: paths of the N best, as they were given, or relative to the folder.
        scores: their cosines (N,).
        images: what the model saw of them, (N, 3, H, W), colours in [0, 1].
        maps: raw positive maps (N, 1, h, w).
        ranked: how many images were compared.
        skipped: file -> why it could not be read.
        model: its name.
        method: its command-line name.
    """

    target: str
    files: tuple[Path, ...]
    scores: npt.NDArray[np.float32]
    images: Tensor
    maps: Tensor
    ranked: int
    skipped: dict[Path, str]
    model: str
    method: str

    def plot(self) -> Figure:
        """Each image with its rank, name and score, next to its map; best first."""
        size = (self.images.shape[-2], self.images.shape[-1])
        heatmap = maps.normalize(maps.upsample(self.maps, size, mode="bicubic", clamp=True)).numpy()
        colors = colormap(HEAT)
        panels = []
        pairs = zip(self.files, self.scores, self.images, heatmap, strict=True)
        for number, (file, score, image, value) in enumerate(pairs, 1):
            pixels = image.permute(1, 2, 0).numpy()
            name = file.name.encode("utf-8", "replace").decode()  # what is no character becomes ?
            panels.append(Panel(pixels, f"{number}. {name}", score_note(float(score))))
            shown = blend(pixels, value[0], colors, ALPHA)
            panels.append(Panel(shown, self.target, note_of(value)))
        rows = [panels[start : start + _WIDE] for start in range(0, len(panels), _WIDE)]
        caption = f"{self.model} \N{MIDDLE DOT} {self.method}"
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
        rows = [
            (number, file.as_posix(), f"{score:.6f}")
            for number, (file, score) in enumerate(zip(self.files, self.scores, strict=True), 1)
        ]
        storage_of(folder).write(TABLE, to_csv(("rank", "file", "score"), rows))
        return folder / TABLE, save_figure(self.plot(), folder / FIGURE)


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
        images: a folder, searched with the folders in it, where figures called ranking.png are
            left out; or files.
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
        >>> found = rank(clip, folder, "a sad face", top=3)
        >>> len(found.files), found.maps.shape
        (3, torch.Size([3, 1, 7, 7]))
    """
    check_integer("rank", "top", top)
    wanted = targets.text(clip, target) if isinstance(target, str) else target
    if len(wanted) != 1:
        raise TargetError(f"rank: expected one target, got {len(wanted)}: {list(wanted.names)}.")
    chosen = MethodChoice.of(method or default_method(clip.tower))
    forward = ClipSimilarity(clip, wanted)
    attribution = chosen.method(forward)
    folder = None
    if isinstance(images, (str, Path)):
        folder = expand(images)
        listed = find_images(folder)
    else:
        listed = [Path(path) for path in images]
    features = image_features(clip, listed, **options)
    embeddings = torch.from_numpy(features.embeddings).to(clip.device)
    scores = forward.score(embeddings)[:, 0].cpu().numpy()
    best = np.argsort(-scores, kind="stable")[:top]
    seen, raw = [], []
    for index in best:
        pixels = clip.preprocess(features.paths[index])
        seen.append(clip.denormalize(pixels).cpu())
        raw.append(maps.positive(attribution.attribute_targets(pixels, **chosen.options).cpu()))
    files = [features.paths[index] for index in best]
    return Ranking(
        target=wanted.names[0],
        files=tuple(files if folder is None else [file.relative_to(folder) for file in files]),
        scores=scores[best],
        images=torch.cat(seen),
        maps=torch.cat(raw),
        ranked=len(features.paths),
        skipped=features.skipped,
        model=clip.name,
        method=chosen.name,
    )
