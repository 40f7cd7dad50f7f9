"""Pictures of a report: curves of methods with their intervals, and best and worst examples."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from .. import maps as resizing
from .. import targets
from ..errors import CaptumClipError
from ..metrics.bootstrap import STATISTICS, bootstrap, interval_of
from ..models import ClipAdapter
from ..visualization.blend import blend
from ..visualization.curves import Curve, curves
from ..visualization.style import ALPHA, HEAT
from .batch import Batch, ModelContext, View, queries_of
from .methods import Method
from .plan import EvaluationPlan
from .summary import Summary
from .table import Table, readable

SIDE: Final = 144  # pixels of an example


def curve_bands(
    table: Table, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, Curve]:
    """Each method's mean curve with its interval: method -> (x, mean, low, high), each (F,).

    The table has the rows of a curve, of one metric; each image has a value at every `x` of its
    method. The interval is that of each point alone, over whole images.
    """
    bands: dict[str, Curve] = {}
    for method, rows in table.groupby("method", observed=True, sort=False):
        points = rows.pivot_table("value", "sample", "x", observed=True)
        images, columns = len(points), points.to_numpy().T[..., None]
        prepare = STATISTICS["mean"].prepare
        means = [prepare(np.arange(images), column, images) for column in columns]
        figures = bootstrap(means, images, resamples=resamples, seed=seed)
        mean, low, high = np.array([interval_of(point, level) for point in figures]).T
        if images == 1:  # says nothing of others
            low = high = np.full_like(mean, np.nan)
        bands[str(method)] = (points.columns.to_numpy(), mean, low, high)
    return bands


def perturbation_curves(
    most_first: Table, least_first: Table, summary: Summary, *, title: str = ""
) -> Figure:
    """The curves of all methods, most relevant first on the left, least relevant first beside.

    Both are rows of the long table. The legend has the summary's methods in their order, without
    those that have no rows; the reference is black and thick, the baselines are grey and thin.
    """
    both = (most_first, least_first)
    options = {"resamples": summary.resamples, "seed": summary.seed}
    bands = [curve_bands(table, level=summary.level, **options) for table in both]
    images = most_first.groupby("method", observed=True)["sample"].nunique().to_dict()
    most = max(images.values(), default=0)
    labels = {  # over fewer images than the others: say so where it is compared with them
        name: name if images.get(name, most) == most else f"{name} (n = {images[name]})"
        for name in summary.methods
        if any(name in panel for panel in bands)
    }
    return curves(
        *[{labels[name]: panel[name] for name in labels if name in panel} for panel in bands],
        headers=("most relevant first", "least relevant first"),
        title=title,
        xlabel="share of the pixels removed",
        ylabel="top-1 accuracy",
        reference=labels.get(summary.reference),
        baselines=[labels[name] for name in summary.baselines if name in labels],
        caption=f"Bands: {summary.level * 100:g} % bootstrap intervals at each point, over "
        f"{_count_images(both)}.",
    )


def _count_images(tables: Sequence[Table]) -> str:
    """How many images the methods have, in words."""
    by_method = [table.groupby("method", observed=True)["sample"].nunique() for table in tables]
    images = sorted({count for counts in by_method for count in counts})
    number = str(images[0]) if len(images) == 1 else f"{images[0]} to {images[-1]}"
    return f"{number} {'image' if images == [1] else 'images'}"


@dataclass(frozen=True)
class Example:
    """A row of the long table with a picture."""

    best: bool  # by its metric, or the worst
    sample: str
    region: str  # what is explained
    value: float
    picture: bytes  # the positive map over what the model saw, a JPEG file


def examples_of(
    plan: EvaluationPlan, table: Table, summary: Summary, clip: ClipAdapter
) -> dict[str, list[Example]]:
    """Metric -> its best and its worst example by the reference method.

    Of metrics whose figure is a mean over rows, each of one map; of equal rows the first.
    """
    [method] = [each for each in plan.methods if each.name == plan.reference]
    contexts = [ModelContext(clip, data, plan.config) for data in plan.data]
    of_task = {t: own for own, tasks in zip(contexts, plan.tasks, strict=True) for t in tasks}

    @cache
    def draw(context: ModelContext, sample: str, region: str) -> bytes:
        """A JPEG file; empty where the sample has no map of this region."""
        names = [readable(name) for name in context.data.names]
        views = Batch(context, [names.index(sample)]).views
        return _picture(context, method, views[0], region) if views else b""

    own = table[(table["method"] == plan.reference) & table["x"].isna()]
    rows = dict(iter(own.groupby("metric", observed=True)))
    examples: dict[str, list[Example]] = {}
    for metric in summary.metrics:
        if metric.statistic != "mean" or metric.better == "none" or metric.name not in rows:
            continue
        values = rows[metric.name].sort_values(["sample", "region"], kind="stable")
        low, high = (values.loc[i] for i in (values["value"].idxmin(), values["value"].idxmax()))
        pair = {True: high, False: low} if metric.better == "high" else {True: low, False: high}
        for best, row in pair.items():
            picture = draw(of_task[row["task"]], row["sample"], row["region"])
            if picture:
                example = Example(best, row["sample"], row["region"], row["value"], picture)
                examples.setdefault(metric.name, []).append(example)
    return examples


def _picture(context: ModelContext, method: Method, view: View, region: str) -> bytes:
    try:
        row = _target(context, view, region)
        heatmap = method.maps(context.clip, queries_of([view], row[None], [region]))[0]
    except CaptumClipError:  # a region of two texts, or a map that somebody else did not make
        return b""
    if not torch.isfinite(heatmap).all():
        return b""
    shown = resizing.normalize(resizing.upsample(heatmap.clamp(min=0).float(), view.size))
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
        return targets.words(context.clip, sample.caption, [region]).embeddings[0]
    for own in sample.regions:
        if own.text == region and context.config.against == "image" and own.reference is not None:
            return context.clip.encode_image(context.clip.preprocess([own.reference]))[0].detach()
    return context.encode([region])[0]
