"""Where maps of the shortcut model lie, next to those of ``demo/vit``, in the same scenes.

``python docs/experiments/tag_maps.py pairs`` prints, for each method, how much more often its
maximum lies on the tag when the tag is the reason (the table of docs/appendix/shortcut.md).
``python docs/experiments/tag_maps.py figure FILE`` draws the maps of two scenes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from captum.attr import IntegratedGradients, Occlusion
from torch import Tensor

from captum_clip import ClipSimilarity, explain, load_clip, maps, metrics, targets, visualization
from captum_clip.attr.registry import methods_for
from captum_clip.demo.catalog import article
from shortcut import MODEL
from shortcut.tags import TaggedScene, draw_tagged_scene

MODELS = (str(MODEL), "demo/vit")
METHODS = ("direct", "conservative", "all-grad", "last-grad", "attention-grad-cam", "rollout")
TOLERANCE = 15  # pixels, that of the pointing game


def heatmap_of(clip: Any, scene: TaggedScene, method: str) -> Tensor:
    """The map of the tagged noun (1, 224, 224) in [0, 1]."""
    found = explain(scene.image, article(scene.noun), model=clip, method=method)
    heatmap: Tensor = found.heatmap()["positive"][0]
    return heatmap


def heatmap_of_captum(clip: Any, scene: TaggedScene, method: Callable[..., Tensor]) -> Tensor:
    """The same of a method of Captum, its channels added."""
    forward = ClipSimilarity(clip, targets.text(clip, article(scene.noun)))
    raw = method(forward, clip.preprocess(scene.image)).sum(1)
    heatmap: Tensor = maps.normalize(maps.positive(raw.detach()))
    return heatmap


def integrate(forward: Any, images: Tensor) -> Tensor:
    """Captum's IntegratedGradients."""
    return IntegratedGradients(forward).attribute(images, n_steps=16)


def occlude(forward: Any, images: Tensor) -> Tensor:
    """Captum's Occlusion, a patch at a time."""
    return Occlusion(forward).attribute(images, (3, 32, 32), strides=(3, 32, 32))


def figure(file: str) -> None:
    """Draw two scenes, each on both models."""
    rows = [(load_clip(name), draw_tagged_scene(seed)) for seed in (0, 4) for name in MODELS]
    columns = {name: [heatmap_of(*row, name) for row in rows] for name in METHODS}
    for name, method in (("IntegratedGradients", integrate), ("Occlusion", occlude)):
        columns[f"Captum's {name}"] = [heatmap_of_captum(*row, method) for row in rows]
    images = [torch.from_numpy(scene.image).permute(2, 0, 1) / 255 for _, scene in rows]
    visualization.contact_sheet(
        torch.stack(images),
        {name: torch.stack(column) for name, column in columns.items()},
        names=[f"{article(scene.noun)}, {Path(clip.name).parent.name}" for clip, scene in rows],
    ).savefig(file)


def on_the_tag(model: str, method: str, scenes: int = 150) -> Tensor:
    """Whether the maximum of each scene's map lies on its tag."""
    clip, hits = load_clip(model), []
    for scene in map(draw_tagged_scene, range(scenes)):
        found = explain(scene.image, article(scene.noun), model=clip, method=method)
        mask = torch.from_numpy(scene.tag_mask)
        hits.append(metrics.pointing_game(found.maps["positive"][0, 0], mask, tolerance=TOLERANCE))
    return torch.stack(hits)


def pairs() -> None:
    """Print the table."""
    names = [*methods_for("vit")]
    found = [metrics.paired_difference(*(on_the_tag(m, name) for m in MODELS)) for name in names]
    print("| method | shortcut - control, maximum on the tag | p (Holm) |\n|---|---|---|")
    adjusted = metrics.holm([difference.p_value for difference in found])
    for name, (mean, low, high, _), p_value in zip(names, found, adjusted, strict=True):
        print(f"| {name} | {mean:+.2f} [{low:+.2f}, {high:+.2f}] | {p_value:.2g} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "figure":
        figure(sys.argv[2])
    else:
        pairs()
