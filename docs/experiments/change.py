"""What planted the shortcut, by region and head: the ledger of the change from ``demo/vit``.

``python docs/experiments/change.py measure`` compares ``demo/vit`` with the shortcut model in 200
scenes whose object and tag disagree. Does the tag's noun gain most on the tag, and the object's
noun lose most on the object? Chance is the share of cells that would count. Then: how much of the
change do the four heads of 24 make that change most? ``check`` exchanges the outputs of each head
between both models, or its weights, and compares what the scores lose with the ledger. ``draw
FOLDER`` writes scenes with a cat, half of them with a dog's tag.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from captum_clip import ClipSimilarity, DirectContribution, load_clip, targets
from captum_clip.apps.change import Change, compare
from captum_clip.demo.catalog import article
from captum_clip.metrics import Interval, bootstrap_mean, holm, paired_difference
from shortcut import MODEL
from shortcut.measures import DRAWINGS, draw
from shortcut.tags import TAGGED, TaggedScene, draw_tagged_scene

ANOTHER_TAG = next(drawing for drawing in DRAWINGS if not drawing.own and drawing.of_tag)
COVERED = 0.25
CHOSEN = 4
"""Heads, of 24."""
RESAMPLES = 2000
TEXTS = [article(noun) for noun in TAGGED]
LAYERS, HEADS = 6, 4
BATCH = 16


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


def compared(number: int) -> tuple[list[TaggedScene], Change]:
    """The scenes, and what the shortcut changed in the scores of the twelve nouns."""
    scenes = [draw(ANOTHER_TAG, seed) for seed in range(number)]
    images = [scene.image for scene in scenes]
    return scenes, compare("demo/vit", str(MODEL), images, TEXTS)


def column(scenes: list[TaggedScene], part: str) -> Tensor:
    """The column of each scene's tag's or object's noun, (N,)."""
    return torch.tensor([TAGGED.index(getattr(scene, part)) for scene in scenes])


def measure(number: int) -> None:
    """Print the table."""
    scenes, change = compared(number)
    by = change.scores[1] - change.scores[0]
    summed = change.heads.sum((-2, -1)) + change.mlps.sum(-1) + change.rest + change.text
    summed = summed + change.scale
    placed = change.regions.sum((-2, -1)) + change.outside + change.text
    rows, generator = torch.arange(number), torch.Generator().manual_seed(0)
    print("| from `demo/vit` to the shortcut | the tag's noun | the object's noun |")
    print("|---|---|---|")
    table: dict[str, list[str]] = {}
    for part, sign in (("tag", 1), ("noun", -1)):
        columns = column(scenes, part)
        masks = [scene.tag_mask if part == "tag" else scene.object_mask for scene in scenes]
        covered = coverage(masks, change.regions.shape[-1])
        first = (sign * change.regions[rows, columns]).flatten(1).argmax(1)
        values = {"change of the score": interval(bootstrap_mean(by[rows, columns]))}
        values["of that the scale"] = interval(bootstrap_mean(change.scale[rows, columns]))
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
        ("heads, MLPs, rest, scale and text", summed),
        ("regions, outside and text", placed),
    ):
        gap = f"{float((total - by).abs().max()):.0e}"
        print(f"| {name}, largest distance from the change | {gap} | {gap} |")


@contextmanager
def other_weights(into: Any, source: Any, layer: int, head: int) -> Iterator[None]:
    """One head of a model with the weights of the other's, until the end."""
    new, old = (clip.model.vision_model.encoder.layers[layer].self_attn for clip in (source, into))
    width = old.out_proj.in_features // HEADS
    rows, saved = slice(head * width, (head + 1) * width), list[tuple[Tensor, Tensor]]()
    for name, weight in old.named_parameters():
        if name != "out_proj.bias":
            chosen = (slice(None), rows) if name == "out_proj.weight" else rows
            saved.append((weight.data[chosen], weight.data[chosen].clone()))
            weight.data[chosen] = new.get_parameter(name)[chosen]
    try:
        yield
    finally:
        for part, values in saved:
            part.copy_(values)


@contextmanager
def other_outputs(into: Any, moved: list[Tensor], layer: int, head: int) -> Iterator[None]:
    """A model in which one head adds to CLS what the other's adds: less by batches (B, m, D)."""
    batches = iter(moved)

    def put(_: Any, args: Any, result: Any) -> Any:
        output = result[0].clone()
        output[:, 0] -= next(batches)[:, layer * (HEADS + 1) + head]
        return (output, *result[1:])

    attention = into.model.vision_model.encoder.layers[layer].self_attn
    hook = attention.register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()


def exchanged(clip: Any, pixels: list[Tensor], other: Callable[..., Any]) -> Tensor:
    """What the scores lose by the exchange of each head, (N, K, n, H)."""
    forward = ClipSimilarity(clip, targets.text(clip, TEXTS))

    def scores() -> Tensor:
        with torch.no_grad():
            return torch.cat([forward(batch) for batch in pixels])

    whole, lost = scores(), list[Tensor]()
    for place in np.ndindex(LAYERS, HEADS):
        with other(clip, layer=place[0], head=place[1]):
            lost.append(whole - scores())
    return torch.stack(lost, -1)


def exchanged_both_ways(images: list[np.ndarray]) -> dict[str, list[Tensor]]:
    """What the scores lose by the exchange of outputs or weights, back and ahead."""
    clips = [load_clip("demo/vit"), load_clip(str(MODEL))]
    pixels = [clips[0].preprocess(images[n : n + BATCH]) for n in range(0, len(images), BATCH)]
    parts = []
    for clip in clips:
        method = DirectContribution(ClipSimilarity(clip, targets.text(clip, TEXTS)))
        parts.append([method.head_parts(batch)[1][0] for batch in pixels])
    back = [after - before for before, after in zip(*parts, strict=True)]
    ahead = [-each for each in back]
    return {
        "outputs": [
            exchanged(clips[1], pixels, partial(other_outputs, moved=back)),
            -exchanged(clips[0], pixels, partial(other_outputs, moved=ahead)),
        ],
        "weights": [
            exchanged(clips[1], pixels, partial(other_weights, source=clips[0])),
            -exchanged(clips[0], pixels, partial(other_weights, source=clips[1])),
        ],
    }


def check(number: int) -> None:
    """Print the table of all heads: by the ledger, and by exchange of outputs or weights."""
    scenes, change = compared(number)
    found = exchanged_both_ways([scene.image for scene in scenes])
    rows = torch.arange(number)
    cells = [[f"{layer}, {head}"] for layer, head in np.ndindex(LAYERS, HEADS)]
    names = "put back", "put ahead", "mean of both"
    ranks = [[f"Spearman over significant heads, {name}"] for name in names]
    for part in ("tag", "noun"):
        columns = column(scenes, part)
        heads = change.heads[rows, columns].flatten(1)
        p_values = holm([paired_difference(each, 0 * each).p_value for each in heads.T])
        significant = np.array(p_values) < 0.05
        ledger = heads.mean(0)
        for row, value, is_far in zip(cells, ledger, significant, strict=True):
            row.append(f"{value:+.4f}" + " (n.s.)" * (not is_far))
        for row in ranks:
            row.append(f"{significant.sum()} heads")
        for both in found.values():
            one, two = (lost[rows, columns].mean(0) for lost in both)
            for row, value in zip(cells, (one + two) / 2, strict=True):
                row.append(f"{value:+.4f}")
            for row, values in zip(ranks, (one, two, (one + two) / 2), strict=True):
                rank = spearmanr(ledger[significant], values[significant]).statistic
                row.append(f"{rank:.2f}")
    titles = [f"{part}: {way}" for part in ("tag", "object") for way in ("ledger", *found)]
    print(f"| layer, head | {' | '.join(titles)} |")
    print("|---" * 7 + "|")
    for row in [*cells, *ranks]:
        print(f"| {' | '.join(row)} |")


def draw_cats(folder: Path, number: int) -> None:
    """Write scenes with a cat, and in turn its tag or a dog's."""
    folder.mkdir(exist_ok=True)
    for seed in range(number):
        scene = draw_tagged_scene(seed, noun="cat", tag="dog" if seed % 2 else "cat")
        Image.fromarray(scene.image).save(folder / f"{seed:03d}.png")


def main() -> None:
    """Print a table, or write the scenes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["measure", "check", "draw"])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("cats"))
    parser.add_argument("--scenes", type=int, default=200)
    options = parser.parse_args()
    if options.what == "draw":
        draw_cats(options.folder, options.scenes)
    else:
        {"measure": measure, "check": check}[options.what](options.scenes)


if __name__ == "__main__":
    main()
