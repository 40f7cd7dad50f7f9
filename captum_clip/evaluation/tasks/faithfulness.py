"""Does a map foretell what changes do to the score, and does it stay where little changes?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import metrics
from ..config import EvaluationConfig
from ..methods import Attribute, Queries
from ..metric import Metric
from .base import Case, Found, Task
from .first import few, finite_maps, first_queries

_RADIUS = 0.02
_DRAWS = 5


class Faithfulness(Task):
    """Captum's infidelity and sensitivity; one target an image, its first."""

    name = "faithfulness"
    what = "infidelity and sensitivity of captum.metrics"

    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        """See :class:`Task`."""
        return {
            "Infidelity and sensitivity": [
                Metric(
                    "infidelity",
                    "ratio",
                    "low",
                    "captum's infidelity with normalize=True over the mean square of the score's "
                    "change, as sums over images: 0 is perfect, a map that tells nothing gets 1; "
                    f"{config.draws} draws, in each the cells of the model's grid become the mean "
                    "colour with a chance of .2; blind to the sign of a map as a whole",
                ),
                Metric(
                    "sensitivity",
                    "mean",
                    "low",
                    "captum's sensitivity_max, the largest relative change of the map under "
                    f"uniform noise of radius {_RADIUS}, {_DRAWS} draws, first {config.few} images;"
                    " a map that sees nothing gets 0",
                ),
            ]
        }

    def measure(self, case: Case) -> Found:
        """See :class:`Task`."""
        everything = first_queries(case)
        queries, raw = finite_maps(case, everything)
        if not len(queries):
            return Found()
        changes = case.shared.remember("changes", lambda: _changes(case, everything))
        own = [everything.numbers.index(number) for number in queries.numbers]
        columns = [_infidelity(case, queries, raw), changes[own]]
        rows = {"infidelity": case.numbered(columns, queries.numbers)}
        chosen = few(case, queries)
        attribute = case.method.attribute(case.clip, chosen.rows)
        if attribute is not None and len(chosen):
            parts = _successive(chosen.numbers)
            found = [_sensitivity(case, attribute, chosen, places) for places in parts]
            rows["sensitivity"] = case.numbered([torch.cat(found)], chosen.numbers)
        return Found(rows)


def _sensitivity(
    case: Case, attribute: Attribute, queries: Queries, places: Sequence[int]
) -> Tensor:
    """Of images with successive numbers, each with the draws of its own number."""
    return metrics.sensitivity(
        attribute,
        queries.pixels[places[0] : places[-1] + 1],
        list(places),
        radius=_RADIUS,
        samples=_DRAWS,
        batch_size=case.config.batch_size,
        seed=case.config.seed + queries.numbers[places[0]],
    )


def _successive(numbers: Sequence[int]) -> list[list[int]]:
    """The places of rising numbers, a new list after each number that is left out."""
    parts: list[list[int]] = []
    for place, number in enumerate(numbers):
        if not place or number != numbers[place - 1] + 1:
            parts.append([])
        parts[-1].append(place)
    return parts


def _changes(case: Case, queries: Queries) -> Tensor:
    """The mean square of the score's change: the infidelity of a map of zeros."""
    grid = case.clip.grid(queries.pixels.shape[-2], queries.pixels.shape[-1])
    return _infidelity(case, queries, torch.zeros(len(queries), *grid).to(queries.pixels))


def _infidelity(case: Case, queries: Queries, raw: Tensor) -> Tensor:
    """Of each image with the draws of its own number, whatever else is in the batch."""
    grid = case.clip.grid(queries.pixels.shape[-2], queries.pixels.shape[-1])
    found = [
        metrics.infidelity(
            case.bench.forward(queries.rows[place : place + 1]),
            queries.pixels[place : place + 1],
            raw[place : place + 1].to(queries.pixels),
            perturbation=metrics.patch_removal(grid),
            samples=case.config.draws,
            batch_size=case.config.batch_size,
            seed=case.config.seed + number,
        )
        for place, number in enumerate(queries.numbers)
    ]
    return torch.cat(found)
