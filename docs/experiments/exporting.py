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
from pathlib import Path

import torch

from captum_clip import ClipSimilarity, DirectContribution, exported, load_clip, targets
from captum_clip.demo import MODELS
from captum_clip.demo.catalog import NOUNS
from captum_clip.demo.scenes import draw_scene
from captum_clip.exported.writing import export

TEXTS = [f"a {noun}" for noun in NOUNS[:8]]
PRECISIONS = ("float32", "float16", "int8")


def medians(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Milliseconds of each call, which take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):  # the first round warms up
        for call, own in zip(calls, times, strict=True):
            begun = time.perf_counter()
            call()
            own.append(1000 * (time.perf_counter() - begun))
    return [statistics.median(own[1:]) for own in times]


def rows(name: str, folder: Path, rounds: int) -> list[list[str]]:
    """The lines of one model, one for each precision."""
    clip, lines = load_clip(name), []
    words = targets.text(clip, TEXTS)
    direct = DirectContribution(ClipSimilarity(clip, words))
    pixels = torch.cat([clip.preprocess(draw_scene(seed).image) for seed in range(16)])
    for precision in PRECISIONS:
        path = folder / f"{name.replace('/', '-')}-{precision}"
        off = export(clip, path, precision=precision)
        model = exported.load(path, threads=2)
        times = []
        for images in (pixels[:1], pixels):
            pair = medians(
                [
                    lambda images=images: direct.attribute_targets(images),
                    lambda images=images, model=model: (
                        model.vectors(images.numpy())[1] @ words.embeddings.numpy().T
                    ),
                ],
                rounds,
            )
            times += [f"{milliseconds:.1f}" for milliseconds in pair]
        size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
        lost = [f"{off[key]:.1g}" if key in off else "" for key in ("score", "cell")]
        lines.append([name, precision, f"{off['vectors']:.1g}", *lost, f"{size:.1f}", *times])
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[*MODELS])
    parser.add_argument("--rounds", type=int, default=7)
    typed = parser.parse_args()
    torch.set_num_threads(2)
    kinds = ["torch, 1", "ONNX, 1", "torch, 16", "ONNX, 16"]
    head = ["model", "weights", "vectors off", "score off", "cell off", "MB", *kinds]
    print("| " + " | ".join(head) + " |", "|---" * len(head) + "|", sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        for name in typed.models:
            for line in rows(name, Path(folder), typed.rounds):
                print("| " + " | ".join(line) + " |", flush=True)


if __name__ == "__main__":
    main()
