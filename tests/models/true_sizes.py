"""OpenAI's models at their true sizes, with random weights, next to the same weights in OpenCLIP.

``python -m tests.models.true_sizes`` prints for RN50 and ViT-B/32 the largest difference of the
maps of every method and of the embeddings, relative to the largest value, and next to it what
rounding alone makes: how far OpenCLIP's model is from itself in double precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from captum_clip import ClipSimilarity, TextSimilarity, attr, load_clip, targets
from tests.builders import randomize
from tests.vendored.clip import model as published

TEXT: dict[str, Any] = {
    **{"context_length": 77, "vocab_size": 49408, "transformer_width": 512},
    **{"transformer_heads": 8, "transformer_layers": 12, "image_resolution": 224},
}
SIZES: dict[str, dict[str, Any]] = {
    "RN50-quickgelu": {
        **{"embed_dim": 1024, "vision_layers": (3, 4, 6, 3), "vision_width": 64},
        "vision_patch_size": None,
    },
    "ViT-B-32-quickgelu": {
        **{"embed_dim": 512, "vision_layers": 12, "vision_width": 768},
        "vision_patch_size": 32,
    },
}


def pair(name: str) -> tuple[Any, nn.Module]:
    """A model of the package, and one of OpenCLIP with its weights."""
    own = randomize(published.CLIP(**SIZES[name], **TEXT), 0)
    other = open_clip.create_model(name, pretrained=None)
    other.load_state_dict(own.state_dict())
    return own, other.eval()


def results(
    model: nn.Module,
    images: Tensor,
    ids: Tensor,
    methods: Iterable[type[Any]] = tuple(attr.METHODS.values()),
) -> dict[str, Tensor]:
    """Embeddings, and the maps of both sides by every method, for two targets."""
    clip = load_clip(model)
    sides: dict[str, Any] = {"text": (TextSimilarity, ids), clip.kind: (ClipSimilarity, images)}
    with torch.no_grad():
        features = clip.image_features(images)
        found = {"image embeddings": features, "text embeddings": clip.text_features(ids)}
    rows = torch.randn(2, features.shape[1], generator=torch.Generator().manual_seed(1))
    target = targets.embedding(rows.to(features.dtype))
    for method in methods:
        for side in [side for side in sides if side in method.towers]:
            similarity, inputs = sides[side]
            attribution = method(similarity(clip, target))
            found[f"{method.__name__}, {side}"] = attribution.attribute_targets(inputs)
    return found


def inputs() -> tuple[Tensor, Tensor]:
    """Two images and two texts, each between its start and its end."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.zeros(2, 77, dtype=torch.long)
    for row, length in enumerate((9, 5)):
        ids[row, 1:length] = torch.randint(1, 49406, (length - 1,), generator=generator)
        ids[row, 0], ids[row, length] = 49406, 49407
    return torch.randn(2, 3, 224, 224, generator=generator), ids


def difference(one: Tensor, other: Tensor) -> float:
    """The largest, relative to the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def main() -> None:
    """Print a line for each method, with what rounding alone makes."""
    images, ids = inputs()
    for name in SIZES:
        own, other = pair(name)
        found, expected = results(own, images, ids), results(other, images, ids)
        exact = results(other.double(), images.double(), ids)
        for what in found:
            rounding = difference(expected[what], exact[what])
            apart = difference(found[what], expected[what])
            print(f"{name:<20}{what:<40}{apart:.1e}  (rounding {rounding:.1e})", flush=True)


if __name__ == "__main__":
    main()
