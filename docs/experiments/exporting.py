"""How far an exported model is from the model, its size, and its time.

``python docs/experiments/exporting.py`` takes names of models, by default the embedded ones. Times
are medians of interleaved rounds on two threads: maps of one image and of sixteen for eight texts,
preprocessing and texts left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from captum_clip import ClipSimilarity, DirectContribution, load_clip, targets
from captum_clip.apps import exported
from captum_clip.apps.export import export
from captum_clip.demo import MODELS
from captum_clip.demo.catalog import NOUNS
from captum_clip.demo.scenes import draw_scene

TEXTS = [f"a {noun}" for noun in NOUNS[:8]]


def medians(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Milliseconds of each call, which take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):  # the first round warms up
        for call, own in zip(calls, times, strict=True):
            begun = time.perf_counter()
            call()
            own.append(1000 * (time.perf_counter() - begun))
    return [statistics.median(own[1:]) for own in times]


def row(name: str, folder: Path, rounds: int) -> list[str]:
    """The line of one model."""
    clip = load_clip(name)
    words = targets.text(clip, TEXTS)
    direct = DirectContribution(ClipSimilarity(clip, words))
    pixels = torch.cat([clip.preprocess(draw_scene(seed).image) for seed in range(16)])
    path = folder / name.replace("/", "-")
    off = export(clip, path)
    model = exported.load(path, threads=2)
    times: list[float] = []
    for images in (pixels[:1], pixels):
        calls = [
            partial(direct.attribute_targets, images),
            lambda images=images: model.vectors(images.numpy())[1] @ words.embeddings.numpy().T,
        ]
        times += medians(calls, rounds)
    size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
    return [name, f"{off['vectors']:.1g}", f"{size:.1f}", *(f"{time:.1f}" for time in times)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[*MODELS])
    parser.add_argument("--rounds", type=int, default=7)
    typed = parser.parse_args()
    torch.set_num_threads(2)
    kinds = ["torch, 1", "ONNX, 1", "torch, 16", "ONNX, 16"]
    head = ["model", "vectors off", "MB", *kinds]
    print("| " + " | ".join(head) + " |", "|---" * len(head) + "|", sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        for name in typed.models:
            print("| " + " | ".join(row(name, Path(folder), typed.rounds)) + " |", flush=True)


if __name__ == "__main__":
    main()
