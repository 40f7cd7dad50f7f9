"""How high a cosine is: of nouns that are there, of the best of the others, and of all others.

``python docs/experiments/cosines.py demo/vit demo/resnet`` prints the quantiles 5 %, 50 % and 95 %
over 500 scenes of two objects and all nouns of the drawn things, each with its article.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from captum_clip import ClipSimilarity, load_clip, targets
from captum_clip.demo.catalog import NOUNS, article
from captum_clip.demo.scenes import draw_scene
from tables import markdown, short

QUANTILES = (0.05, 0.5, 0.95)


def cosines(model: str, scenes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of nouns that are there, of the best of the others in each scene, and of all others."""
    clip = load_clip(model)
    forward = ClipSimilarity(clip, targets.text(clip, [article(noun) for noun in NOUNS]))
    drawn = [draw_scene(seed, count=2) for seed in range(scenes)]
    there = torch.tensor([[n in {o.noun for o in s.objects} for n in NOUNS] for s in drawn])
    with torch.no_grad():
        scores = torch.cat([forward(clip.preprocess(scene.image)) for scene in drawn])
    return scores[there], scores.masked_fill(there, -1).amax(1), scores[~there]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--scenes", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for model in options.models:
        groups = cosines(model, options.scenes)
        quantiles = [group.quantile(torch.tensor(QUANTILES)).tolist() for group in groups]
        rows.append([f"`{model}`", *(", ".join(map(short, values)) for values in quantiles)])
    others = f"the best of the {len(NOUNS) - 2} others"
    markdown(("model", "nouns that are there", others, "all others"), rows)


if __name__ == "__main__":
    main()
