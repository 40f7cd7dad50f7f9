"""Does a map predict what changes do to the score, and does it stay where little changes?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from ... import metrics
from ...errors import InputError
from ...runs import Arrays
from ..config import EvaluationConfig
from ..method_on_batch import MethodOnBatch
from ..methods import Attribute, Queries
from ..metric import Metric
from ..table import rows_of
from .base import Task

_RADIUS = 0.02
_DRAWS = 5


class Faithfulness(Task):
    """Captum's infidelity and sensitivity; one target per image, its first."""

    name = "faithfulness"

    @override
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        return {
            "Infidelity and sensitivity": [
                Metric(
                    "infidelity",
                    "captum's infidelity with normalize=True over the mean square of the score's "
                    "change, as sums over images: 0 is perfect, a map that tells nothing gets 1; "
                    f"{config.draws} draws, in each the cells of the model's grid become the mean "
                    "colour with a chance of .2; blind to the sign of a map as a whole",
                    "low",
                    "ratio",
                ),
                Metric(
                    "sensitivity",
                    "captum's sensitivity_max, the largest relative change of the map under "
                    f"uniform noise of radius {_RADIUS}, {_DRAWS} draws, first {config.few} images;"
                    " a map that sees nothing gets 0",
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
        changes = maps.batch.remember("changes", lambda: _changes(maps, first))[kept]
        queries = first.part(kept)
        ratio = {"numerator": _infidelity(maps, queries, raw), "denominator": changes}
        yield rows_of("infidelity", ratio, queries.numbers, queries.texts)
        slow = maps.slow(queries)
        attribute = maps.method.attribute(maps.clip, slow.rows)
        if attribute is not None and len(slow):
            measured = {
                index: value
                for part in _successive(slow.numbers)
                for index, value in _finite_sensitivity(maps, attribute, slow, part).items()
            }
            if measured:
                part = slow.part(list(measured))
                values = torch.cat(list(measured.values()))
                yield rows_of("sensitivity", values, part.numbers, part.texts)


def _finite_sensitivity(
    maps: MethodOnBatch, attribute: Attribute, queries: Queries, indices: Sequence[int]
) -> dict[int, Tensor]:
    """Index -> sensitivity (1,); without those where a map under noise is NaN, which is said."""
    try:
        values = _sensitivity(maps, attribute, queries, indices)
        return {index: values[row : row + 1] for row, index in enumerate(indices)}
    except InputError as error:
        if len(indices) == 1:
            reason = f"{maps.method.name}: {error}"
            maps.skipped.append((queries.numbers[indices[0]], reason))
            return {}
    alone = [_finite_sensitivity(maps, attribute, queries, [index]) for index in indices]
    return {index: value for found in alone for index, value in found.items()}


def _sensitivity(
    maps: MethodOnBatch, attribute: Attribute, queries: Queries, indices: Sequence[int]
) -> Tensor:
    """Of images with successive numbers, each with the draws of its own number."""
    return metrics.sensitivity(
        attribute,
        queries.pixels[indices[0] : indices[-1] + 1],
        list(indices),
        radius=_RADIUS,
        samples=_DRAWS,
        batch_size=maps.config.batch_size,
        seed=maps.config.seed + queries.numbers[indices[0]],
    )


def _successive(numbers: Sequence[int]) -> list[list[int]]:
    """The indices of rising numbers, a new list after each number that is left out."""
    parts: list[list[int]] = []
    for index, number in enumerate(numbers):
        if not index or number != numbers[index - 1] + 1:
            parts.append([])
        parts[-1].append(index)
    return parts


def _changes(maps: MethodOnBatch, queries: Queries) -> Tensor:
    """The mean square of the score's change: the infidelity of a map of zeros."""
    grid = maps.clip.grid(queries.pixels.shape[-2], queries.pixels.shape[-1])
    return _infidelity(maps, queries, torch.zeros(len(queries), *grid).to(queries.pixels))


def _infidelity(maps: MethodOnBatch, queries: Queries, raw: Tensor) -> Tensor:
    """Of each image with the draws of its own number, whatever else is in the batch."""
    grid = maps.clip.grid(queries.pixels.shape[-2], queries.pixels.shape[-1])
    values = [
        metrics.infidelity(
            maps.context.forward(queries.rows[index : index + 1]),
            queries.pixels[index : index + 1],
            raw[index : index + 1].to(queries.pixels),
            perturbation=metrics.patch_removal(grid),
            samples=maps.config.draws,
            batch_size=maps.config.batch_size,
            seed=maps.config.seed + number,
        )
        for index, number in enumerate(queries.numbers)
    ]
    return torch.cat(values)
