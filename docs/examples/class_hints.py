"""How often `classify` warns that no class stands out: of a shown one, of none, of a near one.

``python docs/examples/class_hints.py --scenes 80`` prints the table of
docs/appendix/measurements.md.
"""

from __future__ import annotations

import argparse
import random

from captum_clip import classify, load_clip, targets
from captum_clip.demo.catalog import THINGS
from captum_clip.demo.scenes import draw_scene
from captum_clip.models import ClipAdapter

NOUNS = [thing.noun for thing in THINGS if thing.adjective is None]
FIRST_SCENE = 600_000  # none that the level was chosen on
CLASSES = 5


def rates(clip: ClipAdapter, things: int, scenes: int) -> list[float]:
    """How often there is a warning: of a class that is shown, of none, of the nearest text."""
    draw = random.Random(0)
    texts = [f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in NOUNS]
    embeddings = targets.text(clip, texts).embeddings
    alike = embeddings @ embeddings.T
    warned: list[list[bool]] = []
    for seed in range(scenes):
        shown = draw.sample(range(len(NOUNS)), things)
        scene = draw_scene(FIRST_SCENE + seed, objects=[NOUNS[index] for index in shown])
        absent = [index for index in range(len(NOUNS)) if index not in shown]
        nearest = max(absent, key=lambda index: float(alike[shown[0], index]))
        others = draw.sample([index for index in absent if index != nearest], CLASSES)
        image = clip.preprocess(scene.image)
        warned.append([])
        for chosen in ([*others[1:], shown[0]], others, [*others[1:], nearest]):
            found = classify(image, [texts[index] for index in chosen], model=clip, top=1)
            warned[-1].append(found.hints != ((),))
    return [sum(column) / scenes for column in zip(*warned, strict=True)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=80)
    arguments = parser.parse_args()
    print("| model | things in a scene | a class is shown | none is | none is, one is near |")
    print("|---|---|---|---|---|")
    for model in ("demo/vit", "demo/resnet", "demo/siglip"):
        clip = load_clip(model)
        for things in (1, 2, 3):
            values = " | ".join(f"{rate:.3f}" for rate in rates(clip, things, arguments.scenes))
            print(f"| {model} | {things} | {values} |", flush=True)


if __name__ == "__main__":
    main()
