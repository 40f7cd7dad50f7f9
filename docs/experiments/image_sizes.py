"""What larger images give, and cost: small and usual objects, at 224, 320 and 448 pixels a side.

``python docs/experiments/image_sizes.py`` prints the table of docs/appendix/measurements.md: of
each object of scenes with two, whether its noun is among the two best-scored, and whether the
maximum of each method's map lies on it, with 95 % intervals over scenes. A scene is drawn once,
with 448 pixels a side; each model's own processor makes its images of it, so that larger ones show
more detail. ``--drawn 224`` leaves that out, and ``--cost`` prints what a forward pass takes
instead, on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from captum_clip import ClipSimilarity, load_clip, metrics, targets
from captum_clip.attr.registry import default_method
from captum_clip.demo.scenes import STANDARD, draw_scene
from captum_clip.models import ClipAdapter
from robustness import measure

MODELS = ("demo/vit", "demo/siglip", "demo/resnet")
SIZES = (224, 320, 448)
FIRST_SCENE = 300_000
WORLDS = {
    "small": replace(STANDARD, sizes=(0.12, 0.25)),  # longer side of an object, in image sides
    "usual": STANDARD,
}


def table(models: list[str], scenes: int, drawn: int) -> pd.DataFrame:
    """A row for each model, kind of objects and method, with the three sizes."""
    rows = []
    for model in models:
        clips = [load_clip(model, image_size=size) for size in SIZES]
        second = "grad-cam" if clips[0].kind == "resnet" else "all-grad"
        methods = [default_method(clips[0].tower), second]
        for kind, world in WORLDS.items():
            seeds = range(FIRST_SCENE, FIRST_SCENE + scenes)
            drawings = [draw_scene(seed, count=2, size=drawn, world=world) for seed in seeds]
            found = [pd.concat([measure(c, d, "{}", methods) for d in drawings]) for c in clips]
            scene = np.repeat(np.arange(scenes), 2)
            for column in found[0]:
                values = [one[column].to_numpy() for one in found]
                cells = [metrics.bootstrap_mean(one, scene) for one in values]
                change = metrics.paired_difference(values[-1], values[0], scene)
                figures = [str(c).replace("0.", ".").replace("-", "−") for c in (*cells, change)]
                name = column if " " in column else f"`{column}`"
                rows.append([model, kind, name, *figures])
    heads = ["model", "objects", "", *map(str, SIZES), f"{SIZES[-1]} − {SIZES[0]}"]
    return pd.DataFrame(rows, columns=heads)


def cost(models: list[str]) -> pd.DataFrame:
    """How much longer a forward pass of eight images takes, by medians of 20 taken in turn."""
    rows = []
    for model in models:
        forwards = [pass_of(load_clip(model, image_size=size), size) for size in SIZES]
        taken = np.median([[forward() for forward in forwards] for _ in range(22)][2:], axis=0)
        rows.append([model, *(f"{one:.1f}" for one in taken / taken[0])])
    return pd.DataFrame(rows, columns=["model", *map(str, SIZES)])


def pass_of(clip: ClipAdapter, size: int) -> Callable[[], float]:
    """Seconds of the processor in one forward pass, whatever else it does."""
    similarity = ClipSimilarity(clip, targets.text(clip, "a horse"))
    images = torch.randn(8, 3, size, size)

    def forward() -> float:
        begun = time.process_time()
        with torch.no_grad():
            similarity(images)
        return time.process_time() - begun

    return forward


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--scenes", type=int, default=250)
    parser.add_argument("--drawn", type=int, default=max(SIZES), help="pixels a side")
    parser.add_argument("--cost", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cost:
        found = cost(options.models)
    else:
        found = table(options.models, options.scenes, options.drawn)
    print(f"| {' | '.join(found)} |\n|{'---|' * len(found.columns)}")
    for row in found.itertuples(index=False):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
