"""Why Grad-CAM may fail on CLIP's ResNets: the gradient through the softmax of the pool.

``python docs/examples/held_pool.py demo/resnet --scenes 60`` prints how often two maps of an
object's noun have their maximum on the object: Grad-CAM, and gradient times features place by
place (HiResCAM), each with the pool's attention as it is and held, that is taken as constant.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from captum_clip import load_clip, metrics, targets
from captum_clip.evaluation import open_data


def pooled(pool: Any, features: Tensor, *, held: bool) -> Tensor:
    """OpenCLIP's attention pool (1, D) of features (1, C, h, w), written out.

    With x_0 the mean of all places, each place its features and position:
    e = W_o sum_j softmax_j(W_q x_0 . W_k x_j / sqrt(d)) W_v x_j, by heads.
    """
    places = features.flatten(2)[0].T  # (P, C)
    tokens = torch.cat([places.mean(0, keepdim=True), places]) + pool.positional_embedding
    by_head = [
        projection(tokens).unflatten(1, (pool.num_heads, -1)).transpose(0, 1)  # (H, 1 + P, d)
        for projection in (pool.q_proj, pool.k_proj, pool.v_proj)
    ]
    queries, keys, values = by_head
    attention = (queries[:, :1] @ keys.mT / keys.shape[-1] ** 0.5).softmax(-1)  # (H, 1, 1 + P)
    if held:
        attention = attention.detach()
    result: Tensor = pool.c_proj((attention @ values).transpose(0, 1).flatten(1))
    return result


def main() -> None:
    """Print the shares, and how far the pool that is written out is from the model's own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a ResNet of OpenCLIP: demo/resnet, or a folder of one")
    parser.add_argument("--scenes", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    clip = load_clip(options.model)
    visual = clip.model.visual
    found: dict[str, Tensor] = {}
    visual.layer4.register_forward_hook(lambda _, __, output: found.update(features=output))
    data, hits, gap = open_data("demo", number=options.scenes), defaultdict(list), 0.0
    for sample in map(data.read, range(len(data))):
        with torch.no_grad():
            own = normalize(clip.encode_image(clip.preprocess(sample.image)), dim=-1)
        features = found["features"].detach().requires_grad_()
        rows = targets.text(clip, [region.text for region in sample.regions]).bank
        for row, region in zip(rows, sample.regions, strict=True):
            mask = torch.from_numpy(region.mask)[None]
            for held in (False, True):
                score = normalize(pooled(visual.attnpool, features, held=held), dim=-1) @ row
                gap = max(gap, float((score - own @ row).detach().abs()))
                [gradient] = torch.autograd.grad(score, features)
                by_channel = gradient.mean((2, 3), keepdim=True) * features
                for name, products in (
                    ("Grad-CAM", by_channel),
                    ("HiResCAM", gradient * features),
                ):
                    heat = products.detach().sum(1).clamp(min=0)
                    hits[name, held].append(float(metrics.pointing_game(heat, mask)))
    print(f"largest difference of a cosine: {gap:.1e}\n| map | as it is | held |\n|---|---|---|")
    for name in ("Grad-CAM", "HiResCAM"):
        shares = [sum(hits[name, held]) / len(hits[name, held]) for held in (False, True)]
        print(f"| {name} | {' | '.join(f'{share:.3f}' for share in shares)} |")


if __name__ == "__main__":
    main()
