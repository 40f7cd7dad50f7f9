"""Methods by name: the registered ones, Captum's own for reference, and baselines."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from captum.attr import IntegratedGradients, NoiseTunnel, Occlusion, Saliency
from torch import Tensor
from typing_extensions import override

from ..attr import LayerAttention, registry
from ..attr.registry import MethodChoice
from ..errors import InputError
from ..models import ClipAdapter
from ..models.towers import ViTTower
from ..similarity import ClipSimilarity
from ..targets import Target
from .metric import UNIFORM

Attribute = Callable[..., Tensor]
"""Images (N, 3, H, W) and ``target=`` columns -> maps (N, C, h, w), as Captum's `attribute`."""


@dataclass(frozen=True, eq=False)
class Queries:
    """Images with one target each.

    Attributes:
        pixels: (N, 3, H, W), preprocessed.
        rows: (N, D) unit rows, the targets.
        names: (N,) of the samples.
        texts: (N,) what the targets are called.
        numbers: (N,) of the samples, which random baselines draw from.
    """

    pixels: Tensor
    rows: Tensor
    names: tuple[str, ...]
    texts: tuple[str, ...]
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def part(self, indices: Sequence[int]) -> Queries:
        """Some of them, in the given order."""
        kept = list(indices)
        return Queries(
            self.pixels[kept],
            self.rows[kept],
            tuple(self.names[i] for i in kept),
            tuple(self.texts[i] for i in kept),
            tuple(self.numbers[i] for i in kept),
        )

    def split(self, size: int) -> list[Queries]:
        """All of them in parts of at most `size`."""
        indices = range(len(self))
        return [self.part(indices[start : start + size]) for start in indices[::size]]

    def with_targets(self, rows: Tensor) -> Queries:
        """The same images with other targets."""
        return Queries(self.pixels, rows, self.names, self.texts, self.numbers)


class Method(ABC):
    """Something that makes a map for each image and target.

    Attributes:
        name: in the table.
        what: how it is made, in a line.
        baseline: listed apart, since it says nothing about the model or the target.
        signed: what speaks against the target is below zero in its maps.
        negative_from_negated_target: its maps are not signed, and the map of the negated target is
            the negative map.
        costly: it takes many forward passes per map, so it sees the first images only.
    """

    name: str
    what: str
    costly: bool = False
    baseline: bool = False
    signed: bool = False
    negative_from_negated_target: bool = False

    @abstractmethod
    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        """Raw maps (N, h, w) on any grid, on the images' device; NaN where there is none."""

    def attribute(self, clip: ClipAdapter, rows: Tensor) -> Attribute | None:
        """Its `attribute` over the cosines with these rows; None where there is no such thing."""
        return None

    def negative_maps(self, clip: ClipAdapter, queries: Queries, raw: Tensor) -> Tensor | None:
        """What speaks against the targets, (N, h, w), not below zero; None where there is no such.

        NaN where the map of a negated target has it.

        Args:
            clip: the model.
            queries: images and targets.
            raw: the maps of them.
        """
        if self.signed:
            return (-raw).clamp(min=0)
        if self.negative_from_negated_target:
            return self.maps(clip, queries.with_targets(-queries.rows)).clamp(min=0)
        return None

    def identity(self) -> dict[str, Any]:
        """All that decides its maps besides the model, as JSON."""
        return {"name": self.name, "what": self.what}

    def why_not(self, sample: str, text: str) -> str:
        """Why there is no finite map."""
        return f"the map of {text!r} holds NaN or infinity"


@dataclass(eq=False)
class Attributed(Method):
    """A Captum attribution over a :class:`captum_clip.ClipSimilarity`.

    Attributes:
        build: similarity -> its `attribute`, with the options bound.
        empty: explain the empty text whatever the target is.
    """

    name: str
    what: str
    build: Callable[[ClipSimilarity], Attribute]
    signed: bool = False
    negative_from_negated_target: bool = False
    baseline: bool = False
    empty: bool = False
    costly: bool = False

    @override
    def attribute(self, clip: ClipAdapter, rows: Tensor) -> Attribute:
        if self.empty:
            rows = clip.encode_text([""]).detach().expand_as(rows)
        names = tuple(str(number) for number in range(len(rows)))
        target = Target(rows.detach(), torch.ones(len(rows), device=rows.device), names)
        return self.build(ClipSimilarity(clip, target))

    @override
    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        """Channels are added up."""
        leaf = queries.pixels.detach().clone().requires_grad_()
        heat = self.attribute(clip, queries.rows)(leaf, target=list(range(len(queries))))
        return heat.detach().float().sum(1)


@dataclass(eq=False)
class Drawn(Method):
    """A baseline that sees neither the model nor the image.

    Attributes:
        draw: grid and number of a sample -> its map (h, w).
    """

    name: str
    what: str
    draw: Callable[[tuple[int, int], int], Tensor]
    signed: bool = False
    baseline: bool = True

    @override
    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        grid = clip.grid(queries.pixels.shape[-2], queries.pixels.shape[-1])
        heat = [self.draw(grid, number) for number in queries.numbers]
        return torch.stack(heat).to(queries.pixels.device)


_STEPS: Final = 16  # of integrated gradients
_DRAWS: Final = 8  # of the noise tunnel
_DEVIATION: Final = 0.1  # of its noise


def _integrated_gradients(forward: ClipSimilarity) -> Attribute:
    method = IntegratedGradients(forward)
    return lambda images, target=None: method.attribute(
        images, target=target, n_steps=_STEPS, internal_batch_size=max(32, len(images))
    )


def _noise_tunnel(forward: ClipSimilarity) -> Attribute:
    method = NoiseTunnel(Saliency(forward))
    options = {"nt_samples": _DRAWS, "stdevs": _DEVIATION}

    def attribute(images: Tensor, target: Any = None) -> Tensor:
        columns = torch.as_tensor(0 if target is None else target).expand(len(images)).tolist()
        # Captum draws from the global generator: image by image, so that a map does not depend on
        # what else is in the batch, and put back afterwards.
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            maps = []
            for image, column in zip(torch.split(images, 1), columns, strict=True):
                generator = torch.cuda if images.is_cuda else torch.default_generator
                generator.manual_seed(0)
                maps.append(method.attribute(image, target=column, **options))
        return torch.cat(maps)

    return attribute


def _occlusion(forward: ClipSimilarity) -> Attribute:
    method = Occlusion(forward)

    def attribute(images: Tensor, target: Any = None) -> Tensor:
        height, width = images.shape[-2:]
        rows, columns = forward.clip.grid(height, width)
        cell = (3, math.ceil(height / rows), math.ceil(width / columns))
        maps: Tensor = method.attribute(
            images, sliding_window_shapes=cell, strides=cell, target=target
        )
        return maps

    return attribute


REFERENCES: Final = {
    method.name: method
    for method in (
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
}
"""Captum's own methods by name, at the size of the image."""

_LAYERS: Final = {
    "last-attention": "layer:index=-1,of=attention",
    "summed-attention": "",
    "last-gradient": "layer:index=-1,of=gradient",
}
BASELINES: Final = ("random", UNIFORM, "centre", "empty-text", *_LAYERS)
_SIGNED: Final = "sign=signed"
_VARIANTS: Final = (
    *("attention-grad-cam:weights=pooled", "last-grad:heads=averaged"),
    *(f"last-grad:{_SIGNED}", f"grad-cam:{_SIGNED}"),
)


def methods_for(clip: ClipAdapter) -> tuple[str, ...]:
    """Names of all methods and baselines that fit a model's tower."""
    variants = [name for name in _VARIANTS if _choice(name)[0].fits(clip.kind)]
    with_layers = MethodChoice.of(LayerAttention).fits(clip.kind)
    baselines = [name for name in BASELINES if with_layers or name not in _LAYERS]
    return (*registry.methods_for(clip.kind), *variants, *REFERENCES, *baselines)


def method_of(name: str, clip: ClipAdapter, *, seed: int = 0) -> Method:
    """A method by its name.

    Args:
        name: one of :func:`methods_for`, or another choice of options as on the command line;
            "layer:index=3,of=gradient,rows=sum" is :class:`captum_clip.LayerAttention`. A map is
            the one that its paper draws, Grad-CAM's without what is below zero;
            "grad-cam:sign=signed" is the map less that of the negated target.
        clip: the model it is for.
        seed: of the random baseline.

    Raises:
        InputError: no such method or option.
    """
    if name in REFERENCES:
        return REFERENCES[name]
    if name == "random":
        what = "uniform in [-1, 1] in each cell of the model's grid"
        return Drawn(name, what, _random(seed), signed=True)
    if name == UNIFORM:
        return Drawn(name, "the same value everywhere", lambda grid, number: torch.ones(grid))
    if name == "centre":
        what = "a Gaussian at the centre, its standard deviation a quarter of each side"
        return Drawn(name, what, lambda grid, number: _gaussian(grid))
    if name == "empty-text":
        return _registered(registry.default_method(clip.tower), name=name, empty=True)
    if name == "summed-attention":
        what = "CLS rows of the attention of all layers, heads averaged, added up"
        return Attributed(name, what, _summed_attention, baseline=True)
    return _registered(_LAYERS.get(name, name), name=name)


def check_method(name: str) -> None:
    """Raise the InputError of :func:`method_of` that needs no model."""
    if name not in (*REFERENCES, *BASELINES):
        _registered(_LAYERS.get(name, name), name=name)


def _registered(text: str, *, name: str, empty: bool = False) -> Attributed:
    """A registered class with its options, "class:option=value"."""
    try:
        choice, both_signs = _choice(text)
    except InputError as error:
        if text.partition(":")[0] in registry.registered():
            raise
        names = (*registry.registered(), *REFERENCES, *BASELINES)
        hint = registry.suggestion(text.partition(":")[0], names)
        raise InputError(
            f"there is no method {text!r}{hint}; there are {', '.join(names)}, with options as in "
            "last-grad:heads=averaged."
        ) from error
    options = ", ".join(f"{key}={value}" for key, value in choice.options.items())
    what = f"{choice.method.__name__} of {choice.method.__module__.partition('.')[0]}"
    what += (f" with {options}" if options else "") + (", for the empty text" if empty else "")

    def build(forward: ClipSimilarity) -> Attribute:
        attribute: Attribute = choice.method(forward).attribute
        return lambda images, target=None: attribute(images, target=target, **choice.options)

    def build_signed(forward: ClipSimilarity) -> Attribute:
        positive, negative = build(forward), build(ClipSimilarity(forward.clip, -forward.target))
        return lambda *images, **target: positive(*images, **target) - negative(*images, **target)

    if both_signs:
        choice.check_negative()
        return Attributed(
            name,
            f"{what}, less the map of the negated target",
            build_signed,
            signed=True,
            costly=choice.costly,
        )

    return Attributed(
        name,
        what,
        build,
        signed=choice.signed and not empty,
        negative_from_negated_target=choice.needs_target and not (choice.signed or empty),
        baseline=name in BASELINES,
        empty=empty,
        costly=choice.costly,
    )


def _choice(text: str) -> tuple[MethodChoice, bool]:
    """A method with the options of its published map, and whether both signs are asked for."""
    plain = text.removesuffix(f",{_SIGNED}").removesuffix(f":{_SIGNED}")
    choice = MethodChoice.of(plain)
    published = getattr(choice.method, "published", {})
    return replace(choice, options={**published, **choice.options}), plain != text


def _summed_attention(forward: ClipSimilarity) -> Attribute:
    layers = LayerAttention(forward)
    tower = forward.clip.tower
    count = len(tower.layers) if isinstance(tower, ViTTower) else 0

    def attribute(images: Tensor, target: Any = None) -> Tensor:
        rows = [layers.attribute(images, index=index) for index in range(count)]
        return torch.stack([row for row in rows if isinstance(row, Tensor)]).sum(0)

    return attribute


def _random(seed: int) -> Callable[[tuple[int, int], int], Tensor]:
    def draw(grid: tuple[int, int], number: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * seed + number)
        return 2 * torch.rand(grid, generator=generator) - 1

    return draw


def _gaussian(grid: tuple[int, int]) -> Tensor:
    axes = [((torch.arange(side) + 0.5) / side - 0.5) / 0.25 for side in grid]
    return torch.exp(-(axes[0][:, None] ** 2 + axes[1] ** 2) / 2)
