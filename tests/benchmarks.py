"""The price of a map in plain forwards: ``python -m tests.benchmarks``.

True-size towers with random weights, in turn with the library's own forward on the same batch and
threads; medians over interleaved rounds. Nothing else may run beside it.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_clip import ClipSimilarity, attr, load_clip, targets

Run = Callable[[], Any]


def vit_of_transformers() -> torch.nn.Module:
    """ViT-B/32; its text tower is never run, and small."""
    from transformers import CLIPConfig, CLIPModel

    text = {"num_hidden_layers": 1}
    vision = {"patch_size": 32}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).eval()


def open_clip_model(name: str) -> torch.nn.Module:
    """An architecture that OpenCLIP lists."""
    import open_clip

    logging.disable(logging.WARNING)  # that the weights are random is meant
    model: torch.nn.Module = open_clip.create_model(name)
    return model.eval()


TOWERS: dict[str, Callable[[], torch.nn.Module]] = {
    "ViT-B/32, transformers": vit_of_transformers,
    "ViT-B/32, OpenCLIP": lambda: open_clip_model("ViT-B-32-quickgelu"),
    "RN101, OpenCLIP": lambda: open_clip_model("RN101-quickgelu"),
}


def plain(model: Any, images: Tensor) -> Run:
    """The library's own fastest forward."""
    transformers = hasattr(model, "get_image_features")
    forward = model.get_image_features if transformers else model.encode_image

    def run() -> None:
        with torch.no_grad() if transformers else torch.inference_mode():
            forward(images)

    return run


def jobs(model: Any, images: Tensor, counts: list[int], seed: int) -> dict[str, Run]:
    """Everything that is timed on one tower, by name."""
    clip = load_clip(model)
    width = clip.encode_image(images[:1]).shape[1]
    random = torch.Generator().manual_seed(seed)
    found: dict[str, Run] = {"plain forward": plain(model, images)}
    for count in counts:
        bank = targets.embedding(torch.randn(count, width, generator=random))
        similarity = ClipSimilarity(clip, bank)

        def own(pixels: Tensor, forward: ClipSimilarity = similarity) -> Tensor:
            return forward(pixels)

        for method in attr.METHODS.values():
            if (method is attr.ClipGradCam) != (clip.kind == "resnet"):
                continue
            if count > 1 and method in (attr.AttentionRollout, attr.AllGradAttention):
                continue  # one does not depend on the target, one repeats its backward
            for what, made in (("", method(similarity)), (", own callable", method(own, model))):
                name = f"{method.__name__}, {count} target{'s' * (count > 1)}{what}"
                found[name] = partial(made.attribute_targets, images)
    return found


def medians(found: dict[str, Run], repeats: int) -> dict[str, float]:
    """Median seconds of each, over rounds in which every one runs once."""
    for run in found.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(repeats):
        for name, run in found.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Print one table a tower."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--targets", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {arguments.batch}")
    for name, build in TOWERS.items():
        torch.manual_seed(arguments.seed)
        images = torch.randn(arguments.batch, 3, 224, 224)
        found = medians(jobs(build(), images, arguments.targets, arguments.seed), arguments.repeats)
        base = found["plain forward"]
        print(f"\n| {name} | forwards | ms |\n|---|---|---|")
        for job, seconds in found.items():
            print(f"| {job} | {seconds / base:.2f} | {1000 * seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
