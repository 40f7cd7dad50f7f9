"""Which of three copies carries the score? Against scenes drawn with every subset of them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ... import maps, metrics
from ...metrics.map_statistics import spearman
from ..batch import Batch, MethodOnBatch, Task, View, finite_indices, queries_of
from ..table import Table, listed, rows_of, table_of
from ..units import Arrays
from .pairs_task import removals

_TRUTHS: Final = ["adds", "removal"]
_RING: Final = 8  # pixels around a copy that say what lies behind it
_FOLDS: Final = 5
_FEATURES: Final = "_features"
SPREAD: Final = "_spread"
"""Ends the metrics of the effects' standard deviation in a scene, with their size."""
Scene = tuple[View, Tensor, Tensor]


def _scenes(samples: Batch) -> Iterator[Scene]:
    """Each view of all copies, the scores (2^n,) of their subsets, and both truths (2, n)."""
    for view in samples.views:
        if view.number in samples.subset_scores:
            scores = samples.subset_scores[view.number][:1].double()  # of the text of all copies
            yield view, scores[0], torch.cat([metrics.shapley_effects(scores), removals(scores)])


def _rows(kind: str, number: int, answers: Tensor, truths: Tensor) -> Iterator[Arrays]:
    """Compare what is said of n copies, (2, n) or (n,), with both truths (2, n)."""
    first, second = torch.triu_indices(truths.shape[1], truths.shape[1], 1)
    # Equal masses differ by rounding, of which no rank may be made.
    scale = answers.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.double).tiny)
    rounded = (answers.double() / scale).round(decimals=9).to(truths.device).expand_as(truths)
    for name, answer, effect in zip(_TRUTHS, rounded, truths, strict=True):
        gap, order = effect[first] - effect[second], answer[first] - answer[second]
        right = gap.abs() * (1 + order.sign() * gap.sign()) / 2
        share = {"numerator": right.sum()[None], "denominator": gap.abs().sum()[None]}
        rank = spearman(answer, effect)[None]
        yield rows_of(f"{kind}_{name}_rank", rank, [number], [""], chance=0)
        yield rows_of(f"{kind}_{name}_order", share, [number], [""])


def _measure(kind: str, batch: MethodOnBatch) -> Iterator[Arrays]:
    scenes = [*_scenes(batch.samples)]
    if not scenes:
        return
    texts = [view.regions[0].text for view, _, _ in scenes]
    queries = queries_of([view for view, _, _ in scenes], batch.context.encode(texts), texts)
    kept, raw = batch.compute_finite(queries)
    if not kept:
        return
    negative = batch.compute_negative(queries.select(kept), raw)
    signed = maps.positive(raw) - (0 if negative is None else negative)
    for index in finite_indices(signed):
        view, _, truths = scenes[kept[index]]
        mass = metrics.object_mass(signed[index].double(), view.masks)
        yield from _rows(kind, view.number, mass, truths)


def _answer(
    kind: str, answer: Callable[[Batch, Scene], Tensor], samples: Batch
) -> Iterator[Arrays]:
    """Measure an answer, (2, n) or (n,), that looks at no map."""
    for scene in _scenes(samples):
        yield from _rows(kind, scene[0].number, answer(samples, scene), scene[2])


def _describe(kind: str, describe: Callable[[View], Tensor], samples: Batch) -> Iterator[Arrays]:
    """Rows of features (n, F) with the truths, from which :func:`fitted` predicts."""
    for view, _, truths in _scenes(samples):
        columns = {str(place): column for place, column in enumerate(describe(view).T)}
        columns |= dict(zip(_TRUTHS, truths, strict=True))
        names = [f"copy {place}" for place in range(len(view.masks))]
        yield rows_of(kind + _FEATURES, columns, [view.number] * len(names), names)
        for name, effect in zip(_TRUTHS, truths, strict=True):
            spread = {"deviation": effect.std()[None], "size": effect.abs().mean()[None]}
            yield rows_of(f"{kind}_{name}{SPREAD}", spread, [view.number], [""])


def _colors(view: View) -> tuple[Tensor, Tensor]:
    """The mean colors (n, 3) of each copy, and of what is around it."""
    wide = F.max_pool2d(view.masks[:, None].float(), 2 * _RING + 1, 1, _RING)[:, 0] > 0
    inside, around = (
        torch.stack([view.pixels[:, mask].mean(1) for mask in masks])
        for masks in (view.masks, wide & ~view.masks.any(0))
    )
    return inside, around


def _painted(samples: Batch, scene: Scene) -> Tensor:
    """What the score loses when a copy is painted over with the mean color around it."""
    view, scores, _ = scene
    pixels = torch.where(view.masks[:, None], _colors(view)[1][:, :, None, None], view.pixels)
    text = samples.context.encode([view.regions[0].text])
    return scores[-1] - samples.context.scores(pixels, text)[:, 0].double()


def _contrast(view: View) -> Tensor:
    inside, around = _colors(view)
    distance: Tensor = torch.linalg.vector_norm(inside - around, dim=1, keepdim=True)
    return distance


def _edges(view: View) -> Tensor:
    """The sum (n, 1) of the steps of brightness in each copy and at its rim."""
    bright = view.pixels.mean(0)
    steps = bright.diff(dim=0).abs()[:, 1:] + bright.diff(dim=1).abs()[1:]
    wide = F.max_pool2d(view.masks[:, None].float(), 3, 1, 1)[:, 0, 1:, 1:]
    sums: Tensor = torch.einsum("nij,ij->n", wide, steps)
    return sums[:, None]


def _place(view: View) -> Tensor:
    """The center (n, 2) of each copy in [-1, 1], with both squares and the product."""
    axes = [torch.linspace(-1, 1, side, device=view.masks.device) for side in view.size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    centers = torch.stack([grid[:, mask].mean(1) for mask in view.masks])
    return torch.cat([centers, centers.square(), centers.prod(1, keepdim=True)], 1)


def fitted(table: Table) -> Iterator[tuple[Arrays, Sequence[str]]]:
    """The rows of what contrast, edges and place predict, each scene by a fit to the other folds.

    Least squares of the effects on the features, both less their mean within a scene.
    """
    rows = table[table["metric"].astype(str).str.endswith(_FEATURES)]
    names = [*table["sample"].cat.categories]
    for (metric, method), chosen in rows.groupby(["metric", "method"], observed=True):
        kind, blocks = metric.removesuffix(_FEATURES), list[Arrays]()
        wide = chosen.pivot_table("value", ["sample", "region"], "part", observed=True)
        scene = wide.index.get_level_values("sample").map(names.index).to_numpy()
        centered = wide - wide.groupby("sample", observed=True).transform("mean")
        effects, features = centered[_TRUTHS].to_numpy(), centered.drop(columns=_TRUTHS).to_numpy()
        for fold in range(_FOLDS):
            held = scene % _FOLDS == fold
            weights = np.linalg.lstsq(features[~held], effects[~held])[0]
            for number in dict.fromkeys(scene[held].tolist()):
                here = scene == number
                pair = torch.from_numpy((features[here] @ weights).T), effects[here].T
                blocks += _rows(kind, number, pair[0], torch.from_numpy(pair[1]))
        yield table_of(method, {kind: blocks}), names


def _task(kind: str, what: str) -> Task:
    answers: dict[str, Callable[[Batch, Scene], Tensor]] = {
        "named": lambda samples, scene: torch.ones(1),
        "score": lambda samples, scene: scene[1][-1:],
        "text-only": lambda samples, scene: torch.ones(1),
        "area": lambda samples, scene: torch.tensor([r.mask.sum() for r in scene[0].regions]),
        "painted": _painted,
        "other-truth": lambda samples, scene: scene[2].flip(0),
    }
    features = {"contrast": _contrast, "edges": _edges, "place": _place}
    predictors = {name: partial(_answer, kind, answer) for name, answer in answers.items()}
    predictors |= {name: partial(_describe, kind, look) for name, look in features.items()}
    metrics = partial(listed, "copies", kind=kind, what=what)
    rivals = ("magnitude", "last-attention")
    return Task(
        lambda config: metrics(), partial(_measure, kind), (kind,), True, predictors, rivals
    )


THIRDS: Final = _task("thirds", "Each without another third")
"""Three copies, each without another third."""

IDENTICAL: Final = _task("identical", "All pixel for pixel the same")
"""The same copy three times."""
