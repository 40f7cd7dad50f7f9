"""Images changed by a few gray levels so that a map leaves its object and the prediction stays.

``python docs/experiments/attack.py demo/vit demo/siglip`` draws scenes of two objects, and moves
each pixel by at most 2 or 8 of 255 in ten signed gradient steps. After X-Shift (arXiv:2605.16651),
the *patches* attack knows nothing of the method: it pushes the embeddings of the patches outside
the object towards the text. The *own* attack raises the share of a method's own map outside the
object, where that map has a gradient. Of each attack the last step counts after which the best of
all nouns is the same as before. The table has the share of maps whose maximum lies on the object.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict

import torch
from torch import Tensor

from captum_clip import ClipSimilarity, load_clip, maps, metrics, targets
from captum_clip.attr.registry import MethodChoice
from captum_clip.bench.methods import method_of
from captum_clip.bench.table import Queries
from captum_clip.demo.catalog import NOUNS, article
from captum_clip.demo.scenes import draw_scene
from tables import markdown, short

OWN = ("direct", "conservative", "last-grad")  # their maps have a gradient
BESIDE = ("removal", "occlusion:side=3,fill=ring")
LEVELS, STEPS, BATCH = (2, 8), 10, 20
COLUMNS = [(kind, level) for kind in ("patches", "own") for level in LEVELS]


class Scenes:
    """Scenes of two objects, with the text and the mask of the first of each."""

    def __init__(self, forward: ClipSimilarity, numbers: range) -> None:
        scenes = [draw_scene(number, split="test", count=2) for number in numbers]
        nouns = tuple(scene.objects[0].noun for scene in scenes)
        self.forward = forward
        self.columns = torch.tensor([NOUNS.index(noun) for noun in nouns])
        self.masks = torch.stack([torch.from_numpy(scene.objects[0].mask) for scene in scenes])
        images = forward.clip.preprocess([scene.image for scene in scenes])
        embeddings = forward.target.embeddings[self.columns]
        self.queries = Queries(images, embeddings, nouns, nouns, tuple(numbers))

    def attacked(self, name: str, level: int) -> Tensor:
        """Images (N, 3, H, W) with more of the map outside of the mask, and the same best noun."""
        images, clip = self.queries.pixels, self.forward.clip
        black, white = clip.color((0, 0, 0)), clip.color((1, 1, 1))
        most = level / 255 * (white - black)
        low, high = torch.maximum(images - most, black), torch.minimum(images + most, white)
        method = MethodChoice.of(name).method(self.forward)
        best, kept, changed = self.best(images), images, images
        for _ in range(STEPS):
            changed = changed.detach().requires_grad_()
            heatmaps = method.attribute(changed, target=self.columns, create_graph=True)
            (gradient,) = torch.autograd.grad(
                maps.outside_share(heatmaps, self.masks).sum(), changed
            )
            changed = (changed.detach() + most / 4 * gradient.sign()).clamp(low, high)
            stays = self.best(changed) == best
            kept = torch.where(stays[:, None, None, None], changed, kept)
        return kept

    def best(self, images: Tensor) -> Tensor:
        """The number of the best noun (N,)."""
        with torch.no_grad():
            return self.forward(images).argmax(1)

    def hits(self, name: str, images: Tensor) -> Tensor:
        """Whether the maximum of each map lies on its object (N,)."""
        queries = dataclasses.replace(self.queries, pixels=images)
        heatmaps = method_of(name, self.forward.clip).maps(self.forward.clip, queries)
        hits: Tensor = metrics.pointing_game(maps.positive(heatmaps), self.masks)
        return hits.double()


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--scenes", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for model in options.models for row in rows_of(model, options.scenes)]
    header = ["model", "pointing at the object", "before"]
    markdown([*header, *(f"{kind}, {level}/255" for kind, level in COLUMNS)], rows)


def rows_of(model: str, count: int) -> list[list[str]]:
    """What the attacks do to each method's maps of a model."""
    clip = load_clip(model)
    forward = ClipSimilarity(clip, targets.text(clip, [article(noun) for noun in NOUNS]))
    attacks = [n for n in ("patches", *OWN) if MethodChoice.of(n).fits(clip.kind)]
    names = [name for name in (*OWN, *BESIDE) if name in (*attacks, *BESIDE)]
    found: dict[tuple[str, str, int], list[Tensor]] = defaultdict(list)
    for first in range(0, count, BATCH):
        scenes = Scenes(forward, range(first, min(first + BATCH, count)))
        for name in names:
            found[name, "", 0].append(scenes.hits(name, scenes.queries.pixels))
        for attack, level in [(attack, level) for attack in attacks for level in LEVELS]:
            images = scenes.attacked(attack, level)
            for name in names if attack == "patches" else [attack]:
                kind = attack if attack == "patches" else "own"
                found[name, kind, level].append(scenes.hits(name, images))
    rows = []
    for name in names:
        values = [found.get((name, *column)) for column in [("", 0), *COLUMNS]]
        cells = [
            "–" if value is None else short(float(torch.cat(value).mean())) for value in values
        ]
        rows.append([model, f"`{name}`", *cells])
    return rows


if __name__ == "__main__":
    main()
