"""Which of two nouns gets the weight: that of what is in the image, or the other?

``python docs/experiments/word_weights.py demo/vit demo/resnet`` draws 500 scenes of one object.
Each text has two nouns in either order, of which one is there. The table has, for each method of
text maps, how often that noun gets more weight than the other; chance is .5.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from PIL import Image

from captum_clip import TextSimilarity, attr, load_clip, targets
from captum_clip.demo.catalog import THINGS
from captum_clip.demo.scenes import draw_scene
from tables import markdown

NOUNS = sorted({thing.noun for thing in THINGS if thing.adjective is None})
FIRST, SECOND = 2, 5
"""The tokens of the nouns in "a horse and a dog" after the start token."""


def captions(scenes: int) -> Iterator[tuple[Image.Image, str, bool]]:
    """The image, a text of a noun that is there and one that is not, whether the first is there."""
    for seed in range(scenes):
        there = NOUNS[seed % len(NOUNS)]
        absent = NOUNS[(seed + 1 + seed // len(NOUNS)) % len(NOUNS)]
        pair = (there, absent) if seed % 2 else (absent, there)
        text = " and ".join(f"a {noun}" for noun in pair)
        yield draw_scene(seed, objects=[there]).image, text, bool(seed % 2)


def shares(model: str, scenes: int) -> dict[str, float]:
    """How often each method gives the noun that is there more weight."""
    clip = load_clip(model)
    images, texts, first = zip(*captions(scenes), strict=True)
    embeddings = torch.cat([targets.image(clip, image).embeddings for image in images])
    forward = TextSimilarity(clip, targets.embedding(embeddings))
    ids, mask = clip.text_inputs(texts)
    found = {}
    for name, method in attr.METHODS.items():
        if "text" in method.towers:
            values = method(forward).attribute(ids, list(range(scenes)), mask)[:, 0]  # (scenes, T)
            right = (values[:, FIRST] > values[:, SECOND]) == torch.tensor(first)
            found[name] = right.float().mean().item()
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--scenes", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [shares(model, options.scenes) for model in options.models]
    rows = [[f"`{name}`", *(f"{each[name]:.3f}" for each in found)] for name in found[0]]
    markdown(("method", *options.models), rows)


if __name__ == "__main__":
    main()
