"""Three copies of one noun: a figure of their truth and of maps, and the limits of the benchmark.

``python docs/experiments/copies.py figure copies.png`` draws scenes of ``demo-thirds``, what each
copy adds to the score, and maps with the share of each copy in their mass. ``python
docs/experiments/copies.py limits demo/vit`` prints how often the maximum of a map lies on the copy
that adds most, and what is left of the ranks where the model sees the scene two pixels further.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from captum_clip import ClipSimilarity, load_clip, maps, metrics, targets
from captum_clip.bench.data import DATA_SETS
from captum_clip.bench.methods import method_of
from captum_clip.bench.table import Queries
from captum_clip.visualization.colors import ALPHA, HEAT, blend

METHODS = ("removal", "all-grad", "direct:depth=token", "direct", "magnitude")
SHIFT = 2
"""Pixels by which a scene is moved, down and to the right."""


class Scene:
    """A scene with what each copy adds, and what each map puts into it."""

    def __init__(self, clip: Any, data: Any, number: int) -> None:
        sample = data.read(number)
        self.clip, self.number, self.text = clip, number, sample.regions[0].text
        self.target = targets.text(clip, [self.text])
        self.image = np.asarray(sample.image)
        self.masks = torch.from_numpy(np.stack([region.mask for region in sample.regions]))
        with torch.no_grad():
            scores = ClipSimilarity(clip, self.target)(clip.preprocess(list(sample.subsets)))
        self.adds = metrics.shapley_effects(scores.T.double())[0].numpy()

    def map_of(self, name: str, shift: int = 0) -> Any:
        """The signed map (h, w) of a method, of the scene moved by some pixels."""
        moved = np.roll(self.image, (shift, shift), (0, 1))
        pixels = self.clip.preprocess(moved)
        queries = Queries(pixels, self.target.embeddings, ("",), (self.text,), (self.number,))
        method = method_of(name, self.clip)
        raw = method.maps(self.clip, queries)
        negative = method.negative_maps(self.clip, queries, raw)
        return (maps.positive(raw) - (0 if negative is None else negative))[0].double()

    def mass_of(self, heatmap: Any, shift: int = 0) -> Any:
        """The mass (3,) of a map in each copy, of the scene moved as the map was."""
        moved = torch.roll(self.masks, (shift, shift), (1, 2))
        return metrics.object_mass(heatmap, moved).numpy()

    def centers(self) -> list[tuple[float, float]]:
        """Each copy's x and y in pixels."""
        places = [mask.nonzero().double().mean(0).tolist() for mask in self.masks]
        return [(x, y) for y, x in places]


def draw(scenes: list[Scene], methods: list[str]) -> Figure:
    """A row a scene: its copies with what they add, and each map with the shares of its mass."""
    size = len(scenes), 1 + len(methods)
    figure = Figure(figsize=(2.1 * size[1], 2.25 * size[0]), layout="constrained")
    grid = figure.subplots(*size, squeeze=False)
    for row, scene in zip(grid, scenes, strict=True):
        strongest = int(scene.adds.argmax())
        for axes, name in zip(row, ("", *methods), strict=True):
            picture, values = scene.image / 255, scene.adds
            if name:
                heatmap = scene.map_of(name)
                large = maps.normalize(maps.upsample(heatmap.clamp(min=0)[None], picture.shape[:2]))
                picture = blend(picture, large[0].numpy(), colormaps[HEAT], ALPHA)
                values = scene.mass_of(heatmap)
                values = values / np.abs(values).sum()
            axes.imshow(picture)
            axes.set_axis_off()
            for place, (x, y) in enumerate(scene.centers()):
                look = {"ha": "center", "va": "center", "fontsize": 9, "color": "white"}
                box = {"facecolor": "black", "alpha": 0.7, "pad": 1.5, "edgecolor": "none"}
                weight = "bold" if place == strongest else "normal"
                digits = f"{values[place]:.2f}" if name else f"{values[place]:.3f}"
                axes.text(x, y, digits, bbox=box, weight=weight, **look)
            if scene is scenes[0]:
                axes.set_title(name or "what each copy adds", fontsize=9)
    return figure


def limits(clip: Any, data: Any, methods: list[str]) -> None:
    """Print a row a method: maximum on the strongest copy, rank, and rank of the moved scene."""
    scenes = [Scene(clip, data, number) for number in range(len(data))]
    print("| method | maximum on the strongest | rank | moved by two pixels |", "|---|---|---|---|")
    for name in methods:
        columns: list[list[float]] = [[], [], []]
        for scene in scenes:
            heatmap = scene.map_of(name)
            strongest = scene.masks[int(scene.adds.argmax())]
            columns[0].append(float(metrics.pointing_game(heatmap, strongest)))
            for shift, column in zip((0, SHIFT), columns[1:], strict=True):
                mass = scene.mass_of(scene.map_of(name, shift), shift)
                column.append(float(spearmanr(mass, scene.adds).statistic))
        print(f"| `{name}` | {' | '.join(f'{np.nanmean(c):.2f}' for c in columns)} |", flush=True)


def losses(clip: Any, data: Any) -> None:
    """Print what is lost without a copy: its share of the score, and how often it is negative."""
    scenes, gone = [data.read(number) for number in range(len(data))], ~(1 << torch.arange(3))
    rows = []
    for sample in scenes:
        images = [sample.subsets[7 & int(index)] for index in (-1, *gone)]
        text = targets.text(clip, [sample.regions[0].text])
        with torch.no_grad():
            rows.append(ClipSimilarity(clip, text)(clip.preprocess(images))[:, 0].double())
    scores = torch.stack(rows)  # (scenes, 1 + copies)
    lost = scores[:, :1] - scores[:, 1:]
    share, negative = lost.mean() / scores[:, 0].mean(), (lost < 0).double().mean()
    print(f"{clip.kind}: mean loss {share:.3f} of the mean score,", end=" ")
    print(f"{negative:.3f} of the losses are negative")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    figure = commands.add_parser("figure")
    figure.add_argument("file", type=Path)
    figure.add_argument("--model", default="demo/vit")
    figure.add_argument("--scene", type=int, nargs="+", default=[0, 1, 2])
    about = commands.add_parser("limits")
    about.add_argument("model")
    lost = commands.add_parser("losses")
    lost.add_argument("model")
    for command in (about, lost):
        command.add_argument("--scenes", type=int, default=300)
    for command in (figure, about, lost):
        command.add_argument("--method", nargs="+", default=METHODS)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--data", default="demo-thirds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clip, kind = load_clip(options.model), DATA_SETS[options.data]
    if options.command == "limits":
        limits(clip, kind(options.scenes, options.seed), options.method)
        return
    if options.command == "losses":
        losses(clip, kind(options.scenes, options.seed))
        return
    data = kind(max(options.scene) + 1, options.seed)
    scenes = [Scene(clip, data, number) for number in options.scene]
    draw(scenes, list(options.method)).savefig(options.file, dpi=130)


if __name__ == "__main__":
    main()
