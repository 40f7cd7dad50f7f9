"""Methods by name: the registered ones, Captum's own, baselines, and maps from files."""

import hashlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch import Tensor
from torch.nn import functional as F

from ..attr import registry
from ..attr.attention_methods import LayerAttention
from ..attr.contributions import DirectContribution
from ..attr.registry import MAMOOLER, MethodChoice, register
from ..checks import check_choice, error_context, expand, expect, find_repeated, is_integer
from ..errors import InputError, public
from ..files import DAMAGED
from ..maps import upsample
from ..metrics import perturbation
from ..metrics.faithfulness import masked_changes
from ..models.adapter import ClipAdapter
from ..models.towers import Kind, ViTTower
from ..targets.similarity import ClipSimilarity
from ..targets.target import Target
from .data import entries_digest
from .run import from_npz
from .table import UNIFORM, Queries

_LIBRARIES: Final = ("captum_clip", "captum", "abc", "builtins", "typing")
"""Packages and modules whose classes are known by their versions."""
Attribute = Callable[..., Tensor]
"""Maps images (N, 3, H, W) and ``target=`` columns to (N, C, h, w), as Captum's `attribute`."""


class Method(ABC):
    """Something that makes a map for each image and target.

    Attributes:
        name: its name in the table.
        what: a line that says how its maps are made.
        signed: whether negative evidence is below zero in its maps.
        costly: whether it takes many forward passes per map, so that it sees the first images only.
        baseline: whether it is listed separately, since it ignores the model or the target.
        of_photos: whether its maps lie on the whole photo instead of the model's crop.
    """

    name: str
    what: str
    signed: bool = False
    costly: bool = False
    baseline: bool = False
    of_photos: bool = False

    @abstractmethod
    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        """Return raw maps (N, h, w) on any grid, on the images' device; a missing map is NaN."""

    def maps_of_image(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        """Return the maps for queries of one image, from one forward pass if the method can."""
        return self.maps(clip, queries)

    def attribute(self, clip: ClipAdapter, rows: Tensor) -> Attribute | None:
        """Return its `attribute` of the cosines with embeddings (K, D); None if it has none."""
        return None

    def negative_maps(self, clip: ClipAdapter, queries: Queries, raw: Tensor) -> Tensor | None:
        """Return negative evidence (N, h, w), not below zero, for queries with maps `raw`.

        It is None if the method has none, and NaN where the map of a negated target is NaN.
        """
        return (-raw).clamp(min=0) if self.signed else None

    def identity(self) -> dict[str, Any]:
        """Return everything but the model that decides its maps, as JSON."""
        return {"name": self.name, "what": self.what}

    def failure_reason(self, sample: str, text: str) -> str:
        """Say why there is no finite map."""
        return f"the map of {text!r} holds NaN or infinity"


@dataclass(eq=False)
class Attributed(Method):
    """A method of the registry over a :class:`captum_clip.ClipSimilarity`."""

    name: str
    what: str
    choice: MethodChoice
    empty_text: bool  # whether the empty text is the target of every query

    def __post_init__(self) -> None:
        has_signs = self.choice.signed or self.choice.both_signs
        self.signed = has_signs and not self.empty_text
        self.costly = self.choice.costly
        self.baseline = self.name in BASELINES

    def _methods(self, clip: ClipAdapter, rows: Tensor) -> list[Any]:
        """Make the method for targets, and a second one for the negated targets if it needs both.

        Args:
            clip: the model.
            rows: embeddings (K, D) of the targets.
        """
        if self.empty_text:
            rows = clip.encode_text([""]).expand_as(rows)
        names = tuple(str(number) for number in range(len(rows)))
        target = Target(rows.detach(), torch.ones(len(rows), device=rows.device), names)
        methods = [self.choice.method(ClipSimilarity(clip, target))]
        if self.choice.both_signs:
            methods.append(self.choice.method(ClipSimilarity(clip, -target)))
        return methods

    def _attribute(self, clip: ClipAdapter, rows: Tensor, images: Tensor, **kwargs: Any) -> Tensor:
        methods = self._methods(clip, rows)
        maps = [method.attribute(images, **kwargs, **self.choice.options) for method in methods]
        return _without_negated(maps)

    def attribute(self, clip: ClipAdapter, rows: Tensor) -> Attribute:
        return partial(self._attribute, clip, rows)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), **_source_of(self.choice.method)}

    def maps_of_image(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        image = queries.pixels[:1]
        methods = self._methods(clip, queries.embeddings)
        maps = [method.attribute_targets(image, **self.choice.options) for method in methods]
        return _without_negated(maps).detach().float()[0]

    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        images = queries.pixels.detach().clone().requires_grad_()
        columns = list(range(len(queries)))
        maps = self._attribute(clip, queries.embeddings, images, target=columns)
        return maps.detach().float().sum(1)  # over the channels

    def negative_maps(self, clip: ClipAdapter, queries: Queries, raw: Tensor) -> Tensor | None:
        if self.signed or self.empty_text or not self.choice.needs_target:
            return super().negative_maps(clip, queries, raw)
        negated = replace(queries, embeddings=-queries.embeddings)
        return self.maps(clip, negated).clamp(min=0)


def _source_of(method: type[Any]) -> dict[str, str]:
    """The digest of the source of a class and its bases outside of this package, if there is one.

    So an evaluation is not continued after an edit of a method. What the class calls elsewhere is
    not seen.
    """
    source = ""
    for kind in method.__mro__:
        package = kind.__module__.partition(".")[0]
        if package not in _LIBRARIES:
            # A class of an interactive session has no file.
            with suppress(OSError, TypeError):
                source += inspect.getsource(kind)
    if not source:
        return {}
    return {"source": hashlib.sha256(source.encode()).hexdigest()}


def _without_negated(maps: Sequence[Tensor]) -> Tensor:
    """Subtract the maps of the negated targets, if there are any, from those of the targets."""
    if len(maps) == 1:
        return maps[0]
    return maps[0] - maps[1]


@dataclass(eq=False)
class Drawn(Method):
    """A baseline that sees neither the model nor the image."""

    name: str
    what: str
    draw: Callable[[tuple[int, int], int], Tensor]  # grid and number of a sample -> map (h, w)
    signed: bool = False
    baseline: bool = True

    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        grid = clip.grid(*queries.size)
        maps = [self.draw(grid, number) for number in queries.numbers]
        return torch.stack(maps).to(queries.pixels.device)


WITHOUT_MAP: Final = {
    "named": "1 for the object that the text names, 0 for the others",
    "score": "the score, the same for every object",
    "text-only": "the similarity of the text with the object's name, whatever the image shows",
    "always-negative": "-1 for every pair",
    "best-class": "the class with the highest score painted over the whole image",
    "area": "the pixels of each copy",
    "contrast": "fitted to the color of each copy minus that around it, on scenes of other folds",
    "edges": "fitted to the steps of brightness in each copy, on scenes of other folds",
    "place": "fitted to where each copy is, on scenes of other folds",
    "painted": "a ceiling: what the score loses when a copy is painted over with what is around it",
    "other-truth": "a ceiling: what it adds as a guess of what is lost without it, and vice versa",
}
"""Predictors that use no map; a map that does not beat them is not worth drawing."""

CEILINGS: Final = ("painted", "other-truth")
"""Those predictors that know more than a map can know, so that no map has to beat them."""


def predictor(name: str) -> Drawn:
    """Return the predictor of `WITHOUT_MAP` with this name; the tasks say how it answers.

    No task asks for its map, which is NaN.
    """
    return Drawn(name, WITHOUT_MAP[name], lambda grid, number: torch.full(grid, torch.nan))


class _BenchMethod:
    """A method that only the bench offers; the first line of its docstring goes to the report."""

    towers: tuple[Kind, ...] = ("vit", "resnet")
    listed = False
    costly = True

    def __init__(self, forward: ClipSimilarity) -> None:
        self.forward = forward

    attribute: Callable[..., Any]  # images, one target per image -> maps (B, C, h, w)

    def attribute_targets(self, images: Tensor) -> Tensor:
        """Return maps (B, K, h, w) of all targets, channels added."""
        columns = range(len(self.forward.embeddings))
        maps = torch.stack([self.attribute(images, column).sum(1) for column in columns], 1)
        return maps.detach()


@register
class _IntegratedGradients(_BenchMethod):
    """Captum's IntegratedGradients from the mean color, 16 steps, channels added."""

    name = "integrated-gradients"
    signed = True

    def attribute(self, images: Tensor, target: Any = None) -> Any:
        # Captum repeats a batch once per step, and takes no limit below one row per image.
        options = {"n_steps": 16, "internal_batch_size": max(32, len(images))}
        return IntegratedGradients(self.forward).attribute(images, target=target, **options)


def _columns_of(target: Any, image_count: int) -> Tensor:
    """Return the column of each image's target, from Captum's `target`; None means column 0."""
    columns = torch.as_tensor(0 if target is None else target)
    return columns.expand(image_count)


def around(masks: Tensor) -> Tensor:
    """Return the ring of eight pixels around each mask (n, H, W)."""
    widened = F.max_pool2d(masks[:, None].float(), kernel_size=17, stride=1, padding=8)[:, 0] > 0
    return widened & ~masks


@register
class _Occlusion(_BenchMethod):
    """The loss of the score with a window filled, mean over the windows that hold a cell.

    The window is filled with "mean", "blur" or the mean of the "ring" around it. Its `side` is in
    cells. There are `windows` of them, or one around each cell.
    """

    name = "occlusion"
    signed = True

    def attribute(self, images: Tensor, target: Any = None, **options: Any) -> Any:
        columns = _columns_of(target, len(images))
        # An image that comes with several texts is occluded once for all of them.
        distinct, rows = torch.unique(images, dim=0, return_inverse=True)
        maps = self.attribute_targets(distinct, **options)
        return maps[rows, columns][:, None]

    @torch.no_grad()
    def attribute_targets(
        self,
        images: Tensor,
        *,
        fill: str = "mean",
        side: int = 1,
        windows: int | None = None,
    ) -> Tensor:
        check_choice(fill, ("mean", "blur", "ring"), name="`fill`")
        expect(is_integer(side, least=1) and side % 2 == 1, "an odd `side`, in cells", side)
        per_side = math.isqrt(windows) if is_integer(windows, least=1) else None
        is_square = windows is None or (per_side is not None and per_side**2 == windows)
        expect(is_square, "a square number of `windows`", windows)
        grid = self.forward.clip.grid(*images.shape[-2:])
        hidden_cells = _window_cells(grid, side, per_side).to(images)
        hidden_pixels = F.interpolate(hidden_cells, images.shape[-2:])[:, 0] > 0
        # A pixel of the mean color is zero after normalization.
        default_fill = perturbation.blur_fill(images) if fill == "blur" else images.new_zeros(())
        scores = self.forward(images)
        losses = []
        for window, ring in zip(hidden_pixels, around(hidden_pixels), strict=True):
            window_fill = default_fill
            # There is no ring around a window that is the whole image.
            if fill == "ring" and ring.any():
                window_fill = images[..., ring].mean(-1)[..., None, None]
            occluded = torch.where(window, window_fill, images)
            losses.append(scores - self.forward(occluded))
        maps = torch.einsum("nbk,nchw->bkhw", torch.stack(losses), hidden_cells)
        # A cell that no window hides has lost nothing, and its map is zero.
        windows_per_cell = hidden_cells.sum((0, 1)).clamp(min=1)
        return F.interpolate(maps / windows_per_cell, images.shape[-2:])


def _window_cells(grid: tuple[int, int], side: int, per_side: int | None) -> Tensor:
    """Return the cells (N, 1, h, w), bool, of each square window.

    Args:
        grid: number of cells (h, w).
        side: width and height of a window, in cells; it is cut off at the border.
        per_side: number of windows along each side of the grid, or one around each cell.
    """
    along_sides = []
    for cell_count in grid:
        window_count = per_side or cell_count
        cells = torch.arange(cell_count)
        windows = []
        for number in range(window_count):
            center = (2 * number + 1) * cell_count // (2 * window_count)
            windows.append((cells - center).abs() <= side // 2)
        along_sides.append(torch.stack(windows))
    rows, columns = along_sides  # (n, h) and (m, w)
    windows_of_cells = rows[:, None, :, None] & columns[None, :, None, :]  # (n, m, h, w)
    return windows_of_cells.view(-1, 1, *grid)


@register
class _RandomMasks(_BenchMethod):
    """Mean loss of the score over those of 128 random masks of cells (share .5) that hide it."""

    name = "random-masks"
    signed = True

    def attribute(self, images: Tensor, target: Any = None) -> Tensor:
        grid = self.forward.clip.grid(*images.shape[-2:])
        columns = _columns_of(target, len(images)).tolist()
        maps = []
        # Masks depend on the position in a batch, so each image is a batch of its own.
        for image, column in zip(torch.split(images, 1), columns, strict=True):
            drawn = masked_changes(self.forward, image, column, grid=grid, share=0.5, samples=128)
            masks = drawn.masks[0].to(drawn.changes)
            total_losses = torch.tensordot(drawn.changes[0], masks, 1)
            maps.append(total_losses / masks.sum(0).clamp(min=1))
        return torch.stack(maps)[:, None]


@register
class _Magnitude(_BenchMethod):
    """|c|: the length of what each position adds to the embedding (direct), without a text."""

    name = "magnitude"
    costly = needs_target = False

    def attribute(self, images: Tensor, target: Any = None) -> Tensor:
        lengths: Tensor = DirectContribution(self.forward).vectors(images).norm(dim=-1)
        return lengths[:, None]


@register
class _SummedAttention(_BenchMethod):
    """CLS rows of the attention of all layers, heads averaged, added up."""

    name = "summed-attention"
    towers = LayerAttention.towers
    costly = needs_target = False

    def attribute(self, images: Tensor, target: Any = None) -> Tensor:
        method = LayerAttention(self.forward)
        tower = self.forward.clip.tower
        assert isinstance(tower, ViTTower)  # LayerAttention has refused all others.
        maps = [method.attribute(images, index=index) for index in range(len(tower.layers))]
        return torch.stack(maps).sum(0)


# The docstrings of these three functions go to the report.
def _uniform(seed: int, grid: tuple[int, int], number: int) -> Tensor:
    """The same value everywhere."""
    return torch.ones(grid)


def _random(seed: int, grid: tuple[int, int], number: int) -> Tensor:
    """Uniform in [-1, 1] in each cell of the model's grid."""
    # The factor keeps the seeds of the samples apart from those of a run with another seed.
    generator = torch.Generator().manual_seed(1_000_003 * seed + number)
    return 2 * torch.rand(grid, generator=generator) - 1


def _gaussian(seed: int, grid: tuple[int, int], number: int) -> Tensor:
    """A Gaussian at the center, its standard deviation a quarter of each side."""
    in_deviations = []  # from the center, (h,) and (w,)
    for side in grid:
        centers = (torch.arange(side) + 0.5) / side
        in_deviations.append((centers - 0.5) / 0.25)
    y, x = in_deviations
    return torch.exp(-(y[:, None] ** 2 + x**2) / 2)


_DRAWINGS: Final = {"random": _random, UNIFORM: _uniform, "center": _gaussian}
_ALIASES: Final = {
    "last-attention": "layer:index=-1,of=attention",
    "last-gradient": "layer:index=-1,of=gradient",
}
_COMMON: Final = (*_DRAWINGS, "empty-text")
"""The baselines that fit every tower."""
BASELINES: Final = (*_COMMON, "magnitude", "last-attention", "summed-attention", "last-gradient")
_OFFERED: Final = (
    *("attention-grad-cam:weights=pooled", "last-grad:heads=averaged", "last-grad:sign=signed"),
    *("grad-cam:sign=signed", "integrated-gradients", "occlusion"),
    *("occlusion:fill=ring,side=3", "random-masks", *BASELINES),
)
"""What `methods_for` adds to the registered methods, where it fits the tower."""
ALL: Final = "all"
"""Stands for all of `methods_for` wherever a method is named."""


def named_methods(clip: ClipAdapter, names: Sequence[str]) -> tuple[str, ...]:
    """Return the methods to measure, with "all" and "mamooler" replaced by what they stand for.

    Drawn baselines are added to the given names. Without a name the methods of the tower are
    measured, with the baselines that fit every model.
    """
    full_names: list[str] = []
    for name in names:
        if name == ALL:
            full_names.extend(methods_for(clip))
        elif name == MAMOOLER:
            full_names.append(registry.report_method(clip.tower))
        else:
            full_names.append(name)
    if full_names:
        full_names.extend(_DRAWINGS)
    else:
        full_names.extend((*registry.methods_for(clip.kind), *_COMMON))
    return tuple(dict.fromkeys(full_names))


@public("methods_for")
def methods_for(clip: ClipAdapter) -> tuple[str, ...]:
    """Return the names of all methods and baselines that fit a model's tower."""
    names = list(registry.methods_for(clip.kind))
    for name in _OFFERED:
        if name in _COMMON or _choice(name).fits(clip.kind):
            names.append(name)
    return tuple(names)


def method_of(name: str, clip: ClipAdapter, *, seed: int = 0) -> Method:
    """Return a method by its name, for a model; `seed` is that of the random baseline.

    The name comes from :func:`methods_for`, or has other options as on the command line:
    "layer:index=3,of=gradient,rows=sum" is :class:`captum_clip.LayerAttention`. Maps are those that
    the paper of the method draws, so Grad-CAM's are cut off below zero. "grad-cam:sign=signed" is
    the map minus that of the negated target.
    """
    if name in _DRAWINGS:
        draw = _DRAWINGS[name]
        return Drawn(name, str(draw.__doc__), partial(draw, seed), signed=name == "random")
    is_empty = name == "empty-text"
    registered_name = registry.report_method(clip.tower) if is_empty else name
    choice = _choice(registered_name)
    method = choice.method
    if issubclass(method, _BenchMethod):
        what = str(method.__doc__).partition(".\n")[0]
    else:
        package = method.__module__.partition(".")[0]
        what = f"{method.__name__} of {package}"
    if choice.options:
        options = ", ".join(f"{key}={value}" for key, value in choice.options.items())
        what += f" with {options}"
    if is_empty:
        what += ", for the empty text"
    if choice.both_signs:
        what += ", minus the map of the negated target"
    return Attributed(name, what, choice, is_empty)


def check_measured(name: str) -> None:
    """Raise the InputError of :func:`method_of` that needs no model."""
    if name not in (*_COMMON, ALL, MAMOOLER):
        _choice(name)


def _choice(name: str) -> MethodChoice:
    """Find the class of a name, with the options of its published map."""
    choice = MethodChoice.of(_ALIASES.get(name, name), published=True, others=BASELINES)
    if choice.both_signs:
        choice.check_negative()
    return choice


class PrecomputedMaps(Method):
    """The maps in a folder: ``SAMPLE.npz`` with `maps` (K, h, w) and `names` (K,), on any grid.

    A map is found by the name of its sample and the text of its target. If all maps of the folder
    are on one grid they stay on it, like those of a model; else each is resized to its image
    (bilinear). If any map of the folder has values below zero, these are negative evidence. A map
    that holds NaN or infinity counts as missing.

    Args:
        folder: the folder with the files; its name is the method's. A sample in a folder of its
            data set, "cats/one", has its file in a folder of the same name.

    Raises:
        InputError: there is no such folder, no .npz file in it, or a file with other content.
    """

    of_photos = True

    def __init__(self, folder: str | Path) -> None:
        self.folder = expand(folder)
        files = sorted(self.folder.rglob("*.npz"))
        if not files:
            raise InputError(
                f"--maps {folder}: there is no such folder, or no .npz file in it; expected a file "
                "IMAGE_STEM.npz with maps (K, h, w) and names (K,) for each image."
            )
        self.name = self.folder.resolve().name
        digests: dict[str, str] = {}
        grids = set()
        # All files are read here, so that a damaged one is found before anything is measured.
        for path in files:
            for heatmap in _read_maps(path).values():
                grids.add(heatmap.shape)
                if np.isfinite(heatmap).any() and np.nanmin(heatmap) < 0:
                    self.signed = True
            file = path.relative_to(self.folder).as_posix()
            digests[file] = hashlib.sha256(path.read_bytes()).hexdigest()
        # Evidence is cut off at zero on the grid of a map, which has other sums than on pixels.
        self._grid = grids.pop() if len(grids) == 1 else None
        where = "resized to the image"
        if self._grid is not None:
            where = "on a grid of {} x {}".format(*self._grid)
        self.what = f"maps read from files, {len(files)} of them, {where}"
        self._files = frozenset(digests)
        self._digest = entries_digest(digests)

    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        size = self._grid or queries.size
        maps = torch.full((len(queries), *size), torch.nan)
        for index, (sample, text) in enumerate(zip(queries.names, queries.texts, strict=True)):
            file = f"{sample}.npz"
            # Names of samples come from a data set, and may lead out of the folder of the maps.
            if file not in self._files:
                continue
            heatmap = _read_maps(self.folder / file).get(text)
            if heatmap is not None and np.isfinite(heatmap).all():
                maps[index] = upsample(torch.from_numpy(heatmap), size)
        return maps.to(queries.pixels.device)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "files": self._digest}

    def failure_reason(self, sample: str, text: str) -> str:
        if f"{sample}.npz" not in self._files:
            return f"there is no file {sample}.npz"
        if text not in _read_maps(self.folder / f"{sample}.npz"):
            return f"{sample}.npz has no map of {text!r}"
        return super().failure_reason(sample, text)


def _read_maps(path: Path) -> dict[str, np.ndarray]:
    """Return the maps (h, w), float32, of a file by their texts."""
    try:
        arrays = from_npz(path.read_bytes())
        names = arrays["names"]
        maps = arrays["maps"]
    except DAMAGED as error:
        raise InputError(
            f"{path}: expected an .npz file with maps (K, h, w) and names (K,), but reading it "
            f"failed ({error})."
        ) from error
    are_maps = maps.ndim == 3 and 0 not in maps.shape and maps.dtype.kind in "fiu"
    are_names = names.shape == maps.shape[:1] and names.dtype.kind == "U"
    texts = names.tolist()
    with error_context(str(path)):
        expected = "maps (K, h, w) of numbers and names (K,) of text"
        expect(are_maps and are_names, expected, [maps, names])
        expect(find_repeated(texts) is None, "each name once", texts)
    # Values that are too large for float32 become infinity, and the map then counts as missing.
    with np.errstate(over="ignore"):
        return dict(zip(texts, maps.astype(np.float32), strict=True))
