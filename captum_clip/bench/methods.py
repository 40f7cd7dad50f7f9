"""Methods by name: the registered ones, Captum's own, baselines, and maps from files."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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

Attribute = Callable[..., Tensor]
"""Images (N, 3, H, W) and ``target=`` columns -> maps (N, C, h, w), as Captum's `attribute`."""


class Method(ABC):
    """Something that makes a map for each image and target.

    Attributes:
        name: in the table.
        what: how it is made, in a line.
        signed: negative evidence is below zero in its maps.
        costly: it takes many forward passes per map, so it sees the first images only.
        baseline: it is listed separately, since it knows nothing of the model or the target.
        of_photos: its maps lie on the whole image as it was, not on the model's crop.
    """

    name: str
    what: str
    signed: bool = False
    costly: bool = False
    baseline: bool = False
    of_photos: bool = False

    @abstractmethod
    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        """Raw maps (N, h, w) on any grid, on the images' device; NaN where there is none."""

    def maps_of_image(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        """Maps for queries of one image, from one forward pass where the method can."""
        return self.maps(clip, queries)

    def attribute(self, clip: ClipAdapter, rows: Tensor) -> Attribute | None:
        """Its `attribute` over the cosines with these embeddings; None of maps that are drawn."""
        return None

    def negative_maps(self, clip: ClipAdapter, queries: Queries, raw: Tensor) -> Tensor | None:
        """Negative evidence (N, h, w), not below zero, of queries with maps `raw`; None without.

        NaN where the map of a negated target has it.
        """
        return (-raw).clamp(min=0) if self.signed else None

    def identity(self) -> dict[str, Any]:
        """Return all that decides its maps besides the model, as JSON."""
        return {"name": self.name, "what": self.what}

    def failure_reason(self, sample: str, text: str) -> str:
        """Why there is no finite map."""
        return f"the map of {text!r} holds NaN or infinity"


@dataclass(eq=False)
class Attributed(Method):
    """A method of the registry over a :class:`captum_clip.ClipSimilarity`."""

    name: str
    what: str
    choice: MethodChoice
    empty_text: bool  # is the target, whatever the query

    def __post_init__(self) -> None:
        choice = self.choice
        self.signed = (choice.signed or choice.both_signs) and not self.empty_text
        self.costly, self.baseline = choice.costly, self.name in BASELINES

    def _compute(
        self, clip: ClipAdapter, rows: Tensor, call: str, images: Tensor, **which: Any
    ) -> Tensor:
        """Maps by a method of the class, "attribute" or "attribute_targets"."""
        if self.empty_text:
            rows = clip.encode_text([""]).expand_as(rows)
        names = tuple(str(number) for number in range(len(rows)))
        target = Target(rows.detach(), torch.ones(len(rows), device=rows.device), names)
        maps: list[Tensor] = [
            getattr(self.choice.method(ClipSimilarity(clip, signed)), call)(
                images, **which, **self.choice.options
            )
            for signed in (target, -target)[: 1 + self.choice.both_signs]
        ]
        return maps[0] - maps[1] if self.choice.both_signs else maps[0]

    def attribute(self, clip: ClipAdapter, rows: Tensor) -> Attribute:
        return partial(self._compute, clip, rows, "attribute")

    def maps_of_image(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        maps = self._compute(clip, queries.embeddings, "attribute_targets", queries.pixels[:1])
        return maps.detach().float()[0]

    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        leaf = queries.pixels.detach().clone().requires_grad_()
        heatmap = self.attribute(clip, queries.embeddings)(leaf, target=list(range(len(queries))))
        return heatmap.detach().float().sum(1)  # channels are added up

    def negative_maps(self, clip: ClipAdapter, queries: Queries, raw: Tensor) -> Tensor | None:
        if self.signed or self.empty_text or not self.choice.needs_target:
            return super().negative_maps(clip, queries, raw)
        return self.maps(clip, replace(queries, embeddings=-queries.embeddings)).clamp(min=0)


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
        heatmap = [self.draw(grid, number) for number in queries.numbers]
        return torch.stack(heatmap).to(queries.pixels.device)


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
"""Predictors that look at no map: what a map must beat to be worth drawing."""

CEILINGS: Final = ("painted", "other-truth")
"""Those of them that know what no map can know, and need not be beaten."""


def predictor(name: str) -> Drawn:
    """One of `WITHOUT_MAP`; what it answers stands with the tasks that it answers."""
    return Drawn(name, WITHOUT_MAP[name], lambda grid, number: torch.full(grid, torch.nan))


class _Reference:
    """A method that the bench alone offers; the first line of its docstring says how it works."""

    towers: tuple[Kind, ...] = ("vit", "resnet")
    listed = False
    costly = True

    def __init__(self, forward: ClipSimilarity) -> None:
        self.forward = forward

    attribute: Callable[..., Any]  # images, one target per image -> maps (B, C, h, w)

    def attribute_targets(self, images: Tensor, *, return_scores: bool = False) -> Any:
        """Maps (B, K, h, w) of all targets, channels added up, with the scores if asked."""
        columns = range(len(self.forward.embeddings))
        maps = torch.stack([self.attribute(images, column).sum(1) for column in columns], 1)
        return (maps.detach(), self.forward(images).detach()) if return_scores else maps.detach()


@register
class _IntegratedGradients(_Reference):
    """Captum's IntegratedGradients from the mean color, 16 steps, channels added."""

    name = "integrated-gradients"
    signed = True

    def attribute(self, images: Tensor, target: Any = None) -> Any:
        # Captum repeats a batch once per step, and takes no limit below one row per image.
        options = {"n_steps": 16, "internal_batch_size": max(32, len(images))}
        return IntegratedGradients(self.forward).attribute(images, target=target, **options)


def around(masks: Tensor) -> Tensor:
    """The ring of eight pixels around each mask (n, H, W)."""
    return (F.max_pool2d(masks[:, None].float(), 17, 1, 8)[:, 0] > 0) & ~masks


@register
class _Occlusion(_Reference):
    """The loss of the score with a window filled, mean over the windows that hold a cell.

    A `fill` is "mean", "blur" or the "ring" around it, the `side` in cells, `windows` a number.
    """

    name = "occlusion"
    signed = True

    def attribute(self, images: Tensor, target: Any = None, **options: Any) -> Any:
        columns = torch.as_tensor(0 if target is None else target).expand(len(images))
        # an image may have several texts
        single, rows = torch.unique(images, dim=0, return_inverse=True)
        return self.attribute_targets(single, **options)[rows, columns][:, None]

    @torch.no_grad()
    def attribute_targets(
        self,
        images: Tensor,
        *,
        fill: str = "mean",
        side: int = 1,
        windows: int | None = None,
        return_scores: bool = False,
    ) -> Any:
        check_choice(fill, ("mean", "blur", "ring"), name="`fill`")
        expect(is_integer(side, least=1) and side % 2 == 1, "an odd `side`, in cells", side)
        root = math.isqrt(windows) if is_integer(windows, least=1) else 0
        expect(windows in (None, root**2 or None), "a square number of `windows`", windows)
        near, grid = list[Tensor](), self.forward.clip.grid(*images.shape[-2:])
        for cells in grid:
            count, index = root or cells, torch.arange(cells, device=images.device)
            centers = [(2 * n + 1) * cells // (2 * count) for n in range(count)]
            near.append(torch.stack([(index - n).abs() <= side // 2 for n in centers]).to(images))
        hidden = torch.kron(*near).view(-1, 1, *grid)  # (N, 1, h, w)
        shown = F.interpolate(hidden, images.shape[-2:])[:, 0] > 0
        plain = perturbation.blur_fill(images) if fill == "blur" else images.new_zeros(())
        whole, losses = self.forward(images), []
        for window, ring in zip(shown, around(shown), strict=True):
            rings = fill == "ring" and ring.any()  # a window may be the whole image
            color = images[..., ring].mean(-1)[..., None, None] if rings else plain
            losses.append(whole - self.forward(torch.where(window, color, images)))
        maps = torch.einsum("nbk,nchw->bkhw", torch.stack(losses), hidden)
        maps = F.interpolate(maps / hidden.sum((0, 1)).clamp(min=1), images.shape[-2:])
        return (maps, whole) if return_scores else maps


@register
class _RandomMasks(_Reference):
    """Mean loss of the score over those of 128 random masks of cells (share .5) that hide it."""

    name = "random-masks"
    signed = True

    def attribute(self, images: Tensor, target: Any = None) -> Tensor:
        grid, maps = self.forward.clip.grid(*images.shape[-2:]), list[Tensor]()
        columns = torch.as_tensor(0 if target is None else target).expand(len(images)).tolist()
        for image, column in zip(torch.split(images, 1), columns, strict=True):  # masks by place
            drawn = masked_changes(self.forward, image, column, grid=grid, share=0.5, samples=128)
            masks = drawn.masks[0].to(drawn.changes)
            maps.append(torch.tensordot(drawn.changes[0], masks, 1) / masks.sum(0).clamp(min=1))
        return torch.stack(maps)[:, None]


@register
class _Magnitude(_Reference):
    """|c|: the length of what each position adds to the embedding (direct), without a text."""

    name = "magnitude"
    costly = needs_target = False

    def attribute(self, images: Tensor, target: Any = None) -> Tensor:
        lengths: Tensor = DirectContribution(self.forward).vectors(images).norm(dim=-1)
        return lengths[:, None]


@register
class _SummedAttention(_Reference):
    """CLS rows of the attention of all layers, heads averaged, added up."""

    name = "summed-attention"
    towers = LayerAttention.towers
    costly = needs_target = False

    def attribute(self, images: Tensor, target: Any = None) -> Tensor:
        layers, tower = LayerAttention(self.forward), self.forward.clip.tower
        count = len(tower.layers) if isinstance(tower, ViTTower) else 0
        return torch.stack([layers.attribute(images, index=i) for i in range(count)]).sum(0)


def _uniform(seed: int, grid: tuple[int, int], number: int) -> Tensor:
    """The same value everywhere."""
    return torch.ones(grid)


def _random(seed: int, grid: tuple[int, int], number: int) -> Tensor:
    """Uniform in [-1, 1] in each cell of the model's grid."""
    # A seed for each sample, of which those of two runs do not meet.
    generator = torch.Generator().manual_seed(1_000_003 * seed + number)
    return 2 * torch.rand(grid, generator=generator) - 1


def _gaussian(seed: int, grid: tuple[int, int], number: int) -> Tensor:
    """A Gaussian at the center, its standard deviation a quarter of each side."""
    axes = [((torch.arange(side) + 0.5) / side - 0.5) / 0.25 for side in grid]
    return torch.exp(-(axes[0][:, None] ** 2 + axes[1] ** 2) / 2)


_DRAWINGS: Final = {"random": _random, UNIFORM: _uniform, "center": _gaussian}
_ALIASES: Final = {
    "last-attention": "layer:index=-1,of=attention",
    "last-gradient": "layer:index=-1,of=gradient",
}
_COMMON: Final = (*_DRAWINGS, "empty-text")
BASELINES: Final = (*_COMMON, "magnitude", "last-attention", "summed-attention", "last-gradient")
_OFFERED: Final = (
    *("attention-grad-cam:weights=pooled", "last-grad:heads=averaged", "last-grad:sign=signed"),
    *("grad-cam:sign=signed", "integrated-gradients", "occlusion"),
    *("occlusion:fill=ring,side=3", "random-masks", *BASELINES),
)
ALL: Final = "all"  # stands for all of `methods_for`


def named_methods(clip: ClipAdapter, names: Sequence[str]) -> tuple[str, ...]:
    """The names with "all" and "mamooler" written out, and what is drawn; of none the default."""
    names = (*names, *_DRAWINGS) if names else (*registry.methods_for(clip.kind), *_COMMON)
    written = {ALL: methods_for(clip), MAMOOLER: (registry.report_method(clip.tower),)}
    return tuple(dict.fromkeys(full for name in names for full in written.get(name, (name,))))


@public("methods_for")
def methods_for(clip: ClipAdapter) -> tuple[str, ...]:
    """Names of all methods and baselines that fit a model's tower."""
    others = (name for name in _OFFERED if name in _COMMON or _choice(name).fits(clip.kind))
    return (*registry.methods_for(clip.kind), *others)


def method_of(name: str, clip: ClipAdapter, *, seed: int = 0) -> Method:
    """A method by its name, for a model; the seed is that of the random baseline.

    The name comes from :func:`methods_for`, or has other options as on the command line;
    "layer:index=3,of=gradient,rows=sum" is :class:`captum_clip.LayerAttention`. A map is the one
    that its paper draws, Grad-CAM's without what is below zero; "grad-cam:sign=signed" is the map
    less that of the negated target.
    """
    if name in _DRAWINGS:
        draw = _DRAWINGS[name]
        return Drawn(name, str(draw.__doc__), partial(draw, seed), signed=name == "random")
    is_empty = name == "empty-text"
    choice = _choice(registry.report_method(clip.tower) if is_empty else name)
    options = ", ".join(f"{key}={value}" for key, value in choice.options.items())
    method, package = choice.method, choice.method.__module__.partition(".")[0]
    what = f"{method.__name__} of {package}"
    if issubclass(method, _Reference):
        what = str(method.__doc__).partition(".\n")[0]
    what += f" with {options}" * bool(options) + ", for the empty text" * is_empty
    what += ", minus the map of the negated target" * choice.both_signs
    return Attributed(name, what, choice, is_empty)


def check_measured(name: str) -> None:
    """Raise the InputError of :func:`method_of` that needs no model."""
    if name not in (*_COMMON, ALL, MAMOOLER):
        _choice(name)


def _choice(name: str) -> MethodChoice:
    """A class with the options of its published map."""
    choice = MethodChoice.of(_ALIASES.get(name, name), published=True, others=BASELINES)
    if choice.both_signs:
        choice.check_negative()
    return choice


class PrecomputedMaps(Method):
    """The maps in a folder: ``SAMPLE.npz`` with `maps` (K, h, w) and `names` (K,), on any grid.

    A map is found by the name of its sample and the text of its target, and resized to the image
    (bilinear). What is below zero in any of a folder's maps is negative evidence. A map that
    holds NaN or infinity counts as missing.

    Args:
        folder: with the files; its name is the method's. A sample in a folder of its data set,
            "cats/one", has its file in a folder of the same name.

    Raises:
        InputError: no such folder, no .npz file in it, or one that holds something else.
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
        self.what = f"maps read from files, {len(files)} of them, resized to the image"
        digests: dict[str, str] = {}
        for path in files:  # every file, so that all of them are checked
            for heatmap in _read_maps(path).values():
                if np.isfinite(heatmap).any() and np.nanmin(heatmap) < 0:
                    self.signed = True
            sha = hashlib.sha256(path.read_bytes()).hexdigest()
            digests[path.relative_to(self.folder).as_posix()] = sha
        self._files = frozenset(digests)
        self._digest = entries_digest(digests)

    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        maps = torch.full((len(queries), *queries.size), torch.nan)
        for index, (sample, text) in enumerate(zip(queries.names, queries.texts, strict=True)):
            # Names of samples come from a data set, and may lead out of the folder of the maps.
            file = f"{sample}.npz"
            heatmap = _read_maps(self.folder / file).get(text) if file in self._files else None
            if heatmap is not None and np.isfinite(heatmap).all():
                maps[index] = upsample(torch.from_numpy(heatmap), queries.size)
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
    """Text -> map (h, w), float32."""
    try:
        arrays = from_npz(path.read_bytes())
        names, heatmap = arrays["names"], arrays["maps"]
    except DAMAGED as error:
        raise InputError(
            f"{path}: expected an .npz file with maps (K, h, w) and names (K,), but reading it "
            f"failed ({error})."
        ) from error
    numbers = heatmap.ndim == 3 and 0 not in heatmap.shape and heatmap.dtype.kind in "fiu"
    fits = numbers and names.shape == heatmap.shape[:1] and names.dtype.kind == "U"
    texts = names.tolist()
    with error_context(str(path)):
        expect(fits, "maps (K, h, w) of numbers and names (K,) of text", [heatmap, names])
        expect(find_repeated(texts) is None, "each name once", texts)
    with np.errstate(over="ignore"):  # what does not fit becomes infinity
        return dict(zip(texts, heatmap.astype(np.float32), strict=True))
