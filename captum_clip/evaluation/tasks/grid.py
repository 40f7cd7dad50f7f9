"""GridPG: does the map of a class lie in its own cell of a grid?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ... import maps as resizing
from ... import metrics
from ...runs import Arrays
from ..batch import Batch, View
from ..config import EvaluationConfig
from ..method_on_batch import MethodOnBatch, queries_of
from ..metric import Metric
from ..table import rows_of
from .base import Task

_CONFIDENCE: Final = 0.5
_SCALE: Final = 100  # of cosines before the softmax, where CLIP's own training stops it


class GridPointing(Task):
    """Positive maps of classes in mosaics, of the cells that the model is sure of."""

    name = "grid"

    @override
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        sure = (
            f"of cells that the model, shown them alone, puts into their class with a probability "
            f"of {_CONFIDENCE:g} or more (softmax of {_SCALE} times the cosines with all classes)"
        )
        protocol = f"share of the positive mass in the cell of the class; chance is .25; {sure}"
        return {"GridPG": [Metric("grid_pg", protocol, constant=0.25)]}

    @override
    def measure(self, maps: MethodOnBatch) -> Iterator[Arrays]:
        """Samples whose regions have classes."""
        cells = _cells(maps.batch)
        sure = maps.batch.remember("sure of cells", lambda: _sure(maps.batch))
        chosen = [cell for cell, known in zip(cells, sure.tolist(), strict=True) if known]
        if not chosen:
            return
        labels = [view.regions[place].label or 0 for view, place in chosen]
        texts = [maps.context.data.classes[label] for label in labels]
        queries = queries_of([v for v, _ in chosen], maps.context.classes[labels], texts)
        kept, raw = maps.compute_finite(queries)
        if kept:
            masks = torch.stack([chosen[i][0].masks[chosen[i][1]] for i in kept])
            share = metrics.grid_pointing_game(resizing.positive(raw), masks)
            own = queries.part(kept)
            yield rows_of("grid_pg", share, own.numbers, own.texts)


def _cells(batch: Batch) -> list[tuple[View, int]]:
    """Every region that has a class, as its view and its place there."""
    return [
        (view, place)
        for view in batch.views
        for place, region in enumerate(view.regions)
        if region.label is not None
    ]


def _sure(batch: Batch) -> Tensor:
    """Whether the model knows each of the :func:`_cells` alone, cut out of its picture, (N,)."""
    cells = _cells(batch)
    if not cells:
        return torch.zeros(0, dtype=torch.bool)
    pictures, labels = [], []
    for view, place in cells:
        region = view.regions[place]
        rows, columns = (np.flatnonzero(region.mask.any(axis)) for axis in (1, 0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        pictures.append(view.sample.image.crop(box))
        labels.append(region.label)
    context = batch.context
    scores = context.scores(context.clip.preprocess(pictures), context.classes)
    confidence, found = (_SCALE * scores.double()).softmax(1).max(1)
    return (found == torch.tensor(labels, device=found.device)) & (confidence >= _CONFIDENCE)
