"""Does a map predict what changes do to the score, and does it stay where little changes?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from ... import metrics
from ...errors import InputError
from ...metrics.masked_changes import MaskedChanges, infidelity_of
from ...runs import Arrays
from ..config import EvaluationConfig
from ..method_on_batch import MethodOnBatch
from ..methods import Attribute, Queries
from ..metric import Metric
from ..table import rows_of
from .base import Task

_SHARE = 0.2
_RADIUS = 0.02
_DRAWS = 5


class Faithfulness(Task):
    """What random masks change, predicted; Captum's sensitivity. One target an image, its first."""

    name = "faithfulness"

    @override
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        masks = (
            f"over {config.draws} random masks per image, each cell of the model's grid, shifted "
            f"by half a cell, becoming the mean colour with a chance of {_SHARE}"
        )
        return {
            "Faithfulness and sensitivity": [
                Metric(
                    "faithfulness_correlation",
                    "Pearson's correlation of the map's sum over a mask with what the mask takes "
                    f"from the score, {masks}; chance is 0, the map 'uniform' gets more, since "
                    "larger masks change more",
                    constant=0,
                ),
                Metric(
                    "infidelity",
                    "captum's infidelity with normalize=True over the mean square of the score's "
                    f"change, as sums over images, {masks}: 0 is perfect and a map of zeros gets "
                    "1, but there is no intercept, so a map of one value gets far less than 1: "
                    "compare with 'uniform'; blind to the sign of a map as a whole",
                    "low",
                    "ratio",
                ),
                Metric(
                    "sensitivity",
                    "captum's sensitivity_max, the largest relative change of the map under "
                    f"uniform noise of radius {_RADIUS}, {_DRAWS} draws, {config.few} images drawn "
                    "from all; a map that sees nothing gets 0",
                    "low",
                ),
            ]
        }

    @override
    def measure(self, maps: MethodOnBatch) -> Iterator[Arrays]:
        first = maps.first_queries
        kept, raw = maps.compute_finite(first)
        if not kept:
            return
        # Of all methods the same, and most of the work.
        every = maps.batch.remember("masked changes", lambda: _changes(maps, first))
        changes = MaskedChanges(every.masks[kept], every.changes[kept])
        queries = first.part(kept)
        where = queries.numbers, queries.texts
        correlation = metrics.faithfulness_correlation(raw, changes)
        yield rows_of("faithfulness_correlation", correlation, *where, chance=0)
        square = changes.changes.square().mean(1)
        ratio = {"numerator": infidelity_of(raw, changes), "denominator": square}
        yield rows_of("infidelity", ratio, *where)
        slow = maps.slow(queries)
        attribute = maps.method.attribute(maps.clip, slow.rows)
        if attribute is not None and len(slow):
            values = _finite_sensitivity(maps, attribute, slow, range(len(slow)))
            yield rows_of("sensitivity", values, slow.numbers, slow.texts)


def _finite_sensitivity(
    maps: MethodOnBatch, attribute: Attribute, queries: Queries, indices: Sequence[int]
) -> Tensor:
    """Of each image, (N,), with the draws of its own number.

    NaN where a map under noise holds NaN, which is said.
    """
    try:
        return metrics.sensitivity(
            attribute,
            queries.pixels[list(indices)],
            list(indices),
            radius=_RADIUS,
            samples=_DRAWS,
            batch_size=maps.config.batch_size,
            seed=[maps.config.seed + queries.numbers[index] for index in indices],
        )
    except InputError as error:
        if len(indices) == 1:
            reason = f"{maps.method.name}: {error}"
            maps.skipped.append((queries.numbers[indices[0]], reason))
            return torch.full((1,), torch.nan)
    return torch.cat([_finite_sensitivity(maps, attribute, queries, [i]) for i in indices])


def _changes(maps: MethodOnBatch, queries: Queries) -> MaskedChanges:
    """Of each image with the masks of its own number, whatever else is in the batch."""
    return metrics.masked_changes(
        maps.context.forward(queries.rows),
        queries.pixels,
        list(range(len(queries))),
        grid=maps.clip.grid(queries.pixels.shape[-2], queries.pixels.shape[-1]),
        share=_SHARE,
        samples=maps.config.draws,
        batch_size=maps.config.batch_size,
        seed=[maps.config.seed + number for number in queries.numbers],
    )
