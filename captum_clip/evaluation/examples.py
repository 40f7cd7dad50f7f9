"""The samples on which one method is best and worst by each metric, as small pictures."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from .. import maps as resizing
from .. import targets
from ..errors import CaptumClipError
from ..models import ClipAdapter
from ..visualization.blend import blend
from ..visualization.style import ALPHA, HEAT
from .batch import Batch, View
from .method_on_batch import queries_of
from .methods import Method
from .model_context import ModelContext
from .plan import Plan
from .summary import Summary
from .table import Table, readable

SIDE: Final = 144  # pixels


@dataclass(frozen=True)
class Example:
    """A row of the long table with a picture.

    Attributes:
        best: whether it is the best by its metric, or the worst.
        sample: name of the image.
        region: what is explained.
        value: the figure.
        picture: the positive map over what the model saw, a JPEG file.
    """

    best: bool
    sample: str
    region: str
    value: float
    picture: bytes


def examples_of(
    plan: Plan, table: Table, summary: Summary, clip: ClipAdapter
) -> dict[str, list[Example]]:
    """Metric -> its best and its worst example by the reference method.

    Of metrics whose figure is a mean over rows, each of one map; of equal rows the first.
    """
    own = table[(table["method"] == plan.reference) & table["x"].isna()]
    rows = dict(iter(own.groupby("metric", observed=True)))
    pictures = _Pictures(plan, clip)
    found: dict[str, list[Example]] = {}
    for metric in summary.metrics:
        if metric.statistic != "mean" or metric.better == "none" or metric.name not in rows:
            continue
        values = rows[metric.name].sort_values(["sample", "region"], kind="stable")
        low, high = (values.loc[i] for i in (values["value"].idxmin(), values["value"].idxmax()))
        pair = {True: high, False: low} if metric.better == "high" else {True: low, False: high}
        for best, row in pair.items():
            picture = pictures.draw(row["task"], row["sample"], row["region"])
            if picture:
                example = Example(best, row["sample"], row["region"], row["value"], picture)
                found.setdefault(metric.name, []).append(example)
    return found


class _Pictures:
    """Pictures of the reference method's maps, each made once."""

    def __init__(self, plan: Plan, clip: ClipAdapter) -> None:
        [self._method] = [m for m in plan.methods if m.name == plan.reference]
        self._of_task = {
            task: ModelContext(clip, data, plan.config)
            for data, tasks in zip(plan.data, plan.tasks, strict=True)
            for task in tasks
        }
        self._made: dict[tuple[str, str, str], bytes] = {}

    def draw(self, task: str, sample: str, region: str) -> bytes:
        """A JPEG file; empty where the sample has no map of this region."""
        context = self._of_task[task]
        key = (context.data.name, sample, region)
        if key not in self._made:
            self._made[key] = b""
            names = [readable(name) for name in context.data.names]
            batch = Batch(context, [names.index(sample)])
            for view in batch.views:
                self._made[key] = _picture(context, self._method, view, region)
        return self._made[key]


def _picture(context: ModelContext, method: Method, view: View, region: str) -> bytes:
    try:
        row = _target(context, view, region)
        heat = method.maps(context.clip, queries_of([view], row[None], [region]))[0]
    except CaptumClipError:  # a region of two texts, or a map that somebody else did not make
        return b""
    if not torch.isfinite(heat).all():
        return b""
    shown = resizing.normalize(resizing.upsample(heat.clamp(min=0).float(), _size(view.pixels)))
    image = context.clip.denormalize(view.pixels[None])[0].movedim(0, -1).cpu().numpy()
    mixed = blend(image, shown.cpu().numpy(), colormaps[HEAT], ALPHA)
    picture = Image.fromarray((255 * mixed).round().astype(np.uint8))
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=82)
    return file.getvalue()


def _target(context: ModelContext, view: View, region: str) -> Tensor:
    """The unit row (D,) that stands for a region."""
    sample = view.sample
    if sample.caption is not None and region in (own.text for own in sample.regions):
        return targets.words(context.clip, sample.caption, [region]).bank[0]
    for own in sample.regions:
        if own.text == region and context.config.against == "image" and own.reference is not None:
            return context.clip.encode_image(context.clip.preprocess([own.reference]))[0].detach()
    return context.encode([region])[0]


def _size(pixels: Tensor) -> tuple[int, int]:
    return pixels.shape[-2], pixels.shape[-1]
