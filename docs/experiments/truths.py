"""How the two truths of a scene relate, and what oracles reach that know where an object is.

``python docs/experiments/truths.py demo/vit demo/resnet demo/siglip`` prints rank correlations of
all pairs of a text and an object in 500 scenes together, and of those where the text names another.

- *adds*: the object's Shapley effect; *removal*: the drop without it, from the whole scene.
- *hidden*: the drop when no token may attend to the object's cells (a quarter of a cell and more),
  in any layer of a ViT; *painted*: the drop when it is painted over with the mean color around it.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from captum_clip import ClipSimilarity, load_clip, metrics, targets
from captum_clip.bench.data import DATA_SETS
from tables import pooled_spearman

TRUTHS = ("adds", "removal")
RING = 8
"""Pixels around an object whose mean color it is painted over with."""
COVERED = 0.25
"""Share of a cell that an object covers where its token is hidden."""


def hidden(clip: Any, pixels: Tensor, masks: Tensor) -> Tensor:
    """Embeddings (n, D) of an image with each object's cells hidden from attention."""
    cells = F.adaptive_avg_pool2d(masks[:, None].float(), clip.grid(*pixels.shape[-2:]))
    gone = F.pad(cells.flatten(1) >= COVERED, (1, 0))  # (n, 1 + cells), CLS first
    mask = torch.zeros(gone.shape).masked_fill(gone, -torch.inf)[:, None, None, :]
    mask = mask.expand(-1, 1, gone.shape[1], -1)

    def hide(module: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "attention_mask": mask}

    layers = clip.model.vision_model.encoder.layers
    handles = [x.self_attn.register_forward_pre_hook(hide, with_kwargs=True) for x in layers]
    try:
        return clip.encode_image(pixels.expand(len(masks), -1, -1, -1))
    finally:
        for handle in handles:
            handle.remove()


def painted(clip: Any, pixels: Tensor, masks: Tensor) -> Tensor:
    """Embeddings (n, D) of an image with each object painted over."""
    wide = F.max_pool2d(masks[:, None].float(), 2 * RING + 1, 1, RING)[:, 0] > 0
    rings = wide & ~masks.any(0)
    images = [
        torch.where(mask, pixels[0][:, ring].mean(1)[:, None, None], pixels[0])
        for mask, ring in zip(masks, rings, strict=True)
    ]
    return clip.encode_image(torch.stack(images))


@torch.no_grad()
def read(clip: Any, sample: Any) -> dict[str, Tensor]:
    """Of a scene of n objects, each truth and each oracle (n texts, n objects)."""
    text = targets.text(clip, [region.text for region in sample.regions])
    pixels = clip.preprocess(list(sample.subsets))
    scores = ClipSimilarity(clip, text)(pixels).T  # (n, 2^n)
    count, whole = len(scores), scores.shape[1] - 1
    without = scores[:, [whole ^ (1 << place) for place in range(count)]]
    masks = torch.from_numpy(np.stack([region.mask for region in sample.regions]))
    full = scores[:, whole:]
    found = {
        "adds": metrics.shapley_effects(scores),
        "removal": full - without,
        "painted": full - text.embeddings @ painted(clip, pixels[-1:], masks).T,
    }
    if clip.kind == "vit" and hasattr(clip.model.vision_model, "pre_layrnorm"):
        found["hidden"] = full - text.embeddings @ hidden(clip, pixels[-1:], masks).T
    return found


def interval(scenes: list[dict[str, Tensor]], first: str, second: str, *, others: bool) -> str:
    """Spearman's of all scenes together with its 95 % bootstrap interval over scenes."""
    if first == second:
        return "\N{EN DASH}"
    tables = []
    for scene in scenes:
        kept = ~torch.eye(len(scene[first]), dtype=torch.bool) if others else ...
        pair = torch.stack([scene[first][kept].flatten(), scene[second][kept].flatten()], 1)
        tables.append(pair.double().numpy())
    found = "{:.2f} [{:.2f}, {:.2f}]".format(*pooled_spearman(tables, 1000))
    return found.replace("0.", ".").replace("-", "\N{MINUS SIGN}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", nargs="+", help="such as demo/vit, or a folder")
    parser.add_argument("--scenes", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = DATA_SETS["demo"](number=options.scenes)
    columns = [(truth, end) for truth in TRUTHS for end in ("all", "others")]
    heads = " | ".join(", ".join(column) for column in columns)
    print(f"| model | oracle | {heads} |", "|---|---|---|---|---|---|", sep="\n")
    for model in options.models:
        clip = load_clip(model)
        scenes = [read(clip, data.read(index)) for index in range(options.scenes)]
        for oracle in scenes[0]:
            cells = [
                interval(scenes, oracle, truth, others=end == "others") for truth, end in columns
            ]
            print(f"| {model} | {oracle} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
