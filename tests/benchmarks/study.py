"""Images per second of a study beside plain forward passes: ``python -m tests.benchmarks.study``.

A ViT-B/32 of true size with random weights, generated photographs, the same decoding for all, in
turn; medians over rounds. Nothing else may run beside it. Compared are

- a bare loop: decode, plain forward (transformers' fused attention, no gradient), nothing kept;
- the statistics study with eight targets, everything but the value entropy, files and pictures too;
- the naive way: decode, and for each target one forward with all attentions and one full backward.

All with the model loaded: from the first image to the end.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captum_clip import load_clip
from captum_clip.bench.run import StudyConfig
from captum_clip.bench.study import run_study
from captum_clip.folders.storage import ImageReader, read_ahead, storage_of
from captum_clip.folders.workers import preprocess_alone
from tests import builders

TEXTS = tuple(f"a thing number {number}" for number in range(8))


@dataclass(frozen=True)
class Setting:
    """What all ways have in common."""

    model: str
    images: Path
    batch_size: int
    workers: int
    slow_images: int  # images of the naive way, which takes so long


Way = Callable[[Setting], float]
"""Runs once; images a second, from the first image on, with the model loaded."""


def make_model(folder: Path, seed: int) -> str:
    """A ViT-B/32 with random weights, a byte tokenizer and CLIP's own preprocessing."""
    from transformers import CLIPConfig, CLIPModel

    text = {"num_hidden_layers": 1, "vocab_size": 259, "bos_token_id": 257, "eos_token_id": 258}
    torch.manual_seed(seed)
    config = CLIPConfig(text_config=text, vision_config={"patch_size": 32})
    CLIPModel(config).save_pretrained(folder)
    builders.hf_processor(224).save_pretrained(folder)
    builders.byte_tokenizer().save_pretrained(folder)
    return str(folder)


def make_images(folder: Path, count: int, size: tuple[int, int], seed: int) -> None:
    """JPEG files of colored blobs, as smooth as photographs are."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(count):
        blobs = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        picture = blobs.resize(size, Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:05d}.jpg", quality=90)


@contextmanager
def batches(clip: Any, setting: Setting, count: int | None = None) -> Iterator[Iterator[Tensor]]:
    """Decoded as in a study, the first `count` of them."""
    names = sorted(path.name for path in setting.images.iterdir())[:count]
    size = setting.batch_size
    prepare = partial(preprocess_alone, clip.processor, (224, 224))
    reader = ImageReader(storage_of(setting.images), names, prepare)
    with read_ahead(reader, range(len(names)), setting.workers, batch=size) as stream:
        images = (image for image in stream if isinstance(image, Tensor))
        yield map(torch.stack, iter(lambda: list(islice(images, size)), []))


def plain(setting: Setting) -> float:
    """Decode and run the library's own forward."""
    clip = load_clip(setting.model)
    model: Any = clip.model
    done, begin = 0, time.perf_counter()
    with torch.no_grad(), batches(clip, setting) as stream:
        for pixels in stream:
            model.get_image_features(pixels)
            done += len(pixels)
    return done / (time.perf_counter() - begin)


def study(setting: Setting) -> float:
    """The study from its first image to its last file, into a folder that is thrown away."""
    begin = 0.0

    def progress(done: int, total: int, _: str) -> None:
        nonlocal begin
        begin = begin or time.perf_counter()

    with tempfile.TemporaryDirectory() as output:
        config = StudyConfig(
            str(setting.images),
            output,
            TEXTS,
            (setting.model,),
            ("last-grad",),
            batch_size=setting.batch_size,
            workers=setting.workers,
        )
        found = run_study(config, progress=progress)
        return found.images / (time.perf_counter() - begin)


def naive(setting: Setting) -> float:
    """Decode, and for each target one forward with attentions and one backward through it all."""
    clip = load_clip(setting.model)
    model: Any = clip.model
    model.set_attn_implementation("eager")
    rows = clip.encode_text(list(TEXTS)).detach()
    done, begin = 0, time.perf_counter()
    with batches(clip, setting, setting.slow_images) as stream:
        for pixels in stream:
            for row in rows:
                attention_gradients(model, pixels, row)
            done += len(pixels)
    return done / (time.perf_counter() - begin)


def attention_gradients(model: Any, pixels: Tensor, row: Tensor) -> tuple[Tensor, ...]:
    """Of the cosine with one row, at every layer's attention."""
    found = model.vision_model(pixels, output_attentions=True)
    features = model.visual_projection(found.pooler_output)
    score = torch.nn.functional.normalize(features, dim=-1) @ row
    return torch.autograd.grad(score.sum(), found.attentions)


def medians(setting: Setting, ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """Images a second of each way, over rounds in which every one runs once."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way(setting))
    return {name: statistics.median(rates) for name, rates in found.items()}


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--slow-images", type=int, default=32, help="images of the naive way")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("W", "H"))
    parser.add_argument("--naive", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    ways: dict[str, Way] = {"plain forwards": plain, "statistics study, 8 targets": study}
    if arguments.naive:
        ways["forward and full backward for each target"] = naive
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        make_images(images, arguments.images, tuple(arguments.size), arguments.seed)
        model = make_model(Path(folder, "vit-b-32"), arguments.seed)
        setting = Setting(
            model, images, arguments.batch_size, arguments.workers, arguments.slow_images
        )
        plain(setting)  # warm: files in the cache, threads made
        found = medians(setting, ways, arguments.rounds)
    width, height = arguments.size
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.workers} "
        f"workers, batch {arguments.batch_size}, {arguments.images} images of {width} x {height}\n"
    )
    print("| | images per second | relative to plain forwards |\n|---|---|---|")
    for name, rate in found.items():
        print(f"| {name} | {rate:.2f} | {rate / found['plain forwards']:.3f} |")


if __name__ == "__main__":
    main()
