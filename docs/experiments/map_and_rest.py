"""What the map and the rest of an additive method sum to, divided by the score.

``python docs/experiments/map_and_rest.py`` prints a row a model and method: the median and the
spread (10 to 90 %) over both nouns of 100 scenes of two objects, the median of the rest, and the
largest difference of map plus rest from the score.
"""

from __future__ import annotations

import torch

from captum_clip import ClipSimilarity, load_clip, targets
from captum_clip.attr.registry import MethodChoice
from captum_clip.demo.catalog import article
from captum_clip.demo.scenes import draw_scene
from tables import markdown, short

MODELS = {
    "demo/vit": ("direct", "direct:depth=token", "conservative"),
    "demo/resnet": ("direct",),
    "demo/siglip": ("direct", "conservative"),
}
SCENES = 100


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rows = []
    for model, methods in MODELS.items():
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


if __name__ == "__main__":
    main()
