"""Methods by name: this package's, Captum's own for reference, and baselines."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from captum.attr import IntegratedGradients, NoiseTunnel, Occlusion, Saliency
from torch import Tensor

from .. import maps as resizing
from ..attr import LayerAttention, registry
from ..attr.registry import MethodChoice
from ..errors import InputError
from ..models import ClipAdapter
from ..models.towers import ViTTower
from ..similarity import ClipSimilarity
from ..targets import Target

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

    def part(self, places: Sequence[int]) -> Queries:
        """Some of them, in the given order."""
        kept = list(places)
        return Queries(
            self.pixels[kept],
            self.rows[kept],
            tuple(self.names[i] for i in kept),
            tuple(self.texts[i] for i in kept),
            tuple(self.numbers[i] for i in kept),
        )

    def against(self, rows: Tensor) -> Queries:
        """The same images with other targets."""
        return Queries(self.pixels, rows, self.names, self.texts, self.numbers)


class Method(ABC):
    """Something that makes a map for each image and target.

    Attributes:
        name: in the table.
        what: how it is made, in a line.
        baseline: listed apart, since it says nothing about the model or the target.
        signed: what speaks against the target is below zero in its maps.
        opposed: its maps are not signed, and the map of the negated target is the negative map.
        costly: it takes many forward passes a map, so it sees the first images only.
    """

    name: str
    what: str
    costly: bool = False
    baseline: bool = False
    signed: bool = False
    opposed: bool = False

    @abstractmethod
    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        """Raw maps (N, h, w) on any grid, on the images' device; NaN where there is none."""

    def attribute(self, clip: ClipAdapter, rows: Tensor) -> Attribute | None:
        """Its `attribute` over the cosines with these rows; None where there is no such thing."""
        return None

    def identity(self) -> dict[str, Any]:
        """All that decides its maps besides the model, as JSON."""
        return {"name": self.name, "what": self.what}

    def why_not(self, sample: str, text: str) -> str:
        """Why there is no finite map."""
        return f"the map of {text!r} holds NaN or infinity"


class Attributed(Method):
    """A Captum attribution over a :class:`captum_clip.ClipSimilarity`.

    Args:
        name: in the table.
        what: how it is made.
        build: similarity -> its `attribute`, with the options bound.
        signed: see :class:`Method`.
        opposed: see :class:`Method`.
        baseline: see :class:`Method`.
        empty: explain the empty text whatever the target is.
        costly: see :class:`Method`.
    """

    def __init__(
        self,
        name: str,
        what: str,
        build: Callable[[ClipSimilarity], Attribute],
        *,
        signed: bool = False,
        opposed: bool = False,
        baseline: bool = False,
        empty: bool = False,
        costly: bool = False,
    ) -> None:
        self.name, self.what, self.costly = name, what, costly
        self.signed, self.opposed, self.baseline = signed, opposed, baseline
        self._build, self._empty = build, empty

    def attribute(self, clip: ClipAdapter, rows: Tensor) -> Attribute:
        """See :class:`Method`."""
        if self._empty:
            rows = clip.encode_text([""]).detach().expand_as(rows)
        names = tuple(str(number) for number in range(len(rows)))
        target = Target(rows.detach(), torch.ones(len(rows), device=rows.device), names)
        return self._build(ClipSimilarity(clip, target))

    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        """See :class:`Method`; channels are added up."""
        leaf = queries.pixels.detach().clone().requires_grad_()
        found = self.attribute(clip, queries.rows)(leaf, target=list(range(len(queries))))
        return found.detach().float().sum(1)


class Drawn(Method):
    """A baseline that sees neither the model nor the image.

    Args:
        name: in the table.
        what: how it is made.
        draw: grid and number of a sample -> its map (h, w).
        signed: see :class:`Method`.
    """

    baseline = True

    def __init__(
        self,
        name: str,
        what: str,
        draw: Callable[[tuple[int, int], int], Tensor],
        *,
        signed: bool = False,
    ) -> None:
        self.name, self.what, self.signed, self._draw = name, what, signed, draw

    def maps(self, clip: ClipAdapter, queries: Queries) -> Tensor:
        """See :class:`Method`."""
        grid = clip.grid(queries.pixels.shape[-2], queries.pixels.shape[-1])
        drawn = [self._draw(grid, number) for number in queries.numbers]
        return torch.stack(drawn).to(queries.pixels.device)


REFERENCES: Final = ("integrated-gradients", "noise-tunnel", "occlusion")
_DRAWN: Final = ("random", "centre")
_ATTENTION: Final = ("last-attention", "summed-attention", "last-gradient")
BASELINES: Final = (*_DRAWN, "empty-text", *_ATTENTION)
LAYER: Final = "layer"
_VARIANTS: Final = ("attention-grad-cam:weights=pooled", "last-grad:heads=averaged")
_STEPS: Final = 16  # of integrated gradients
_DRAWS: Final = 8  # of the noise tunnel
_DEVIATION: Final = 0.1  # of its noise


def methods_for(clip: ClipAdapter) -> tuple[str, ...]:
    """Names of all methods and baselines that fit a model's tower."""
    vit = clip.kind == "vit"
    variants = [name for name in _VARIANTS if MethodChoice.of(name).fits(clip.kind)]
    own = [*registry.methods_for(clip.kind), *variants]
    baselines = [name for name in BASELINES if vit or name not in _ATTENTION]
    return (*own, *REFERENCES, *baselines)


def method_of(name: str, clip: ClipAdapter, *, seed: int = 0) -> Method:
    """A method by its name.

    Args:
        name: one of :func:`methods_for`, or another choice of options as on the command line;
            "layer:index=3,of=gradient,rows=sum" is :class:`captum_clip.LayerAttention`.
        clip: the model it is for.
        seed: of the random baseline.

    Raises:
        InputError: no such method or option.
    """
    if name in REFERENCES:
        return _reference(name, clip)
    if name in _DRAWN:
        return _drawn(name, seed)
    if name == "empty-text":
        return _of_package(registry.default_method(clip.tower), name=name, empty=True)
    if name == "summed-attention":
        what = "CLS rows of the attention of all layers, heads averaged, added up"
        return Attributed(name, what, _summed, baseline=True)
    if name in _ATTENTION:
        of = name.removeprefix("last-")
        return _of_package(f"{LAYER}:index=-1,of={of}", name=name)
    return _of_package(name, name=name)


def _of_package(text: str, *, name: str, empty: bool = False) -> Attributed:
    """A class of :mod:`captum_clip.attr`."""
    choice = _choice(text)
    said = f"{choice.method.__name__} of captum_clip"
    options = ", ".join(f"{key}={value}" for key, value in choice.options.items())
    what = f"{said} with {options}" if options else said

    def build(forward: ClipSimilarity) -> Attribute:
        attribute: Attribute = choice.method(forward).attribute
        return lambda images, target=None: attribute(images, target=target, **choice.options)

    return Attributed(
        name,
        f"{what}, for the empty text" if empty else what,
        build,
        signed=choice.signed and not empty,
        opposed=choice.needs_target and not (choice.signed or empty),
        baseline=empty or name in BASELINES,
        empty=empty,
        costly=choice.costly,
    )


def _choice(text: str) -> MethodChoice:
    """As on the command line, and the layers."""
    start, _, options = text.partition(":")
    if start != LAYER:
        try:
            return MethodChoice.of(text)
        except InputError as error:
            if start in registry.registered():
                raise
            raise InputError(
                f"there is no method {text!r}; there are {', '.join(registry.registered())}, "
                f"{', '.join((*REFERENCES, *BASELINES))}, with options as in "
                "last-grad:heads=averaged."
            ) from error
    pairs = dict(part.split("=", 1) for part in options.split(",") if part.count("=") == 1)
    if options and len(pairs) != len(options.split(",")):
        raise InputError(
            f"cannot read {text!r}; a layer's options look like "
            f"{LAYER}:index=3,of=gradient,rows=sum."
        )
    index = pairs.get("index", "-1")
    if not re.fullmatch(r"-?\d{1,4}", index):
        raise InputError(f"{text!r}: expected the index of a layer, got {index!r}.")
    return MethodChoice.of(LayerAttention, {**pairs, "index": int(index)})


def _summed(forward: ClipSimilarity) -> Attribute:
    layers = LayerAttention(forward)
    tower = forward.clip.tower
    count = len(tower.layers) if isinstance(tower, ViTTower) else 0

    def attribute(images: Tensor, target: Any = None) -> Tensor:
        rows = [layers.attribute(images, index=index) for index in range(count)]
        return torch.stack([row for row in rows if isinstance(row, Tensor)]).sum(0)

    return attribute


def _reference(name: str, clip: ClipAdapter) -> Attributed:
    """One of Captum's own methods, at the size of the image."""
    if name == "integrated-gradients":

        def build(forward: ClipSimilarity) -> Attribute:
            method = IntegratedGradients(forward)
            return lambda images, target=None: method.attribute(
                images, target=target, n_steps=_STEPS, internal_batch_size=max(32, len(images))
            )

        what = f"Captum's IntegratedGradients from the mean colour, {_STEPS} steps, channels added"
        return Attributed(name, what, build, signed=True, costly=True)
    if name == "noise-tunnel":

        def build_tunnel(forward: ClipSimilarity) -> Attribute:
            method = NoiseTunnel(Saliency(forward))

            def attribute(images: Tensor, target: Any = None) -> Tensor:
                columns = torch.as_tensor(0 if target is None else target).expand(len(images))
                found = []
                with torch.random.fork_rng([images.device] if images.is_cuda else []):
                    for place, column in enumerate(columns.tolist()):
                        _seed(images)
                        one = images[place : place + 1]
                        found.append(
                            method.attribute(
                                one, nt_samples=_DRAWS, stdevs=_DEVIATION, target=column
                            )
                        )
                return torch.cat(found)

            return attribute

        what = (
            f"Captum's NoiseTunnel over Saliency (absolute gradients), {_DRAWS} draws of deviation "
            f"{_DEVIATION}, channels added"
        )
        return Attributed(name, what, build_tunnel, costly=True)

    def build_occlusion(forward: ClipSimilarity) -> Attribute:
        method = Occlusion(forward)

        def attribute(images: Tensor, target: Any = None) -> Tensor:
            height, width = images.shape[-2:]
            rows, columns = clip.grid(height, width)
            cell = (3, math.ceil(height / rows), math.ceil(width / columns))
            found: Tensor = method.attribute(
                images, sliding_window_shapes=cell, strides=cell, target=target
            )
            return found

        return attribute

    what = "Captum's Occlusion with the mean colour, one cell of the model's grid at a time"
    return Attributed(name, what, build_occlusion, signed=True, costly=True)


def _seed(images: Tensor) -> None:
    """The global generator of the images' device, which Captum draws from, and no other."""
    if images.is_cuda:
        torch.cuda.manual_seed(0)
    else:
        torch.default_generator.manual_seed(0)


def _drawn(name: str, seed: int) -> Drawn:
    if name == "random":

        def draw(grid: tuple[int, int], number: int) -> Tensor:
            generator = torch.Generator().manual_seed(1_000_003 * seed + number)
            return 2 * torch.rand(grid, generator=generator) - 1

        what = "uniform in [-1, 1] in each cell of the model's grid"
        return Drawn(name, what, draw, signed=True)
    what = "a Gaussian at the centre, of a deviation of a quarter of each side"
    return Drawn(name, what, lambda grid, number: _gaussian(grid))


def _gaussian(grid: tuple[int, int]) -> Tensor:
    axes = [((torch.arange(side) + 0.5) / side - 0.5) / 0.25 for side in grid]
    return torch.exp(-(axes[0][:, None] ** 2 + axes[1] ** 2) / 2)


def opposite(method: Method, clip: ClipAdapter, queries: Queries, raw: Tensor) -> Tensor | None:
    """The negative maps (N, h, w), not below zero; None where the method has none.

    Args:
        method: a method.
        clip: the model.
        queries: images and targets.
        raw: the method's maps of them.
    """
    if method.signed:
        return (-raw).clamp(min=0)
    if method.opposed:
        return resizing.positive(method.maps(clip, queries.against(-queries.rows)))
    return None
