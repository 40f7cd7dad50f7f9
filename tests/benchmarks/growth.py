"""How the price grows: with targets, with the batch, with the input's size, with the depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from .jobs import PLAIN, growth_jobs
from .timing import medians, seconds
from .towers import Tower, built, open_clip_tower, transformers_vit

FEW = 8  # AllGradAttention repeats its backward for each target, so it is left at this many

VIT, RESNET = "ViT-B/32", "RN101"


@dataclass(frozen=True)
class Setting:
    """What one point of a sweep runs on."""

    architecture: str = VIT
    layers: int = 12
    size: int | None = None  # height and width, native where it does not say
    batch: int = 8
    targets: int = 1


@dataclass(frozen=True)
class Sweep:
    """One thing that grows, all else the same.

    Attributes:
        name: what grows.
        label: the same as an axis says it.
        values: what it takes.
        settings: one for each tower, from a value and the batch of the other sweeps.
    """

    name: str
    label: str
    values: tuple[int, ...]
    settings: Callable[[int, int], tuple[Setting, ...]]


@dataclass(frozen=True)
class Point:
    """One method at one value of one sweep."""

    sweep: str
    value: int
    tower: str
    method: str
    batch: int
    seconds: float
    forwards: float


def _targets(value: int, batch: int) -> tuple[Setting, ...]:
    return tuple(Setting(tower, batch=batch, targets=value) for tower in (VIT, RESNET))


def _batch(value: int, batch: int) -> tuple[Setting, ...]:
    return tuple(Setting(tower, batch=value) for tower in (VIT, RESNET))


def _input(value: int, batch: int) -> tuple[Setting, ...]:
    return tuple(Setting(tower, batch=batch, size=value) for tower in (VIT, RESNET))


SWEEPS = (
    Sweep("targets", "targets", (1, 2, 4, 8, 16, 32, 64), _targets),
    Sweep("batch", "images in a batch", (1, 2, 4, 8, 16, 32), _batch),
    Sweep("input", "height and width of the input", (224, 256, 320, 384, 448), _input),
    Sweep(
        "depth",
        "layers of the tower",
        (12, 16, 20, 24),
        lambda value, batch: (Setting(layers=value, batch=batch),),
    ),
    Sweep(  # a table only: four times the tokens, so a map of attention weighs more
        "input-16",
        "height and width of the input, ViT-B/16",
        (224, 256, 320, 384, 448),
        lambda value, batch: (Setting("ViT-B/16", batch=batch, size=value),),
    ),
)


def tower_of(setting: Setting) -> Tower:
    """The tower of a setting."""
    if setting.architecture == RESNET:
        return open_clip_tower("RN101-quickgelu", RESNET, size=setting.size or 224)
    patch = int(setting.architecture.rpartition("/")[2])
    return transformers_vit(setting.architecture, patch=patch, layers=setting.layers)


def grown(
    sweep: Sweep,
    *,
    batch: int,
    repeats: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    make: Callable[[Setting], Tower] = tower_of,
) -> Iterator[Point]:
    """The points of a sweep, as they are measured."""

    @lru_cache(maxsize=2)  # one for each library
    def tower(setting: Setting) -> Tower:
        return built(lambda: make(setting), seed, device, dtype)

    for value in sweep.values:
        for setting in sweep.settings(value, batch):
            # a ResNet is built for its input, a ViT of transformers takes any
            size = setting.size if setting.architecture == RESNET else None
            subject = tower(Setting(setting.architecture, layers=setting.layers, size=size))
            images = subject.images(setting.batch, seed, setting.size)
            jobs = growth_jobs(subject, images, setting.targets, seed)
            if setting.targets > FEW:
                jobs.pop("AllGradAttention", None)
            found = medians(jobs, repeats, lambda run: seconds(run, device))
            for method, time in found.items():
                yield Point(
                    sweep=sweep.name,
                    value=value,
                    tower=subject.name,
                    method=method,
                    batch=setting.batch,
                    seconds=time,
                    forwards=time / found[PLAIN],
                )


def markdown(sweep: Sweep, points: list[Point]) -> str:
    """A table of a sweep in forwards: a line for each method, a column for each value."""
    heads = [f"{sweep.label}", *map(str, sweep.values)]
    lines = [heads, ["---"] * len(heads)]
    for name in dict.fromkeys(point.method for point in points if point.method != PLAIN):
        found = {point.value: point.forwards for point in points if point.method == name}
        cells = [f"{found[value]:.2f}" if value in found else "" for value in sweep.values]
        lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
