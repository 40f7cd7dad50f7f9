"""The losses of `removal` next to scenes drawn anew, its signs, and its price.

``python docs/experiments/removals.py losses demo/vit`` compares `losses_of` with scenes that are
drawn without an object. ``signs demo/vit`` counts how often both peaks of a panel are right, and
``price demo/vit`` measures the CPU time in forward passes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch

from captum_clip import ClipSimilarity, ReaderRemoval, explain, load_clip, metrics, targets
from captum_clip.bench.data import DATA_SETS
from captum_clip.bench.tasks.effects import removals
from captum_clip.demo.catalog import article
from captum_clip.demo.scenes import draw_scene

METHODS = {
    "removal": {},
    "removal:readers=8,stride=2,share=direct": {"readers": 8, "stride": 2, "share": "direct"},
    "removal:readers=8,stride=2": {"readers": 8, "stride": 2},
}


def price(clip: Any) -> None:
    """Print the CPU time of each method in forward passes on the same images, on one thread."""
    print("| method | batch 1 | batch 16 |", "|---|---|---|", sep="\n")
    forward = ClipSimilarity(clip, targets.text(clip, ["a horse"]))
    explainers = {name: ReaderRemoval(forward) for name in METHODS}
    ratios: dict[str, list[str]] = {name: [] for name in METHODS}
    for batch, repeats in ((1, 30), (16, 5)):
        pixels = clip.preprocess([draw_scene(number).image for number in range(batch)])
        runs: dict[str, Callable[[], Any]] = {"": partial(forward, pixels)}
        for name, options in METHODS.items():
            runs[name] = partial(explainers[name].attribute_targets, pixels, **options)
        with torch.no_grad():
            times = {
                name: [thread_time(run) for _ in range(repeats + 1)] for name, run in runs.items()
            }
        medians = {name: float(np.median(each[1:])) for name, each in times.items()}
        for name in METHODS:
            ratios[name].append(f"{medians[name] / medians['']:.1f}")
    for name, cells in ratios.items():
        print(f"| `{name}` | {' | '.join(cells)} |")


def thread_time(run: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


PANELS: dict[str, dict[str, Any]] = {
    "--sign both": {},
    "--sign both --method removal": {"method": "removal"},
    "--against B": {"against": True},
    "--against B --method removal": {"against": True, "method": "removal"},
}


def signs(clip: Any, seed: int, count: int) -> None:
    """Print how often both peaks of a panel of the text A are right, in scenes of A and B alone."""
    right = {name: np.zeros((count, 2)) for name in PANELS}
    for number in range(count):
        scene = draw_scene(seed * 100_000 + number, count=2)
        first, second = (article(thing.noun) for thing in scene.objects)
        masks = torch.from_numpy(np.stack([thing.mask for thing in scene.objects]))
        for name, options in PANELS.items():
            given = options | ({"against": second} if "against" in options else {})
            shown = explain(scene.image, first, model=clip, sign="both", hints=False, **given)
            for place, maps in enumerate(shown.heatmap("bicubic").values()):
                peak = maps.any() & masks[place].flatten()[maps.argmax()]
                right[name][number, place] = float(peak)
    print(
        "| panel of A | orange peak on A | blue peak on B | both |", "|---|---|---|---|", sep="\n"
    )
    for name, hits in right.items():
        cells = [round(each.sum()) for each in (*hits.T, hits.all(1))]
        print(f"| `{name}` | {' | '.join(f'{cell} of {count}' for cell in cells)} |")


def losses(clip: Any, seed: int, count: int) -> None:
    """Print what an object's own text loses by `losses_of`, next to the scene drawn without it."""
    rows = []
    for number in range(count):
        sample = DATA_SETS["demo"](count, seed).read(number)
        texts = [region.text for region in sample.regions]
        masks = torch.from_numpy(np.stack([region.mask for region in sample.regions]))
        pixels = clip.preprocess(list(sample.subsets))
        forward = ClipSimilarity(clip, targets.text(clip, texts))
        with torch.no_grad():
            exact = removals(forward(pixels).T.double())  # (texts, objects)
        for readers in (0, 8):
            found = ReaderRemoval(forward).losses_of(pixels[-1:], masks, readers=readers)[0]
            for text, thing in product(range(len(texts)), repeat=2):
                pair = float(found[text, thing]), float(exact[text, thing])
                rows.append((readers, text == thing, number, *pair))
    table = pd.DataFrame(rows, columns=["readers", "own", "scene", "found", "drawn"])
    print("| readers | text | pairs | `losses_of` | drawn anew | Pearson | slope | balanced |")
    print("|---" * 8 + "|")
    for (readers, own), part in table.groupby(["readers", "own"]):
        print(
            f"| {readers} | {'its own' if own else 'another'} | {len(part)} | {statement(part)} |"
        )


def statement(part: pd.DataFrame) -> str:
    """Both means, Pearson's correlation, the slope through 0, and right signs, as cells."""
    groups = [each[["found", "drawn"]].to_numpy() for _, each in part.groupby("scene")]
    random = np.random.default_rng(0)

    def values(pairs: Any) -> tuple[float, float]:
        found, drawn = pairs.T
        return np.corrcoef(found, drawn)[0, 1], (found @ drawn) / (found @ found)

    pairs = np.concatenate(groups)
    draws = random.integers(len(groups), size=(2000, len(groups)))
    drawn = [values(np.concatenate([groups[i] for i in draw])) for draw in draws]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    cells = [f"{mean:.3f}" for mean in pairs.mean(0)]
    for value, least, most in zip(values(pairs), low, high, strict=True):
        cells.append(f"{value:.2f} [{least:.2f}, {most:.2f}]")
    agree = metrics.effect_agreement(*(torch.from_numpy(each) for each in pairs.T))
    balanced = agree.balanced_accuracy
    return " | ".join([*cells, "–" if np.isnan(balanced) else f"{balanced:.2f}"])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, scenes in (("losses", 200), ("signs", 100), ("price", 0)):
        command = commands.add_parser(name)
        command.add_argument("model")
        if name == "price":
            continue
        command.add_argument("--seed", type=int, default=541)
        command.add_argument("--scenes", type=int, default=scenes)
    options = parser.parse_args()
    torch.set_num_threads(1)
    clip = load_clip(options.model)
    if options.command == "price":
        price(clip)
    else:
        {"losses": losses, "signs": signs}[options.command](clip, options.seed, options.scenes)


if __name__ == "__main__":
    main()
