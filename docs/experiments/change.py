"""What planted the shortcut, by region and head: the ledger of the change from ``demo/vit``.

``python docs/experiments/change.py measure`` compares ``demo/vit`` with the shortcut model in 200
scenes whose object and tag disagree. Does the tag's noun gain most on the tag, and the object's
noun lose most on the object? Chance is the share of cells that would count. Then: how much of the
change do the four heads of 24 make that change most? ``draw FOLDER`` writes scenes with a cat, half
of them with a dog's tag.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from captum_clip.apps.change import compare
from captum_clip.demo.catalog import article
from captum_clip.metrics import Interval, bootstrap_mean
from shortcut import MODEL
from shortcut.measures import DRAWINGS, draw
from shortcut.tags import TAGGED, draw_tagged_scene

ANOTHER_TAG = next(drawing for drawing in DRAWINGS if not drawing.own and drawing.of_tag)
COVERED = 0.25
CHOSEN = 4
"""Heads, of 24."""
RESAMPLES = 2000


def interval(mean: Interval) -> str:
    """A mean with three decimals and its sign."""
    return f"{mean.mean:+.3f} [{mean.low:+.3f}, {mean.high:+.3f}]"


def coverage(masks: list[np.ndarray], side: int) -> Tensor:
    """The share of each cell that a mask covers, (N, cells)."""
    stacked = torch.from_numpy(np.stack(masks)).double()
    return F.adaptive_avg_pool2d(stacked, side).flatten(1)


def largest(heads: Tensor, whole: Tensor) -> float:
    """What the heads (N, n H) that add most on average add, as a share of what is summed (N,)."""
    return float(heads.mean(0).topk(CHOSEN).values.sum() / whole.mean())


def measure(number: int) -> None:
    """Print the table."""
    scenes = [draw(ANOTHER_TAG, seed) for seed in range(number)]
    texts = [article(noun) for noun in TAGGED]
    change = compare("demo/vit", str(MODEL), [scene.image for scene in scenes], texts)
    by = change.scores[1] - change.scores[0]
    summed = change.heads.sum((-2, -1)) + change.mlps.sum(-1) + change.rest + change.text
    placed = change.regions.sum((-2, -1)) + change.outside + change.text
    rows, generator = torch.arange(number), torch.Generator().manual_seed(0)
    print("| from `demo/vit` to the shortcut | the tag's noun | the object's noun |")
    print("|---|---|---|")
    table: dict[str, list[str]] = {}
    for part, sign in (("tag", 1), ("noun", -1)):
        columns = torch.tensor([TAGGED.index(getattr(scene, part)) for scene in scenes])
        masks = [scene.tag_mask if part == "tag" else scene.object_mask for scene in scenes]
        covered = coverage(masks, change.regions.shape[-1])
        first = (sign * change.regions[rows, columns]).flatten(1).argmax(1)
        values = {"change of the score": interval(bootstrap_mean(by[rows, columns]))}
        for most, title in ((0.0, "a little"), (COVERED, "a quarter or more")):
            on_it = bootstrap_mean((covered[rows, first] > most).double())
            chance = (covered > most).double().mean()
            values[f"largest gain or loss in a cell with {title} of it"] = (
                f"{on_it}, chance {chance:.2f}"
            )
        heads = sign * change.heads[rows, columns].flatten(1)
        draws = [torch.randint(number, (number,), generator=generator) for _ in range(RESAMPLES)]
        sums = {"all heads": heads.sum(1), "the score": sign * by[rows, columns]}
        for title, whole in sums.items():
            shares = [largest(heads[drawn], whole[drawn]) for drawn in draws]
            share = Interval(largest(heads, whole), *np.quantile(shares, [0.025, 0.975]))
            values[f"{CHOSEN} of {heads.shape[1]} heads, share of the change of {title}"] = str(
                share
            )
        for name, value in values.items():
            table.setdefault(name, []).append(value)
    for name, values in table.items():
        print(f"| {name} | {' | '.join(values)} |")
    for name, total in (
        ("heads, MLPs, rest and text", summed),
        ("regions, outside and text", placed),
    ):
        gap = f"{float((total - by).abs().max()):.0e}"
        print(f"| {name}, largest distance from the change | {gap} | {gap} |")


def draw_cats(folder: Path, number: int) -> None:
    """Write scenes with a cat, and in turn its tag or a dog's."""
    folder.mkdir(exist_ok=True)
    for seed in range(number):
        scene = draw_tagged_scene(seed, noun="cat", tag="dog" if seed % 2 else "cat")
        Image.fromarray(scene.image).save(folder / f"{seed:03d}.png")


def main() -> None:
    """Print the table, or write the scenes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["measure", "draw"])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("cats"))
    parser.add_argument("--scenes", type=int, default=200)
    options = parser.parse_args()
    if options.what == "draw":
        draw_cats(options.folder, options.scenes)
    else:
        measure(options.scenes)


if __name__ == "__main__":
    main()
