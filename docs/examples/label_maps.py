"""Drawn scenes as folders of label images, and the mIoU of the methods of the embedded models.

``python docs/examples/label_maps.py scenes`` writes the folders ``scenes/objects`` (20 classes; all
that is no object is ignored) and ``scenes/background`` (it is a class), measures both with
``captum-clip evaluate``'s own function, and prints the table of docs/appendix/measurements.md.

With ``--spread .7 1`` it prints what spreading each cell over its neighbors changes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from captum_clip import maps
from captum_clip.bench.evaluator import evaluate
from captum_clip.bench.run import EvaluationConfig
from captum_clip.demo import MODELS
from captum_clip.demo.catalog import THINGS, article
from captum_clip.demo.scenes import draw_scene

NOUNS = [thing.noun for thing in THINGS if thing.adjective is None][::5][:20]
KINDS = {"objects": 255, "background": len(NOUNS)}  # the number of what is no object
LEFT_OUT = ("center", "empty-text")
OWN = {
    "demo/vit": ("direct",),
    "demo/resnet": ("direct",),
    "demo/siglip": ("direct", "conservative"),
}
"""Methods whose maps are spread."""


def spread_out(positive: torch.Tensor, cells: float) -> torch.Tensor:
    """Spread each cell of maps (..., h, w) over its neighbors by a Gaussian, each map's sum kept.

    The standard deviation is in cells.
    """
    for _ in "hw" if cells else "":  # along the last dimension, then along what becomes it
        centers = torch.arange(positive.shape[-1]).to(positive)
        near = torch.exp(-(centers[:, None] - centers).square() / (2 * cells**2))
        positive = (positive @ (near / near.sum(1, keepdim=True))).mT
    return positive


def write(folder: Path, scenes: int, rest: int) -> None:
    """Held-out scenes of two or three objects, their label images, and samples.jsonl."""
    classes = [*map(article, NOUNS)]
    lines: list[dict[str, Any]] = [{"classes": classes, "background": rest == len(NOUNS)}]
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for seed in range(scenes):
        drawn = np.random.default_rng(seed).choice(NOUNS, 2 + seed % 2, replace=False).tolist()
        scene = draw_scene(seed, objects=drawn)
        labels = np.full(scene.image.shape[:2], rest, dtype=np.uint8)
        for thing in scene.objects:
            labels[thing.mask] = NOUNS.index(thing.noun)
        lines.append({"image": f"images/{seed:03}.png", "labels": f"labels/{seed:03}.png"})
        Image.fromarray(scene.image).save(folder / "images" / f"{seed:03}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{seed:03}.png")
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def measure(
    folder: Path, model: str, methods: tuple[str, ...] = (), cells: float = 0
) -> dict[str, dict[str, Any]]:
    """Method -> metric -> its row of the summary; of maps that are spread over cells."""
    output = f"{folder}-{model.partition('/')[2]}" + f"-{cells:g}" * bool(methods)
    data, positive = (f"samples:{folder}/samples.jsonl",), maps.positive
    config = EvaluationConfig(model, output, data, methods, images=10_000, threads=1)
    found: dict[str, dict[str, Any]] = {}
    with patch.object(maps, "positive", lambda raw: spread_out(positive(raw), cells)):
        for row in evaluate(config).summary.figures.itertuples():
            found.setdefault(str(row.method), {})[str(row.metric)] = row
    return found


def print_spread(folder: Path, spreads: list[float]) -> None:
    """Print a row for each model, method and spread."""
    columns = [("objects", "miou"), ("background", "miou"), ("background", "miou_half")]
    heads = "mIoU | mIoU with background (mean) | mIoU with background (half)"
    print(f"| tower | method | spread, cells | {heads} |", "|---|---|---|---|---|---|", sep="\n")
    for model, methods in OWN.items():
        for cells in (0, *spreads):
            found = {name: measure(folder / name, model, methods, cells) for name in KINDS}
            for method in methods:
                rows = [found[name][method][metric] for name, metric in columns]
                cited = [f"{row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in rows]
                print(f"| {model} | {method} | {cells:g} | {' | '.join(cited)} |", flush=True)


def main() -> None:
    """Write, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--spread", type=float, nargs="+", help="standard deviations in cells")
    options = parser.parse_args()
    for name, rest in KINDS.items():
        write(options.folder / name, options.scenes, rest)
    if options.spread:
        print_spread(options.folder, options.spread)
        return
    columns = [("objects", "miou"), ("objects", "aacc")]
    columns += [("background", name) for name in ("miou", "miou_half", "aacc")]
    of_all = [f"mIoU with background ({threshold})" for threshold in ("mean", "half")]
    heads = ["mIoU", "aAcc", *of_all, "aAcc with background"]
    print(f"| tower | method | {' | '.join(heads)} |", f"|{'---|' * (2 + len(heads))}", sep="\n")
    for model in MODELS:
        found = {name: measure(options.folder / name, model) for name in KINDS}
        for method in found["objects"]:
            if method not in LEFT_OUT:
                rows = [found[name][method][metric] for name, metric in columns]
                cells = [f"{row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in rows]
                print(f"| {model} | {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
