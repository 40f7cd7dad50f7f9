"""Does a map predict the loss from a single deletion, and alike in all images (after IDSDS)?

``python docs/experiments/single_deletion.py demo/vit demo/resnet demo/siglip`` deletes each cell
of the model's grid (the mean color of the image in its place), and each object of a scene, which is
drawn again without it. It prints the rank correlation (Spearman) of the losses of the score with
what the map holds there: the mean over images, and that over all cells or objects at once, which
also asks whether a value means the same in two images. The in-domain single-deletion score (Hesse
et al. 2024, arXiv:2407.11910) trains the model on images with deleted patches. These models have
not seen any, so only the objects, which are absent from many scenes of the training, are in-domain.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import interpolate

from captum_clip import ClipSimilarity, load_clip, maps, metrics, targets
from captum_clip.attr.registry import MethodChoice
from captum_clip.bench.methods import method_of
from captum_clip.bench.table import Queries
from captum_clip.demo.catalog import article
from captum_clip.demo.scenes import draw_scene
from tables import markdown, short

METHODS = (
    *("direct", "conservative", "direct:depth=token", "all-grad", "last-grad", "grad-cam"),
    *("removal", "occlusion:side=3", "occlusion:fill=ring,side=3", "occlusion"),
)
OBJECTS = 3


def losses_of_cells(forward: ClipSimilarity, image: Tensor) -> Tensor:
    """What the score of one image (1, 3, H, W) loses without each of its cells (n,)."""
    grid = forward.clip.grid(*image.shape[-2:])
    cells = torch.eye(grid[0] * grid[1]).view(-1, 1, *grid)
    hidden = interpolate(cells, image.shape[-2:]) > 0
    without = torch.where(hidden, image.mean((-2, -1), keepdim=True), image)
    return (forward(image) - forward(without))[:, 0]


def signed_map(clip: Any, name: str, queries: Queries) -> Tensor:
    """The signed map (1, 1, h, w) of a method."""
    method = method_of(name, clip)
    raw = method.maps(clip, queries)
    negative = method.negative_maps(clip, queries, raw)
    return (maps.positive(raw) - (0 if negative is None else negative))[None].double()


def rank(pairs: list[tuple[Tensor, Tensor]]) -> list[str]:
    """The mean rank correlation within an image, and that over all."""
    within = torch.tensor([spearmanr(*pair).statistic for pair in pairs]).nanmean()
    over = spearmanr(*(torch.cat(values) for values in zip(*pairs, strict=True))).statistic
    return [short(float(within)), short(float(over))]


def rows_of(model: str, count: int) -> list[list[str]]:
    """The figures of each method on some scenes."""
    clip = load_clip(model)
    methods = METHODS if model == "demo/vit" else [n for n in METHODS if ":depth" not in n]
    names = [n for n in methods if "occlusion" in n or MethodChoice.of(n).fits(clip.kind)]
    cells: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    objects: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    for number in range(count):
        scene = draw_scene(number, split="test", count=OBJECTS)
        text = article(scene.objects[number % OBJECTS].noun)
        forward = ClipSimilarity(clip, targets.text(clip, [text]))
        image = clip.preprocess(scene.image)
        gone = [
            draw_scene(number, split="test", count=OBJECTS, without=[n]) for n in range(OBJECTS)
        ]
        with torch.no_grad():
            losses = losses_of_cells(forward, image)
            without = forward(clip.preprocess([each.image for each in gone]))
            effects = (forward(image) - without)[:, 0]
        masks = torch.stack([torch.from_numpy(thing.mask) for thing in scene.objects])
        queries = Queries(image, forward.target.embeddings, ("",), (text,), (number,))
        for name in names:
            heatmap = signed_map(clip, name, queries)
            grid = clip.grid(*image.shape[-2:])
            share = interpolate(heatmap, grid, mode="area").flatten()
            cells[name].append((share, losses))
            objects[name].append((metrics.object_mass(heatmap[0, 0], masks), effects))
    return [[model, f"`{name}`", *rank(cells[name]), *rank(objects[name])] for name in names]


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--scenes", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("cells, in an image", "cells, over all", "objects, in", "objects, over all")
    rows = [row for model in options.models for row in rows_of(model, options.scenes)]
    markdown(("model", "method", *columns), rows)


if __name__ == "__main__":
    main()
