"""Models, data and cases that the tests of the evaluation share, each made once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captum_clip import ClipSimilarity, load_clip, targets
from captum_clip.evaluation.bench import Bench, Shared
from captum_clip.evaluation.chunk import read_chunk
from captum_clip.evaluation.config import EvaluationConfig
from captum_clip.evaluation.data import DataSet
from captum_clip.evaluation.methods import Method, Queries, method_of
from captum_clip.evaluation.metric import Rows
from captum_clip.evaluation.sample import Region, Sample
from captum_clip.evaluation.tasks import TASKS, Case, Found
from captum_clip.models import ClipAdapter
from tests import builders
from tests.evaluation.data.writing import LEFT, RIGHT, noise, save, save_mask

TEXTS = ("a horse", "a red barn", "a dog")


@lru_cache
def model(name: str) -> ClipAdapter:
    """An embedded model, or a small random one."""
    found: ClipAdapter
    found = load_clip(name) if name.startswith("demo/") else builders.BUILDERS[name]().load()
    return found


def settings(**given: Any) -> EvaluationConfig:
    """Settings for a bench; model and output play no part there."""
    return EvaluationConfig("any", "nowhere", **{"draws": 2, **given})


class Listed(DataSet):
    """Samples as they are given."""

    def __init__(self, *samples: Sample, classes: Sequence[str] = TEXTS, name: str = "listed"):
        self.samples = samples
        self.name = name
        self.names = tuple(sample.name for sample in samples)
        self.classes = tuple(classes)
        self.tasks = tuple(TASKS)

    def read(self, index: int) -> Sample:
        return self.samples[index]

    def identity(self) -> dict[str, Any]:
        return {}


def picture(seed: int = 0, size: int = 32) -> Image.Image:
    """Noise as large as the small models take it."""
    return noise((size, size), seed)


def half(which: str, size: int = 32) -> Any:
    """The mask of one half of an image, or of a quarter of it, as "top left"."""
    mask = np.zeros((size, size), dtype=bool)
    rows = slice(0, size // 2) if "top" in which else slice(size // 2, size)
    columns = slice(0, size // 2) if "left" in which else slice(size // 2, size)
    mask[
        rows if "top" in which or "bottom" in which else slice(None),
        columns if "left" in which or "right" in which else slice(None),
    ] = True
    return mask


def two_regions(name: str, seed: int = 0) -> Sample:
    """An image with two regions and a background."""
    regions = [Region("a horse", half("top left")), Region("a dog", half("bottom right"))]
    return Sample(name, picture(seed), tuple(regions))


def bench(clip: ClipAdapter, data: DataSet, **given: Any) -> Bench:
    return Bench(clip, data, settings(**given))


def case(bench: Bench, method: str | Method, numbers: Sequence[int] | None = None) -> Case:
    """One method on some samples, by default on all."""
    chosen = method_of(method, bench.clip) if isinstance(method, str) else method
    every = range(len(bench.data)) if numbers is None else numbers
    return Case(bench, Shared(bench, read_chunk(bench.data, every, bench.clip)), chosen)


def measured(
    task: str, bench: Bench, method: str | Method, numbers: Sequence[int] | None = None
) -> Found:
    """What a task finds for one method."""
    return TASKS[task].measure(case(bench, method, numbers))


def queries(clip: ClipAdapter, texts: Sequence[str] = TEXTS[:2], first: int = 0) -> Queries:
    """Small noise images with one text each."""
    pixels = clip.preprocess([picture(first + i, 96) for i in range(len(texts))])
    rows = targets.text(clip, list(texts)).bank
    names = tuple(f"image{first + i}" for i in range(len(texts)))
    return Queries(pixels, rows, names, tuple(texts), tuple(range(first, first + len(texts))))


def direct(clip: ClipAdapter, kind: Any, pixels: Tensor, row: Tensor, **options: Any) -> Tensor:
    """A class of this package or of Captum on one image (3, H, W): its map (h, w)."""
    forward = ClipSimilarity(clip, targets.embedding(row[None]))
    leaf = pixels[None].clone().requires_grad_()
    found: Tensor = kind(forward).attribute(leaf, target=0, **options)
    return found.detach().sum(1)[0]


def same_rows(found: Rows, expected: Rows, tolerance: float = 1e-5) -> None:
    """The same owners, and values up to rounding."""
    assert found.owners.tolist() == expected.owners.tolist()
    np.testing.assert_allclose(found.values, expected.values, atol=tolerance, rtol=tolerance)


def rows(owners: Sequence[int], values: Any) -> Rows:
    """Rows of numbers or tensors."""
    table = np.array([np.asarray(v, dtype=np.float64).reshape(-1) for v in values])
    return Rows(np.array(owners, dtype=np.int64), table)


def make_masks(folder: Path, count: int = 3) -> str:
    """A folder of images with two masks each, as "masks:FOLDER"."""
    for number in range(count):
        save(noise(seed=number), folder / f"images/image{number}.png")
        save_mask(LEFT, folder / f"masks/image{number}/a horse.png")
        save_mask(RIGHT, folder / f"masks/image{number}/a dog.png")
    return f"masks:{folder}"


def make_classes(folder: Path, count: int = 2) -> str:
    """A folder of images in folders of two classes, as "classes:FOLDER"."""
    for number in range(count):
        text = TEXTS[number % 2]
        save(noise(seed=number), folder / text / f"image{number}.png")
    return f"classes:{folder}"


def random_maps(folder: Path, samples: Sequence[str], texts: Sequence[str], **given: Any) -> Path:
    """A folder of maps that another method made, one a text."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(samples):
        shape = (len(texts), *given.get("grid", (5, 3)))
        heat = torch.rand(shape, generator=torch.Generator().manual_seed(number)).numpy()
        path = folder / f"{sample}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, maps=heat + given.get("offset", 0), names=np.array(texts))
    return folder
