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
from typing_extensions import override

from ..attr import LayerAttention, registry
from ..attr.registry import MAMOOLER, MethodChoice
from ..checks import error_context, expand, expect, find_repeated, suggestion
from ..errors import InputError
from ..files import DAMAGED
from ..maps import upsample
from ..models import ClipAdapter
from ..models.towers import ViTTower
from ..similarity import ClipSimilarity
from ..targets import Target
from .data import digest
from .table import UNIFORM, Queries
from .units import from_npz

Attribute = Callable[..., Tensor]
"""Images (N, 3, H, W) and ``target=`` columns -> maps (N, C, h, w), as Captum's `attribute`."""
Compute = Callable[..., Any]
"""Similarity, images and ``target=`` columns -> such maps."""


class Method(ABC):
    """Something that makes a map for each image and target."""

    name: str  # in the table
    what: str  # how it is made, in a line
    costly: bool = False  # it takes many forward passes per map, so it sees the first images only
    baseline: bool = False  # listed apart, since it knows nothing of the model or the target
    without_map: bool = False  # it looks at no map; tasks measure it themselves, where it answers
    signed: bool = False  # negative evidence is below zero in its maps
    # not signed: the map of the negated target is the negative map
    negative_from_negated_target: bool = False
    of_photos: bool = False  # made elsewhere: they lie on the whole image as it was, not on a part

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
        if self.signed:
            return (-raw).clamp(min=0)
        if self.negative_from_negated_target:
            return self.maps(clip, replace(queries, embeddings=-queries.embeddings)).clamp(min=0)
        return None

    def identity(self) -> dict[str, Any]:
        """Return all that decides its maps besides the model, as JSON."""
        return {"name": self.name, "what": self.what}

    def failure_reason(self, sample: str, text: str) -> str:
        """Why there is no finite map."""
        return f"the map of {text!r} holds NaN or infinity"


@dataclass(eq=False)
class Attributed(Method):
    """A Captum attribution over a :class:`captum_clip.ClipSimilarity`."""

    name: str
    what: str
    compute: Compute  # with the options bound
    signed: bool = False
    negative_from_negated_target: bool = False
    baseline: bool = False
    costly: bool = False
    of_empty_text: bool = False  # whatever the target is
    compute_all: Callable[[ClipSimilarity, Tensor], Tensor] | None = None  # maps (N, K, h, w)

    @override
    def attribute(self, clip: ClipAdapter, rows: Tensor) -> Attribute:
        return partial(self.compute, self._forward(clip, rows))

    def _forward(self, clip: ClipAdapter, rows: Tensor) -> ClipSimilarity:
        if self.of_empty_text:
            rows = clip.encode_text([""]).expand_as(rows)
        names = tuple(str(number) for number in range(len(rows)))
        target = Target(rows.detach(), torch.ones(len(rows), device=rows.device), names)
        return ClipSimilarity(clip, target)

    @override
    def maps_of_image(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        if self.compute_all is None:
            return self.maps(clip, queries)
        forward = self._forward(clip, queries.embeddings)
        return self.compute_all(forward, queries.pixels[:1]).detach().float()[0]

    @override
    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        leaf = queries.pixels.detach().clone().requires_grad_()
        heatmap = self.attribute(clip, queries.embeddings)(leaf, target=list(range(len(queries))))
        return heatmap.detach().float().sum(1)  # channels are added up


@dataclass(eq=False)
class Drawn(Method):
    """A baseline that sees neither the model nor the image."""

    name: str
    what: str
    draw: Callable[[tuple[int, int], int], Tensor]  # grid and number of a sample -> map (h, w)
    signed: bool = False
    baseline: bool = True
    without_map: bool = False

    @override
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
}
"""Predictors that look at no map: what a map must beat to be worth drawing."""


def predictor(name: str) -> Method:
    """One of `WITHOUT_MAP`; what it answers stands with the tasks."""
    nothing = torch.full((1, 1), torch.nan)
    return Drawn(name, WITHOUT_MAP[name], lambda grid, number: nothing, without_map=True)


_STEPS: Final = 16  # of integrated gradients
_DRAWS: Final = 8  # of the noise tunnel
_DEVIATION: Final = 0.1  # of its noise


def _integrated_gradients(forward: ClipSimilarity, images: Tensor, target: Any = None) -> Any:
    options = {"n_steps": _STEPS, "internal_batch_size": max(32, len(images))}
    return IntegratedGradients(forward).attribute(images, target=target, **options)


def _noise_tunnel(forward: ClipSimilarity, images: Tensor, target: Any = None) -> Tensor:
    method, options = NoiseTunnel(Saliency(forward)), {"nt_samples": _DRAWS, "stdevs": _DEVIATION}
    columns = torch.as_tensor(0 if target is None else target).expand(len(images)).tolist()
    # Captum draws from the global generator: image by image, so that a map does not depend on
    # what else is in the batch, and put back afterwards.
    maps, generator = [], torch.cuda if images.is_cuda else torch.default_generator
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        for image, column in zip(torch.split(images, 1), columns, strict=True):
            generator.manual_seed(0)  # of this device alone; torch.manual_seed seeds all
            maps.append(method.attribute(image, target=column, **options))
    return torch.cat(maps)


def _occlusion(forward: ClipSimilarity, images: Tensor, target: Any = None) -> Any:
    height, width = images.shape[-2:]
    rows, columns = forward.clip.grid(height, width)
    cell = (3, math.ceil(height / rows), math.ceil(width / columns))
    return Occlusion(forward).attribute(images, cell, strides=cell, target=target)


def _random(seed: int, grid: tuple[int, int], number: int) -> Tensor:
    generator = torch.Generator().manual_seed(1_000_003 * seed + number)
    return 2 * torch.rand(grid, generator=generator) - 1


def _gaussian(seed: int, grid: tuple[int, int], number: int) -> Tensor:
    axes = [((torch.arange(side) + 0.5) / side - 0.5) / 0.25 for side in grid]
    return torch.exp(-(axes[0][:, None] ** 2 + axes[1] ** 2) / 2)


_CAPTUMS: Final = (
    Attributed(
        "integrated-gradients",
        f"Captum's IntegratedGradients from the mean colour, {_STEPS} steps, channels added",
        _integrated_gradients,
        signed=True,
        costly=True,
    ),
    Attributed(
        "noise-tunnel",
        f"Captum's NoiseTunnel over Saliency (absolute gradients), {_DRAWS} draws of standard "
        f"deviation {_DEVIATION}, channels added",
        _noise_tunnel,
        costly=True,
    ),
    Attributed(
        "occlusion",
        "Captum's Occlusion with the mean colour, one cell of the model's grid at a time",
        _occlusion,
        signed=True,
        costly=True,
    ),
)
REFERENCES: Final[dict[str, Method]] = {method.name: method for method in _CAPTUMS}
"""Captum's own methods by name, at the size of the image; one of your own is measured next to them
once it is in here."""

_LAYERS: Final = {
    "last-attention": "layer:index=-1,of=attention",
    "summed-attention": "",
    "last-gradient": "layer:index=-1,of=gradient",
}
_DRAWN: Final[dict[str, tuple[str, Callable[..., Tensor]]]] = {
    "random": ("uniform in [-1, 1] in each cell of the model's grid", _random),
    UNIFORM: ("the same value everywhere", lambda seed, grid, number: torch.ones(grid)),
    "centre": (
        "a Gaussian at the centre, its standard deviation a quarter of each side",
        _gaussian,
    ),
}
_COMMON: Final = (*_DRAWN, "empty-text")
BASELINES: Final = (*_COMMON, *_LAYERS)
ALL: Final = "all"
"""Stands for all of :func:`methods_for`."""
_SIGNED: Final = "sign=signed"
_VARIANTS: Final = (
    *("attention-grad-cam:weights=pooled", "last-grad:heads=averaged"),
    *(f"last-grad:{_SIGNED}", f"grad-cam:{_SIGNED}"),
)


def named_methods(clip: ClipAdapter, names: Sequence[str]) -> tuple[str, ...]:
    """The names with "all" and "mamooler" written out, and what is drawn; of none the default."""
    names = (*names, *_DRAWN) if names else (*registry.methods_for(clip.kind), *_COMMON)
    written = {ALL: methods_for(clip), MAMOOLER: (registry.report_method(clip.tower),)}
    return tuple(dict.fromkeys(full for name in names for full in written.get(name, (name,))))


def methods_for(clip: ClipAdapter) -> tuple[str, ...]:
    """Names of all methods and baselines that fit a model's tower."""
    variants = [name for name in _VARIANTS if _choice(name)[0].fits(clip.kind)]
    with_layers = MethodChoice.of(LayerAttention).fits(clip.kind)
    baselines = [name for name in BASELINES if with_layers or name not in _LAYERS]
    return (*registry.methods_for(clip.kind), *variants, *REFERENCES, *baselines)


def method_of(name: str, clip: ClipAdapter, *, seed: int = 0) -> Method:
    """A method by its name, for a model; the seed is that of the random baseline.

    The name is one of :func:`methods_for`, or has other options as on the command line;
    "layer:index=3,of=gradient,rows=sum" is :class:`captum_clip.LayerAttention`. A map is the one
    that its paper draws, Grad-CAM's without what is below zero; "grad-cam:sign=signed" is the map
    less that of the negated target.
    """
    if name in REFERENCES:
        return REFERENCES[name]
    if name in _DRAWN:
        what, draw = _DRAWN[name]
        return Drawn(name, what, partial(draw, seed), signed=name == "random")
    if name == "empty-text":
        method = _registered(name, registry.report_method(clip.tower))
        method.what += ", for the empty text"
        return replace(method, of_empty_text=True, signed=False, negative_from_negated_target=False)
    if name == "summed-attention":
        what = "CLS rows of the attention of all layers, heads averaged, added up"
        return Attributed(name, what, _summed_attention, baseline=True)
    return _registered(name, _LAYERS.get(name, name))


def check_method(name: str) -> None:
    """Raise the InputError of :func:`method_of` that needs no model."""
    if name not in (*REFERENCES, *BASELINES, ALL, MAMOOLER):
        _registered(name, name)


def _registered(name: str, text: str) -> Attributed:
    """A registered class with its options, "class:option=value"."""
    try:
        choice, both_signs = _choice(text)
    except InputError as error:
        if text.partition(":")[0] in (*registry.registered(), MAMOOLER):
            raise
        names = (*registry.registered(), *REFERENCES, *BASELINES)
        hint = suggestion(text.partition(":")[0], names)
        raise InputError(
            f"there is no method {text!r}{hint}; there are {', '.join(names)}, with options as in "
            "last-grad:heads=averaged."
        ) from error
    options = ", ".join(f"{key}={value}" for key, value in choice.options.items())
    what = f"{choice.method.__name__} of {choice.method.__module__.partition('.')[0]}"
    what += f" with {options}" if options else ""
    if both_signs:
        choice.check_negative()
        what += ", less the map of the negated target"

    def call(verb: str, forward: ClipSimilarity, images: Tensor, **which: Any) -> Any:
        options = {**which, **choice.options}
        maps = getattr(choice.method(forward), verb)(images, **options)
        if not both_signs:
            return maps
        negated = ClipSimilarity(forward.clip, -forward.target)
        return maps - getattr(choice.method(negated), verb)(images, **options)

    signed = choice.signed or both_signs
    return Attributed(
        name,
        what,
        partial(call, "attribute"),
        signed=signed,
        negative_from_negated_target=choice.needs_target and not signed,
        baseline=name in BASELINES,
        costly=choice.costly,
        compute_all=partial(call, "attribute_targets"),
    )


def _choice(text: str) -> tuple[MethodChoice, bool]:
    """A method with the options of its published map, and whether both signs are asked for."""
    plain = text.removesuffix(f",{_SIGNED}").removesuffix(f":{_SIGNED}")
    choice = MethodChoice.of(plain)
    if paper_options := getattr(choice.method, "paper_options", None):
        options = {**paper_options, **choice.options}
        choice = replace(choice, options=options, **choice.method.properties(**options))
    return choice, plain != text


def _summed_attention(forward: ClipSimilarity, images: Tensor, target: Any = None) -> Tensor:
    layers, tower = LayerAttention(forward), forward.clip.tower
    count = len(tower.layers) if isinstance(tower, ViTTower) else 0
    rows = [layers.attribute(images, index=index) for index in range(count)]
    return torch.stack([row for row in rows if isinstance(row, Tensor)]).sum(0)


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
            for heatmap in _read(path).values():
                if np.isfinite(heatmap).any() and np.nanmin(heatmap) < 0:
                    self.signed = True
            sha = hashlib.sha256(path.read_bytes()).hexdigest()
            digests[path.relative_to(self.folder).as_posix()] = sha
        self._digest = digest(digests)

    @override
    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        maps = torch.full((len(queries), *queries.size), torch.nan)
        for index, (sample, text) in enumerate(zip(queries.names, queries.texts, strict=True)):
            path = self.folder / f"{sample}.npz"
            heatmap = _read(path).get(text) if path.is_file() else None
            if heatmap is not None and np.isfinite(heatmap).all():
                maps[index] = upsample(torch.from_numpy(heatmap), queries.size)
        return maps.to(queries.pixels.device)

    @override
    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "files": self._digest}

    @override
    def failure_reason(self, sample: str, text: str) -> str:
        path = self.folder / f"{sample}.npz"
        if not path.is_file():
            return f"there is no file {sample}.npz"
        if text not in _read(path):
            return f"{sample}.npz has no map of {text!r}"
        return super().failure_reason(sample, text)


def _read(path: Path) -> dict[str, np.ndarray]:
    """Text -> map (h, w), float32."""
    try:
        arrays = from_npz(path.read_bytes())
        names, heatmap = arrays["names"], arrays["maps"]
    except DAMAGED as error:
        raise InputError(
            f"{path}: expected an .npz file with maps (K, h, w) and names (K,), it cannot be read "
            f"so ({error})."
        ) from error
    numbers = heatmap.ndim == 3 and 0 not in heatmap.shape and heatmap.dtype.kind in "fiu"
    fits = numbers and names.shape == heatmap.shape[:1] and names.dtype.kind == "U"
    texts = names.tolist()
    with error_context(str(path)):
        expect(fits, "maps (K, h, w) of numbers and names (K,) of text", [heatmap, names])
        expect(find_repeated(texts) is None, "each name once", texts)
    with np.errstate(over="ignore"):  # what does not fit becomes infinity
        return dict(zip(texts, heatmap.astype(np.float32), strict=True))
