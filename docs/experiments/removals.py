"""`removal` next to windows that are painted over, its losses next to scenes drawn anew, its signs.

``python docs/experiments/removals.py copies demo/vit ranks.csv`` ranks three copies of one noun by
maps of `removal` and by occlusion of 49 windows of 3 x 3 cells, each filled with the mean of a ring
of eight pixels around it, and prints paired differences from the latter; it goes on where it was
stopped. ``losses demo/vit`` compares `losses_of` with scenes that are drawn without an object.
``signs demo/vit`` counts how often both peaks of a panel are right, and ``price demo/vit`` measures
the CPU time in forward passes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from captum_clip import ClipSimilarity, ReaderRemoval, explain, load_clip, metrics, targets
from captum_clip.bench.data import DATA_SETS
from captum_clip.bench.tasks.effects import removals
from captum_clip.demo.catalog import article
from captum_clip.demo.scenes import draw_scene
from captum_clip.metrics.map_statistics import spearman

METHODS = {
    "removal": {},
    "removal:readers=8,stride=2,share=direct": {"readers": 8, "stride": 2, "share": "direct"},
    "removal:readers=8,stride=2": {"readers": 8, "stride": 2},
}
RIVAL = "49 rings"
RING = 8
"""Pixels."""
BATCH, RINGS = 10, 7


def windows(side: int, stride: int = 1) -> Tensor:
    """Windows (W, side, side) of 3 x 3 cells, bool."""
    centers = torch.arange(stride // 2, side, stride)
    near = (torch.arange(side) - centers[:, None]).abs() <= 1
    return torch.kron(near, near).view(-1, side, side)


def ring_filled(pixels: Tensor, side: int, window: Tensor) -> Tensor:
    """Images (B, 3, H, W) with a window (side, side) painted with the mean of a ring round it."""
    cell = pixels.shape[-1] // side
    box = [slice(int(at.min()) * cell, int(at.max() + 1) * cell) for at in window.nonzero().T]
    wide = [slice(max(0, span.start - RING), span.stop + RING) for span in box]
    totals = [pixels[:, :, rows, columns].flatten(2) for rows, columns in (wide, box)]
    mean = (totals[0].sum(-1) - totals[1].sum(-1)) / (totals[0].shape[-1] - totals[1].shape[-1])
    painted = pixels.clone()
    painted[:, :, box[0], box[1]] = mean[:, :, None, None]
    return painted


def rings(score: Callable[[Tensor], Tensor], pixels: Tensor, side: int) -> dict[str, Tensor]:
    """Occlusion by 49 and by nine windows: the mean loss (B, side, side) of those with a cell."""
    each, whole = windows(side), score(pixels)
    scores = list[Tensor]()
    for some in each.split(RINGS):  # a large batch is faster
        painted = torch.cat([ring_filled(pixels, side, window) for window in some])
        scores.append(score(painted).view(len(some), -1).T)
    losses = whole[:, None] - torch.cat(scores, 1)
    maps = {}
    for stride, name in ((1, RIVAL), (2, "9 rings")):
        cells = windows(side, stride).flatten(1).to(losses)
        kept = (each[:, None] == windows(side, stride)).flatten(2).all(-1).any(1)
        maps[name] = (losses[:, kept] @ (cells / cells.sum(0))).unflatten(1, (side, side))
    return maps


def paired_scores(clip: Any, texts: list[str]) -> Callable[[Tensor], Tensor]:
    """The cosine (B,) of each image with its own text."""
    embeddings = targets.text(clip, texts).embeddings

    def score(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            unit = F.normalize(clip.image_features(pixels), dim=-1)
            return (unit.view(-1, *embeddings.shape) * embeddings).sum(-1).flatten()

    return score


def maps_of(clip: Any, pixels: Tensor, texts: list[str]) -> Iterator[tuple[str, Tensor]]:
    """The name of each method, and its maps (B, h, w) of each image for its own text."""
    score, side = paired_scores(clip, texts), clip.tower.grid(*pixels.shape[-2:])[0]
    forward = ClipSimilarity(clip, targets.text(clip, texts))
    for name, options in METHODS.items():
        maps = ReaderRemoval(forward).attribute_targets(pixels, **options)
        yield name, maps[range(len(texts)), range(len(texts))]
    yield from rings(score, pixels, side).items()


def batches(file: Path, numbers: range, keys: list[str]) -> Iterator[tuple[pd.DataFrame, range]]:
    """Batches of scenes that a file does not have yet."""
    for start in range(numbers.start, numbers.stop, BATCH):
        found = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=keys)
        yield found, range(start, min(start + BATCH, numbers.stop))


def copies(clip: Any, file: Path, seed: int, numbers: range, kinds: list[str]) -> None:
    """Write a row a scene: the ranks of each method by what each copy adds, and is missed for."""
    for kind in kinds:
        data = DATA_SETS[f"demo-{kind}"](numbers.stop, seed)
        for found, batch in batches(file, numbers, ["kind", "scene"]):
            if ((found["kind"] == kind) & (found["scene"] == batch.start)).any():
                continue
            samples = [data.read(number) for number in batch]
            texts = [sample.regions[0].text for sample in samples]
            pixels = clip.preprocess([sample.image for sample in samples])
            rows: list[dict[str, Any]] = [{"kind": kind, "scene": n} for n in batch]
            truths = list[dict[str, Tensor]]()
            for sample, text in zip(samples, texts, strict=True):
                target = targets.text(clip, [text])
                with torch.no_grad():
                    scores = ClipSimilarity(clip, target)(clip.preprocess(list(sample.subsets)))
                scores = scores.T.double()
                effects = metrics.shapley_effects(scores)[0], removals(scores)[0]
                truths.append(dict(zip(("adds", "removal"), effects, strict=True)))
            for name, maps in maps_of(clip, pixels, texts):
                for row, heatmap, sample, truth in zip(rows, maps, samples, truths, strict=True):
                    masks = torch.from_numpy(np.stack([r.mask for r in sample.regions]))
                    mass = metrics.object_mass(heatmap.double(), masks)
                    row |= {
                        f"{name} {k}": round(float(spearman(mass, v)), 3) for k, v in truth.items()
                    }
            pd.concat([found, pd.DataFrame(rows)]).to_csv(file, index=False)


def compare(file: Path) -> None:
    """Print each method's mean rank correlation, and its difference from the rival."""
    table = pd.read_csv(file)
    columns = [
        f"{kind}, {truth}" for kind in table["kind"].unique() for truth in ("adds", "removal")
    ]
    print(f"| method | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", sep="\n")
    names = dict.fromkeys(column.rpartition(" ")[0] for column in table.columns[2:])
    for name in names:
        cells = []
        for column in columns:
            kind, truth = column.split(", ")
            of_kind = table[table["kind"] == kind]
            ours, rival = (torch.tensor(of_kind[f"{n} {truth}"].values) for n in (name, RIVAL))
            cell = f"{ours.mean():.3f}"
            if name != RIVAL:
                mean, low, high, _ = metrics.paired_difference(ours, rival)
                cell += f" ({mean:+.3f} [{low:+.3f}, {high:+.3f}])"
            cells.append(cell)
        print(f"| `{name}` | {' | '.join(cells)} |")


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
    for name, scenes in (("copies", 150), ("losses", 200), ("signs", 100), ("price", 0)):
        command = commands.add_parser(name)
        command.add_argument("model")
        if name == "price":
            continue
        command.add_argument("--seed", type=int, default=541)
        command.add_argument("--scenes", type=int, default=scenes)
        if name == "copies":
            command.add_argument("file", type=Path)
            command.add_argument("--data", nargs="+", default=["thirds", "identical"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    clip = load_clip(options.model)
    if options.command == "copies":
        copies(clip, options.file, options.seed, range(options.scenes), options.data)
        compare(options.file)
    elif options.command == "price":
        price(clip)
    else:
        {"losses": losses, "signs": signs}[options.command](clip, options.seed, options.scenes)


if __name__ == "__main__":
    main()
