"""Where the methods point on scenes of the demo: ``python -m captum_clip.demo.pointing``.

Prints a Markdown table: how often the maximum of each method's map of "a horse", ... lies on that
object, in held-out scenes with two and three objects, with intervals over scenes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from tqdm import tqdm

from .. import maps, targets
from ..attr.registry import MethodChoice
from ..attr.registry import methods_for as registered_for
from ..metrics import Interval, bootstrap_mean, energy_inside, pointing_game
from ..models import ClipAdapter, load_clip
from ..similarity import ClipSimilarity
from . import MODELS
from .captions import article
from .evaluate import draw_scenes
from .scenes import Scene

_VARIANTS: Final = ("attention-grad-cam:weights=pooled", "last-grad:heads=averaged")
_COUNTS: Final = (2, 3)
_MODELS: Final = ("demo/vit", "demo/resnet")
_NEAR: Final = 15  # pixels, the tolerance of the paper of the pointing game


class Row(NamedTuple):
    """What one method reaches.

    Attributes:
        method: its command-line name.
        pointing: share of the objects with the map's maximum inside.
        near: the same with a tolerance of 15 pixels, half a cell of the models' grid.
        energy: mean share of the map's positive mass inside the object, over the maps with any.
    """

    method: str
    pointing: Interval
    near: Interval
    energy: Interval


def methods_for(clip: ClipAdapter) -> list[str]:
    """The command-line names of all methods that fit a model's tower, options included."""
    variants = [name for name in _VARIANTS if MethodChoice.of(name).fits(clip.kind)]
    return [*registered_for(clip.kind), *variants]


def measure(clip: ClipAdapter, scenes: Sequence[Scene], method: str) -> Row:
    """Measure one method: each object of each scene against the map of its noun."""
    chosen = MethodChoice.of(method)
    hits: list[float] = []
    close: list[float] = []
    energies: list[float] = []
    owners: list[int] = []
    for number, scene in enumerate(tqdm(scenes, desc=method, leave=False, disable=None)):
        target = targets.text(clip, [article(thing.noun) for thing in scene.objects])
        attribution = chosen.method(ClipSimilarity(clip, target))
        found = attribution.attribute_targets(clip.preprocess(scene.image), **chosen.options)
        heat = maps.positive(found[0].cpu())  # (K, h, w)
        masks = torch.stack([torch.from_numpy(thing.mask) for thing in scene.objects])
        hits += pointing_game(heat, masks).tolist()
        close += pointing_game(heat, masks, tolerance=_NEAR).tolist()
        energies += energy_inside(heat, masks).tolist()
        owners += [number] * len(masks)
    some = [(e, owner) for e, owner in zip(energies, owners, strict=True) if e == e]
    energy = bootstrap_mean([e for e, _ in some], [owner for _, owner in some])
    return Row(method, bootstrap_mean(hits, owners), bootstrap_mean(close, owners), energy)


def covered(scenes: Sequence[Scene]) -> float:
    """The mean share of the image that an object covers: chance without tolerance."""
    shares = [float(thing.mask.mean()) for scene in scenes for thing in scene.objects]
    return sum(shares) / len(shares)


def table(name: str, *, number: int, device: str = "cpu") -> str:
    """One Markdown table for one model, on the test scenes of seeds 0 to ``number`` - 1."""
    clip = load_clip(name, device=device)
    scenes = draw_scenes("test", number=number, counts=_COUNTS)
    objects = sum(len(scene.objects) for scene in scenes)
    rows = [measure(clip, scenes, method) for method in methods_for(clip)]
    lines = [
        f"{name}: {number} test scenes with two or three objects, {objects} objects; 95 % "
        f"intervals over scenes; chance {covered(scenes):.2f} (without tolerance)",
        "",
        f"| method | pointing | within {_NEAR} pixels | energy inside |",
        "|---|---|---|---|",
        *(f"| {row.method} | {row.pointing} | {row.near} | {row.energy} |" for row in rows),
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print how often the maps of every method point at the object that is named."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), nargs="+", default=_MODELS)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    for name in options.model:
        print(table(name, number=options.scenes, device=options.device), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
