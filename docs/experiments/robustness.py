"""How models and methods bear other scenes: by background, objects, size, cover and wording.

``python docs/experiments/robustness.py demo/vit demo/resnet demo/siglip`` prints the tables of
docs/appendix/measurements.md. For each object of broad scenes they say whether its noun is among
the n best-scored of a scene with n objects, and whether the maximum of each method's map lies on
it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from captum_clip import ClipSimilarity, load_clip, metrics, targets
from captum_clip.attr.registry import MethodChoice, methods_for
from captum_clip.demo.catalog import NOUNS, article
from captum_clip.demo.scenes import Scene, draw_scene
from captum_clip.models import ClipAdapter
from training.broad_scenes import BROAD

WORDINGS = ("{}", "a photo of {}", "there is {} in this picture", "this is a drawing of {}")
SIZES = (0.0, 0.25, 0.5, 1.0)  # of the longer side of what is to be seen, in sides of the image
COVERED = (0.0, 0.01, 0.25, 1.0)  # share that others cover


def properties(scene: Scene, seed: int, **options: Any) -> Iterator[dict[str, Any]]:
    """What is compared, of each object of a scene."""
    count = len(scene.objects)
    for position, thing in enumerate(scene.objects):
        others = [other for other in range(count) if other != position]
        alone = draw_scene(seed, count=count, without=others, **options).objects[0].mask
        rows, columns = np.nonzero(alone)
        side = max(np.ptp(rows), np.ptp(columns)) + 1
        yield {
            "noun": thing.noun,
            "background": scene.background,
            "objects": count,
            "size": float(side / len(alone)),
            "covered": float(1 - thing.mask.sum() / alone.sum()),
        }


def measure(clip: ClipAdapter, scene: Scene, wording: str, methods: list[str]) -> pd.DataFrame:
    """Noun found, and maximum inside of each method's map, (objects, 1 + methods) of 0 and 1."""
    texts = [wording.format(article(noun)) for noun in NOUNS]
    forward = ClipSimilarity(clip, targets.text(clip, texts))
    pixels = clip.preprocess(scene.image)
    shown = [NOUNS.index(thing.noun) for thing in scene.objects]
    with torch.no_grad():
        best = forward(pixels)[0].topk(len(shown)).indices.tolist()
    columns = {"noun found": [float(noun in best) for noun in shown]}
    masks = torch.from_numpy(np.stack([thing.mask for thing in scene.objects]))
    for name in methods:
        choice = MethodChoice.of(name)
        attribution = choice.method(forward)
        maps = attribution.attribute_targets(pixels, targets=shown, **choice.options)[0]
        columns[name] = metrics.pointing_game(maps.clamp(min=0).cpu(), masks).tolist()
    return pd.DataFrame(columns)


def table(model: str, number: int, methods: list[str] | None, worded: int) -> pd.DataFrame:
    """Measure the shares of one model, a row for each group of objects, n of them.

    The first `worded` scenes are measured with every wording, the others with the plain one.
    """
    clip = load_clip(model)
    names = methods or [*methods_for(clip.tower.kind)]
    backgrounds = list(dict.fromkeys((*BROAD.backgrounds, *BROAD.held_out)))
    parts = []
    for seed in tqdm(range(number), desc=model, disable=None):
        turn, kind = divmod(seed, len(backgrounds))
        count = 1 + turn % BROAD.objects  # every number of objects on every background
        options: dict[str, Any] = {"world": BROAD, "background": backgrounds[kind]}
        scene = draw_scene(seed, count=count, **options)
        about = pd.DataFrame(properties(scene, seed, **options))
        for wording in WORDINGS if seed < worded else WORDINGS[:1]:
            measured = measure(clip, scene, wording, names)
            parts.append(pd.concat([about, measured], axis=1).assign(wording=wording, seed=seed))
    rows = pd.concat(parts, ignore_index=True)
    for column, ends in (("size", SIZES), ("covered", COVERED)):
        labels = [f"up to {end:g}" for end in ends[1:]]
        rows[column] = pd.cut(rows[column], ends, labels=labels, include_lowest=True)
    plain = rows[rows["wording"] == WORDINGS[0]]
    groups = {"all": plain}
    for column in ("background", "objects", "size", "covered", "wording"):
        of = rows[rows["seed"] < worded] if column == "wording" else plain
        by_value = of.groupby(column, observed=True)
        groups |= {f"{column}: {value}": group for value, group in by_value}
    shares = {name: group[["noun found", *names]].mean() for name, group in groups.items()}
    sizes = {name: len(group) for name, group in groups.items()}
    return pd.DataFrame(shares).T.assign(n=sizes)


def main() -> None:
    """Print a table a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--scenes", type=int, default=600)
    parser.add_argument("--method", nargs="+", help="default: all of the tower")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worded", type=int, default=150, help="scenes with every wording")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for model in options.models:
        shares = table(model, options.scenes, options.method, options.worded)
        print(f"| {' | '.join([model, *shares.columns])} |\n|{'---|' * (1 + len(shares.columns))}")
        for row in shares.itertuples():
            cells = [row[0], *(f"{share:.2f}" for share in row[1:-1]), str(row[-1])]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
