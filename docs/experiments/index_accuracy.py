"""What rounding costs an index: stored maps next to the method's own on 240 drawn scenes.

``python docs/experiments/index_accuracy.py [MODEL]`` prints the error of a map as a share of its
maximum, how often each points at its object, and how often the image of an object is the first
for its name by the score, and by its best single cell.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

from captum_clip import ClipSimilarity, DirectContribution, load_clip, maps, targets
from captum_clip.apps.search import ImageIndex
from captum_clip.demo.scenes import draw_scene
from captum_clip.metrics import pointing_game

SCENES = 240


def main(model: str = "demo/vit") -> None:
    """Print the figures of the documentation."""
    clip, scenes = load_clip(model), [draw_scene(seed, split="test") for seed in range(SCENES)]
    things = [(image, thing) for image, scene in enumerate(scenes) for thing in scene.objects]
    names = sorted({thing.name for _, thing in things})
    target = targets.text(clip, [f"a {name}" for name in names])
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{seed:03}.png") for seed in range(SCENES)]
        for path, scene in zip(paths, scenes, strict=True):
            Image.fromarray(scene.image).save(path)
        index = ImageIndex.build(clip, paths, Path(folder, "scenes.lance"))
        found = index.explanation(paths, target, sign="both")
        images = clip.preprocess(paths)
    forward = ClipSimilarity(clip, target)
    exact = torch.cat(
        [DirectContribution(forward).attribute_targets(batch) for batch in images.split(48)]
    )
    stored = found.maps["positive"] - found.maps["negative"]
    rows = [(image, names.index(thing.name)) for image, thing in things]
    errors = (stored - exact).abs().flatten(2) / exact.flatten(2).abs().amax(2, keepdim=True)
    errors = torch.stack([errors[row] for row in rows])
    for what, error in (("mean", errors.mean(1)), ("largest", errors.amax(1))):
        told = f"mean {error.mean():.4f}, most {error.max():.4f}"
        print(f"{what} error in the map of an object that is there, of its maximum: {told}")
    with torch.no_grad():
        scores = torch.cat([forward(batch) for batch in images.split(48)])
    print(f"largest error of a score: {(found.scores - scores).abs().max():.1e}")
    masks = torch.stack([torch.from_numpy(thing.mask) for _, thing in things])[:, None]
    for what, raw in (("the method", exact), ("the index", stored)):
        chosen = torch.stack([raw[row] for row in rows])[:, None]
        points = pointing_game(maps.upsample(chosen, tuple(masks.shape[-2:])), masks)
        print(f"{what} points at {points.mean():.3f} of {len(rows)} objects")
    for what, order in (("the score", scores), ("the best cell", exact.amax((-2, -1)))):
        share = precision_at_one(order, rows)
        print(f"first by {what}: {share:.3f} of {len(names)} names are in the best image")
    small = [row for row, mask in zip(rows, masks, strict=True) if mask.float().mean() < 0.05]
    for what, order in (("the score", scores), ("the best cell", exact.amax((-2, -1)))):
        print(f"small objects, first by {what}: {precision_at_one(order, rows, small):.3f}")


def precision_at_one(
    order: torch.Tensor, rows: list[tuple[int, int]], asked: list[tuple[int, int]] | None = None
) -> float:
    """The share of the names asked for whose first image holds a thing of that name."""
    names = sorted({name for _, name in asked or rows})
    return sum((int(order[:, name].argmax()), name) in {*rows} for name in names) / len(names)


if __name__ == "__main__":
    main(*sys.argv[1:])
