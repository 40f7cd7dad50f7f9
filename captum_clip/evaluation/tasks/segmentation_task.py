"""Which class is each pixel of? The maps of all classes together, against label images."""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from ... import maps
from ...explaining import regions
from ...maps import Box, Threshold
from ...models import ClipAdapter
from ...models.geometry import crop_of
from ..batch import Batch, MethodOnBatch, Task, View, finite_indices
from ..data import DataSet
from ..table import Queries, listed, rows_of
from ..units import Arrays, Skipped


def _measure(batch: MethodOnBatch) -> Iterator[Arrays]:
    """Samples with a label image."""
    data, levels = batch.context.data, dict[str, Threshold | None]({"": None})
    if data.background:
        levels = {"": "mean", "_half": 0.5}
    for view in batch.samples.views:
        heatmap = None if view.sample.labels is None else _maps_of_classes(batch, view)
        if heatmap is None:
            continue
        whole = (0, 0, heatmap.shape[2], heatmap.shape[1])
        for end, level in levels.items():
            marked = regions.label_map(heatmap, whole, level, data.classes).labels.long()
            decided = torch.where(marked > 0, marked - 1, len(data.classes))
            yield from _rows(end, view, decided, data)


def _measure_best_class(samples: Batch) -> Iterator[Arrays]:
    """One class for all pixels: the one with the highest score, mean over the windows."""
    context = samples.context
    for view in samples.views:
        if view.sample.labels is not None:
            _, pixels = _windows_of(samples, view)
            best = context.scores(pixels, context.encode(context.data.classes)).mean(0).argmax()
            for end in ("", "_half")[: 1 + context.data.background]:
                decided = best.expand(view.sample.labels.shape)
                yield from _rows(end, view, decided, context.data)


def _rows(end: str, view: View, decided: Tensor, data: DataSet) -> Iterator[Arrays]:
    """Compare the class (H, W) of each pixel, of background the number of classes, with truth."""
    truth = torch.from_numpy(view.sample.labels).to(decided.device)
    count, names = len(data.classes), (*data.classes, *("background",) * data.background)
    cells = ((count + 1) * truth + decided)[truth >= 0]
    table = torch.bincount(cells, minlength=(count + 1) ** 2).view(count + 1, -1)
    right, either = table.diagonal(), table.sum(0) + table.sum(1) - table.diagonal()
    # of every class, so that all methods have the same rows and can be paired
    parts = {"class": torch.arange(len(names)), "intersection": right, "union": either}
    columns = {column: values[: len(names)] for column, values in parts.items()}
    yield rows_of(f"miou{end}", columns, [view.number] * len(names), names)
    share = {"numerator": right.sum()[None], "denominator": table.sum()[None]}
    yield rows_of(f"aacc{end}", share, [view.number], ["all classes"])


SEGMENTATION: Final = Task(
    lambda config: listed("segmentation"),
    _measure,
    ("label images",),
    without_map={"best-class": _measure_best_class},
)
"""The maps of all classes against label images, as semantic segmentation is measured."""


def _maps_of_classes(batch: MethodOnBatch, view: View) -> Tensor | None:
    """Positive maps (K, H, W) of all classes on a photo; None where one of them is not finite."""
    clip, classes = batch.clip, tuple(batch.context.data.classes)
    size = view.sample.image.size[::-1]
    embeddings, count = batch.context.encode(classes), len(classes)
    names = (view.sample.name,) * count
    numbers = tuple(view.number * count + place for place in range(count))  # random maps differ
    if batch.method.of_photos:
        boxes: list[Box] = [(0, 0, size[1], size[0])]
        pixels = view.pixels.new_zeros(1, 1, 1, 1).expand(1, 3, *size)  # only their size is read
    else:
        boxes, pixels = _windows_of(batch.samples, view)
    heatmap, times = embeddings.new_zeros(count, *size), embeddings.new_zeros(size)
    for box, window in zip(boxes, pixels, strict=True):
        repeated = window.expand(count, -1, -1, -1)
        queries = Queries(repeated, embeddings, names, classes, numbers)
        parts = [queries] if batch.method.of_photos else queries.split(batch.config.batch_size)
        raw = torch.cat([batch.method.maps_of_image(clip, chunk) for chunk in parts])
        if len(finite := finite_indices(raw)) < count:
            lost = classes[min({*range(count)} - {*finite})]
            reason = batch.method.failure_reason(view.sample.name, lost)
            batch.skipped.append(Skipped(view.number, f"{batch.method.name}: {reason}"))
            return None
        heatmap += maps.uncrop(maps.positive(raw), box, size)
        times += maps.uncrop(torch.ones_like(raw[0]), box, size)
    return heatmap / times.clamp(min=1)


def _windows_of(samples: Batch, view: View) -> tuple[list[Box], Tensor]:
    key = f"windows of {view.number}"
    return samples.remember(key, lambda: _windows(view.sample.image, samples.context.clip))


def _windows(image: Image, clip: ClipAdapter) -> tuple[list[Box], Tensor]:
    """Boxes that a model sees of overlapping squares over a photo, and pixels (n, 3, H, W)."""
    side, length = sorted(image.size)
    count = math.ceil(2 * (length - side) / side) + 1
    starts = np.linspace(0, length - side, count).round().astype(int).tolist()
    corners = [(start, 0) if image.width > side else (0, start) for start in starts]
    pixels = clip.preprocess([image.crop((x, y, x + side, y + side)) for x, y in corners])
    left, top, right, bottom = crop_of(clip.processor, (side, side)).box
    return [(x + left, y + top, x + right, y + bottom) for x, y in corners], pixels
