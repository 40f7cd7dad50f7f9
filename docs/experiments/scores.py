"""How high a cosine is, and what the map and the rest of an additive method add to it.

``python docs/experiments/scores.py cosines demo/vit demo/resnet`` prints the quantiles 5 %, 50 %
and 95 % over 500 scenes of two objects and all nouns of the drawn things, each with its article: of
nouns that are there, of the best of the others, and of all others.

``parts`` prints a row a model and method: the median and the spread (10 to 90 %) of what the map
sums to, divided by the score, over both nouns of 100 scenes of two objects; the median of the rest;
and the largest difference of map plus rest from the score.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from captum_clip import ClipSimilarity, load_clip, targets
from captum_clip.attr.registry import MethodChoice
from captum_clip.demo.catalog import NOUNS, article
from captum_clip.demo.scenes import draw_scene
from tables import markdown, short

QUANTILES = (0.05, 0.5, 0.95)
ADDITIVE = {
    "demo/vit": ("direct", "direct:depth=token", "conservative"),
    "demo/resnet": ("direct",),
    "demo/siglip": ("direct", "conservative"),
}
"""The models of ``parts``, and their methods."""
SCENES = 100
"""Of ``parts``."""


def cosines(model: str, scenes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of nouns that are there, of the best of the others in each scene, and of all others."""
    clip = load_clip(model)
    forward = ClipSimilarity(clip, targets.text(clip, [article(noun) for noun in NOUNS]))
    drawn = [draw_scene(seed, count=2) for seed in range(scenes)]
    there = torch.tensor([[n in {o.noun for o in s.objects} for n in NOUNS] for s in drawn])
    with torch.no_grad():
        scores = torch.cat([forward(clip.preprocess(scene.image)) for scene in drawn])
    return scores[there], scores.masked_fill(there, -1).amax(1), scores[~there]


def print_cosines(models: list[str], scenes: int) -> None:
    """Print how high cosines are."""
    rows = []
    for model in models:
        groups = cosines(model, scenes)
        quantiles = [group.quantile(torch.tensor(QUANTILES)).tolist() for group in groups]
        rows.append([f"`{model}`", *(", ".join(map(short, values)) for values in quantiles)])
    others = f"the best of the {len(NOUNS) - 2} others"
    markdown(("model", "nouns that are there", others, "all others"), rows)


def print_parts() -> None:
    """Print what the map and the rest sum to."""
    rows = []
    for model, methods in ADDITIVE.items():
        clip = load_clip(model)
        for name in methods:
            choice, shares, errors = MethodChoice.of(name), [], []
            for scene in (draw_scene(seed, count=2) for seed in range(SCENES)):
                texts = [article(thing.noun) for thing in scene.objects]
                forward = ClipSimilarity(clip, targets.text(clip, texts))
                method, image = choice.method(forward), clip.preprocess(scene.image)
                flags = {"return_rest": True, "return_scores": True}
                heatmaps, scores, rest = method.attribute_targets(image, **flags, **choice.options)
                sums = heatmaps.sum((-2, -1))
                shares.append(torch.stack([sums / scores, rest / scores]).flatten(1))
                errors.append((sums + rest - scores).abs().max())
            whole = torch.cat(shares, 1).double()
            low, middle, high = whole.quantile(
                torch.tensor([0.1, 0.5, 0.9]).double(), dim=1
            ).tolist()
            spread = f"{short(low[0])} to {short(high[0])}"
            error = f"{float(torch.stack(errors).max()):.0e}"
            rows.append([model, f"`{name}`", short(middle[0]), spread, short(middle[1]), error])
    markdown(["model", "method", "map", "10 to 90 %", "rest", "error of the sum"], rows)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    high = commands.add_parser("cosines")
    high.add_argument("models", nargs="+")
    high.add_argument("--scenes", type=int, default=500)
    commands.add_parser("parts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "cosines":
        print_cosines(options.models, options.scenes)
    else:
        print_parts()


if __name__ == "__main__":
    main()
