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
from captum.attr import IntegratedGradients, NoiseTunnel, Occlusion, Saliency
from torch import Tensor
from torch.nn import functional as F

from ..attr import registry
from ..attr.attention_methods import LayerAttention
from ..attr.contributions import DirectContribution
from ..attr.registry import MAMOOLER, MethodChoice
from ..checks import error_context, expand, expect, find_repeated, suggestion
from ..errors import InputError, public
from ..files import DAMAGED
from ..maps import upsample
from ..metrics.faithfulness import masked_changes
from ..models.adapter import ClipAdapter
from ..models.towers import ViTTower
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
    both_signs: bool  # the map of the negated target is subtracted
    empty_text: bool  # is the target, whatever the query

    def __post_init__(self) -> None:
        self.signed = (self.choice.signed or self.both_signs) and not self.empty_text
        self.costly, self.baseline = self.choice.costly, self.name in BASELINES

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
            for signed in (target, -target)[: 1 + self.both_signs]
        ]
        return maps[0] - maps[1] if self.both_signs else maps[0]

    def attribute(self, clip: ClipAdapter, rows: Tensor) -> Attribute:
        return partial(self._compute, clip, rows, "attribute")

    def maps_of_image(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        if issubclass(self.choice.method, _Reference):  # Captum has no `attribute_targets`
            return self.maps(clip, queries)
        image = queries.pixels[:1]
        maps = self._compute(clip, queries.embeddings, "attribute_targets", image)
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
    """One of Captum's own methods, in the form of a registered class; at the size of the image."""

    name: str
    what: str
    signed = False
    costly = True
    needs_target = True

    def __init__(self, forward: ClipSimilarity) -> None:
        self.forward = forward


class _IntegratedGradients(_Reference):
    name = "integrated-gradients"
    what = "Captum's IntegratedGradients from the mean color, 16 steps, channels added"
    signed = True

    def attribute(self, images: Tensor, target: Any = None) -> Any:
        # Captum repeats a batch once per step, and takes no limit below one row per image.
        options = {"n_steps": 16, "internal_batch_size": max(32, len(images))}
        return IntegratedGradients(self.forward).attribute(images, target=target, **options)


class _NoiseTunnel(_Reference):
    name = "noise-tunnel"
    what = (
        "Captum's NoiseTunnel over Saliency (absolute gradients), 8 draws of standard deviation "
        "0.1, channels added"
    )
    needs_target = False  # up to its sign: the negated target has the same absolute gradients

    def attribute(self, images: Tensor, target: Any = None) -> Tensor:
        method, options = NoiseTunnel(Saliency(self.forward)), {"nt_samples": 8, "stdevs": 0.1}
        columns = torch.as_tensor(0 if target is None else target).expand(len(images)).tolist()
        # Captum draws from the global generator: image by image, so that a map does not depend on
        # what else is in the batch, and put back afterwards.
        maps, generator = [], torch.cuda if images.is_cuda else torch.default_generator
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            for image, column in zip(torch.split(images, 1), columns, strict=True):
                generator.manual_seed(0)  # of this device alone; torch.manual_seed seeds all
                maps.append(method.attribute(image, target=column, **options))
        return torch.cat(maps)


class _Occlusion(_Reference):
    name = "occlusion"
    what = "Captum's Occlusion with the mean color, one cell of the model's grid at a time"
    signed = True
    cells = 1  # on a side of the window, one window around each cell

    def attribute(self, images: Tensor, target: Any = None) -> Any:
        height, width = images.shape[-2:]
        rows, columns = self.forward.clip.grid(height, width)
        y, x = math.ceil(height / rows), math.ceil(width / columns)
        rim = [side * (self.cells // 2) for side in (x, x, y, y)]
        cut = partial(F.pad, pad=[-side for side in rim])
        losses = Occlusion(lambda padded: self.forward(cut(padded))).attribute(
            F.pad(images, rim),
            (3, self.cells * y, self.cells * x),
            strides=(3, y, x),
            target=target,
        )
        return cut(losses)


class _WindowOcclusion(_Occlusion):
    name = "window-occlusion"
    what = (
        "the same with windows of 3 x 3 cells, one around each cell, mean over those that hold it"
    )
    cells = 3


class _RandomMasks(_Reference):
    name = "random-masks"
    what = "mean loss of the score over those of 128 random masks of cells (share .5) that hide it"
    signed = True

    def attribute(self, images: Tensor, target: Any = None) -> Tensor:
        grid, maps = self.forward.clip.grid(*images.shape[-2:]), list[Tensor]()
        columns = torch.as_tensor(0 if target is None else target).expand(len(images)).tolist()
        # each by itself: of a batch an image's masks would depend on its place
        for image, column in zip(torch.split(images, 1), columns, strict=True):
            drawn = masked_changes(self.forward, image, column, grid=grid, share=0.5, samples=128)
            masks = drawn.masks.to(drawn.changes)
            losses = torch.einsum("bs,bshw->bhw", drawn.changes, masks)
            maps.append(losses / masks.sum(1).clamp(min=1))
        return torch.stack(maps)


class _Magnitude(_Reference):
    name = "magnitude"
    what = "|c|: the length of what each position adds to the embedding (direct), without a text"
    costly = needs_target = False

    def attribute(self, images: Tensor, target: Any = None) -> Tensor:
        lengths: Tensor = DirectContribution(self.forward).vectors(images).norm(dim=-1)
        return lengths[:, None]


class _SummedAttention(_Reference):
    name = "summed-attention"
    what = "CLS rows of the attention of all layers, heads averaged, added up"
    costly = needs_target = False

    def attribute(self, images: Tensor, target: Any = None) -> Tensor:
        layers, tower = LayerAttention(self.forward), self.forward.clip.tower
        count = len(tower.layers) if isinstance(tower, ViTTower) else 0
        rows = [layers.attribute(images, index=index) for index in range(count)]
        return torch.stack([row for row in rows if isinstance(row, Tensor)]).sum(0)


def _random(seed: int, grid: tuple[int, int], number: int) -> Tensor:
    # A seed for each sample, of which those of two runs do not meet.
    generator = torch.Generator().manual_seed(1_000_003 * seed + number)
    return 2 * torch.rand(grid, generator=generator) - 1


def _gaussian(seed: int, grid: tuple[int, int], number: int) -> Tensor:
    axes = [((torch.arange(side) + 0.5) / side - 0.5) / 0.25 for side in grid]
    return torch.exp(-(axes[0][:, None] ** 2 + axes[1] ** 2) / 2)


_CAPTUMS: Final = (_IntegratedGradients, _NoiseTunnel, _Occlusion, _WindowOcclusion, _RandomMasks)
_REFERENCES: Final = {kind.name: kind for kind in (*_CAPTUMS, _SummedAttention, _Magnitude)}
_LAYERS: Final = {
    "last-attention": "layer:index=-1,of=attention",
    _SummedAttention.name: _SummedAttention.name,
    "last-gradient": "layer:index=-1,of=gradient",
}
_DRAWINGS: Final[dict[str, tuple[str, Callable[..., Tensor]]]] = {
    "random": ("uniform in [-1, 1] in each cell of the model's grid", _random),
    UNIFORM: ("the same value everywhere", lambda seed, grid, number: torch.ones(grid)),
    "center": (
        "a Gaussian at the center, its standard deviation a quarter of each side",
        _gaussian,
    ),
}
_COMMON: Final = (*_DRAWINGS, "empty-text")
BASELINES: Final = (*_COMMON, *_LAYERS, _Magnitude.name)
_OFFERED: Final = (*(kind.name for kind in _CAPTUMS), *BASELINES)
"""What is measured besides the registered methods."""
ALL: Final = "all"
"""Stands for all of :func:`methods_for`."""
_VARIANTS: Final = (
    *("attention-grad-cam:weights=pooled", "last-grad:heads=averaged"),
    *("last-grad:sign=signed", "grad-cam:sign=signed"),
)


def named_methods(clip: ClipAdapter, names: Sequence[str]) -> tuple[str, ...]:
    """The names with "all" and "mamooler" written out, and what is drawn; of none the default."""
    names = (*names, *_DRAWINGS) if names else (*registry.methods_for(clip.kind), *_COMMON)
    written = {ALL: methods_for(clip), MAMOOLER: (registry.report_method(clip.tower),)}
    return tuple(dict.fromkeys(full for name in names for full in written.get(name, (name,))))


@public("methods_for")
def methods_for(clip: ClipAdapter) -> tuple[str, ...]:
    """Names of all methods and baselines that fit a model's tower."""
    variants = [name for name in _VARIANTS if _choice(name)[0].fits(clip.kind)]
    layers = _LAYERS if clip.kind in LayerAttention.towers else ()
    captums = [kind.name for kind in _CAPTUMS]
    others = (*captums, *_COMMON, _Magnitude.name, *layers)
    return (*registry.methods_for(clip.kind), *variants, *others)


def method_of(name: str, clip: ClipAdapter, *, seed: int = 0) -> Method:
    """A method by its name, for a model; the seed is that of the random baseline.

    The name comes from :func:`methods_for`, or has other options as on the command line;
    "layer:index=3,of=gradient,rows=sum" is :class:`captum_clip.LayerAttention`. A map is the one
    that its paper draws, Grad-CAM's without what is below zero; "grad-cam:sign=signed" is the map
    less that of the negated target.
    """
    if name in _DRAWINGS:
        what, draw = _DRAWINGS[name]
        return Drawn(name, what, partial(draw, seed), signed=name == "random")
    is_empty = name == "empty-text"
    choice, both_signs = _choice(registry.report_method(clip.tower) if is_empty else name)
    what = getattr(choice.method, "what", "")
    if not what:
        options = ", ".join(f"{key}={value}" for key, value in choice.options.items())
        package = choice.method.__module__.partition(".")[0]
        what = f"{choice.method.__name__} of {package}" + f" with {options}" * bool(options)
    what += ", for the empty text" * is_empty + ", minus the map of the negated target" * both_signs
    return Attributed(name, what, choice, both_signs, is_empty)


def check_measured(name: str) -> None:
    """Raise the InputError of :func:`method_of` that needs no model."""
    if name not in (*_OFFERED, ALL, MAMOOLER):
        _choice(name)


def _choice(name: str) -> tuple[MethodChoice, bool]:
    """A class with the options of its published map, and whether it has both signs.

    The name is "class:option=value", where "sign=signed" is an option of every class.
    """
    if kind := _REFERENCES.get(name):
        return MethodChoice(kind, {}, name, kind.signed, kind.needs_target, kind.costly), False
    stem, _, text = _LAYERS.get(name, name).partition(":")
    options = [option for option in text.split(",") if option != "sign=signed"]
    both_signs = options != text.split(",")
    try:
        choice = MethodChoice.of(":".join(filter(None, (stem, ",".join(options)))))
    except InputError as error:
        if stem in (*registry.registered(), MAMOOLER):
            raise
        names = (*registry.registered(), *_OFFERED)
        raise InputError(
            f"there is no method {name!r}{suggestion(stem, names)}; there are {', '.join(names)}, "
            "with options as in last-grad:heads=averaged."
        ) from error
    if both_signs:
        choice.check_negative()
    if paper_options := getattr(choice.method, "paper_options", None):
        options_of = {**paper_options, **choice.options}
        properties = choice.method.properties(**options_of)
        choice = replace(choice, options=options_of, **properties)
    return choice, both_signs


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
        self._digest = entries_digest(digests)

    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        maps = torch.full((len(queries), *queries.size), torch.nan)
        for index, (sample, text) in enumerate(zip(queries.names, queries.texts, strict=True)):
            path = self.folder / f"{sample}.npz"
            heatmap = _read_maps(path).get(text) if path.is_file() else None
            if heatmap is not None and np.isfinite(heatmap).all():
                maps[index] = upsample(torch.from_numpy(heatmap), queries.size)
        return maps.to(queries.pixels.device)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "files": self._digest}

    def failure_reason(self, sample: str, text: str) -> str:
        path = self.folder / f"{sample}.npz"
        if not path.is_file():
            return f"there is no file {sample}.npz"
        if text not in _read_maps(path):
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
