"""How often the hints of `explain(hints=True)` are given where they should be, and where not.

``python docs/examples/hints.py --scenes 100`` prints the table of docs/appendix/measurements.md.
"""

from __future__ import annotations

import argparse
import random

import torch

from captum_clip import explain, load_clip
from captum_clip.attr.registry import MethodChoice, methods_for
from captum_clip.demo.catalog import THINGS
from captum_clip.demo.scenes import draw_scene
from captum_clip.explaining.hints import CORRELATION, SHARE, compare
from captum_clip.models import ClipAdapter

NOUNS = [thing.noun for thing in THINGS if thing.adjective is None]
FIRST_SCENE = 200_000  # none that the levels were chosen on


def rates(clip: ClipAdapter, method: str, scenes: int) -> list[float]:
    """By their scores, of things that are shown and that are not; by its map, where it points."""
    draw = random.Random(0)
    shown, absent, pointing = [], [], []
    for seed in range(scenes):
        scene = draw_scene(FIRST_SCENE + seed)
        masks = {o.name: torch.from_numpy(o.mask) for o in scene.objects if o.name in NOUNS}
        nouns = [*masks, draw.choice([noun for noun in NOUNS if noun not in masks])]
        texts = [f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in nouns]
        found = explain(scene.image, texts, model=clip, method=method, hints=False)
        images, raw = clip.preprocess(scene.image), found.maps["positive"]
        choice = MethodChoice.of(method)
        [better], [alike] = compare(clip, choice, images, texts, raw, found.scores)
        shown += (better[:-1] > SHARE).tolist()
        absent.append(bool(better[-1] > SHARE))
        heatmap = found.heatmap("bicubic")["positive"][0].flatten(1)
        for mask, values, correlation in zip(masks.values(), heatmap, alike, strict=False):
            if mask.flatten()[values.argmax()]:
                pointing.append(bool(correlation > CORRELATION))
    return [sum(of) / max(1, len(of)) for of in (shown, absent, pointing)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--method", nargs="*", help="all by default")
    arguments = parser.parse_args()
    print("| model | method | score: shown | score: not there | map: points at its thing |")
    print("|---|---|---|---|---|")
    for model in ("demo/vit", "demo/resnet"):
        clip = load_clip(model)
        for method in methods_for(clip.kind):
            if arguments.method and method not in arguments.method:
                continue
            values = " | ".join(f"{rate:.3f}" for rate in rates(clip, method, arguments.scenes))
            print(f"| {model} | {method} | {values} |", flush=True)


if __name__ == "__main__":
    main()
