"""Models, data and cases that the tests of the evaluation share, each made once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from captum_clip import ClipSimilarity, attr, load_clip, targets
from captum_clip.bench.batch import Batch, MethodOnBatch, ModelContext
from captum_clip.bench.data.base import DataSet, NamedRegion, Sample
from captum_clip.bench.methods import WITHOUT_MAP, Method, method_of, predictor
from captum_clip.bench.run import Arrays, EvaluationConfig
from captum_clip.bench.table import Queries, join_tables, rows_of, table_of
from captum_clip.bench.tasks import TASKS
from captum_clip.models import ClipAdapter
from tests import builders
from tests.bench.data.writing import LEFT, RIGHT, noise, save, save_mask
from tests.photographs import write_samples

KINDS: dict[str, tuple[str, Any]] = {
    "demo/vit": ("last-grad", attr.LastGradAttention),
    "demo/resnet": ("grad-cam", attr.ClipGradCam),
}
TEXTS = ("a horse", "a red barn", "a dog")


SMALL: dict[str, Any] = {
    "methods": ("last-grad", "rollout", "random"),
    "tasks": ("localization", "signs"),
    "chunk_size": 2,
    "resamples": 20,
    "threads": 1,
}
"""Settings of an evaluation that takes a second."""


@lru_cache
def model(name: str) -> ClipAdapter:
    """An embedded model, or a small random one."""
    found: ClipAdapter
    found = load_clip(name) if name.startswith("demo/") else builders.BUILDERS[name]().load()
    return found


def settings(**given: Any) -> EvaluationConfig:
    """Settings of a context; model and output play no part there."""
    return EvaluationConfig("any", "nowhere", **{"draws": 2, **given})


class Listed(DataSet):
    """Samples as they are given."""

    def __init__(self, *samples: Sample, classes: Sequence[str] = TEXTS, name: str = "listed"):
        self.samples = samples
        self.name = name
        self.names = tuple(sample.name for sample in samples)
        self.classes = tuple(classes)
        self.truth = ("masks", "objects", "scenes", "classes")

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
    regions = [NamedRegion("a horse", half("top left")), NamedRegion("a dog", half("bottom right"))]
    return Sample(name, picture(seed), tuple(regions))


def context(clip: ClipAdapter, data: DataSet, **given: Any) -> ModelContext:
    return ModelContext(clip, data, settings(**given))


def on_batch(
    context: ModelContext, method: str | Method, numbers: Sequence[int] | None = None
) -> MethodOnBatch:
    """One method on some samples, by default on all."""
    chosen = method_of(method, context.clip) if isinstance(method, str) else method
    every = range(len(context.data)) if numbers is None else numbers
    return MethodOnBatch(Batch(context, every), chosen)


class Rows(NamedTuple):
    """The rows of a metric with their parts side by side; of a curve with its points."""

    owners: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    x: tuple[float, ...] = ()
    regions: tuple[str, ...] = ()


def joined(blocks: Iterable[Arrays]) -> dict[str, Rows]:
    """Metric -> its rows, of all that tasks measured; a metric without rows is left out."""
    columns: dict[str, dict[tuple[str, str], list[Arrays]]] = {}
    for block in blocks:
        for part in dict.fromkeys(block["part"].tolist()):
            kept = block["part"] == part
            chosen = {name: column[kept] for name, column in block.items()}
            of = columns.setdefault(chosen["metric"][0], {})
            of.setdefault((part, str(chosen["x"][0])), []).append(chosen)
    return {metric: _side_by_side(of) for metric, of in columns.items()}


def _side_by_side(columns: dict[tuple[str, str], list[Arrays]]) -> Rows:
    first = next(iter(columns.values()))
    owners = np.concatenate([block["sample"] for block in first])
    regions = tuple(np.concatenate([block["region"] for block in first]).tolist())
    values = [np.concatenate([block["value"] for block in blocks]) for blocks in columns.values()]
    x = tuple(float(x) for _, x in columns)
    return Rows(owners, np.stack(values, axis=1), x, regions)


def long_table(method: str, metric: str, parts: Sequence[str], rows: Rows) -> Any:
    """Rows as the long table has them; regions count in their sample unless they have names."""
    owners = rows.owners.tolist()
    regions = rows.regions or [f"{owners[:n].count(owner)}" for n, owner in enumerate(owners)]
    columns = {
        part: torch.from_numpy(rows.values[:, place].copy()) for place, part in enumerate(parts)
    }
    names = [str(number) for number in range(max(owners, default=0) + 1)]
    table = join_tables(
        [(table_of(method, {"task": [rows_of(metric, columns, owners, regions)]}), names)]
    )
    return table.astype(
        dict.fromkeys(("metric", "method", "region", "part", "task"), str) | {"sample": int}
    )


def measured(
    task: str, context: ModelContext, method: str | Method, numbers: Sequence[int] | None = None
) -> dict[str, Rows]:
    """What a task finds for one method, or for a predictor without a map."""
    if isinstance(method, str) and method in WITHOUT_MAP:
        method = predictor(method)
    batch = on_batch(context, method, numbers)
    return joined(TASKS[task].rows(batch.samples, batch))


def queries(clip: ClipAdapter, texts: Sequence[str] = TEXTS[:2], first: int = 0) -> Queries:
    """Small noise images with one text each."""
    pixels = clip.preprocess([picture(first + i, 96) for i in range(len(texts))])
    rows = targets.text(clip, list(texts)).embeddings
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
    """A list of images of two classes."""
    records = []
    for number in range(count):
        text = TEXTS[number % 2]
        image = save(noise(seed=number), folder / text / f"image{number}.png")
        records.append({"image": str(image.relative_to(folder)), "label": text})
    return write_samples(folder, *records)


def random_maps(folder: Path, samples: Sequence[str], texts: Sequence[str], **given: Any) -> Path:
    """A folder of maps that another method made, one per text."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(samples):
        shape = (len(texts), *given.get("grid", (5, 3)))
        heatmap = torch.rand(shape, generator=torch.Generator().manual_seed(number)).numpy()
        path = folder / f"{sample}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, maps=heatmap + given.get("offset", 0), names=np.array(texts))
    return folder
