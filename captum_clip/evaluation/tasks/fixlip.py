"""FIxLIP's tests of faithfulness: AID and p-faithfulness."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from ... import metrics
from ...runs import Arrays
from ..config import EvaluationConfig
from ..method_on_batch import MethodOnBatch
from ..methods import Queries
from ..metric import Metric
from ..table import rows_of
from .base import Task

STAY: Final = (30, 50, 70)
"""The chance of each cell to stay, in per cent."""

_STEPS: Final = tuple(tenth / 10 for tenth in range(11))


class Fixlip(Task):
    """One target an image, its first; cells of the map's grid, in few images."""

    name = "fixlip"

    @override
    def metrics(self, config: EvaluationConfig) -> dict[str, list[Metric]]:
        cells = f"cells of the model's grid become the mean colour; {config.few} images at most"
        area = "area between insertion and deletion, most relevant first, in tenths"
        return {
            "FIxLIP: AID and p-faithfulness": [
                Metric(
                    "aid",
                    f"{area}; cosines less that of nothing left, over that of the whole image less "
                    f"it, of images that have more; chance is 0; {cells}",
                    constant=0,
                ),
                Metric(
                    "aid_blur",
                    f"the same of the plain cosines, with insertion into a blurred image; {cells}",
                ),
                *(
                    Metric(
                        f"p_faithfulness_{stay}",
                        f"Spearman of the map's sum over the cells that stay, each with a chance "
                        f"of {stay} %, and the cosine, {config.draws} draws; random maps get 0, a "
                        f"constant one what the number of cells says; the other {cells}",
                        constant=0,
                    )
                    for stay in STAY
                ),
            ]
        }

    @override
    def measure(self, maps: MethodOnBatch) -> Iterator[Arrays]:
        first = maps.slow(maps.first_queries)
        kept, raw = maps.compute_finite(first)
        for index, heat in zip(kept, raw, strict=True):
            query = first.part([index])
            values = _measured(maps, query, heat[None].to(query.pixels))
            for name, value in values.items():
                chance = 0 if name.startswith("p_") else torch.nan  # of maps of one value
                yield rows_of(name, value, query.numbers, query.texts, chance=chance)


def _measured(maps: MethodOnBatch, query: Queries, heat: Tensor) -> dict[str, Tensor]:
    """Each metric of one image with one map (1, h, w), (1,)."""
    pixels = query.pixels
    grid = maps.clip.grid(pixels.shape[-2], pixels.shape[-1])
    options: dict[str, Any] = {
        "batch_size": maps.config.batch_size,
        "seed": maps.config.seed + query.numbers[0],
    }
    test = partial(
        metrics.perturbation_test,
        maps.context.forward(query.rows),
        pixels,
        F.adaptive_avg_pool2d(heat, grid),  # so that all methods rank the same cells
        unit="patch",
        fractions=_STEPS,
        **options,
    )
    deleted = test(fill=metrics.mean_fill(pixels)).score
    inserted = test(fill=metrics.blur_fill(pixels), mode="insertion").score
    values = {
        "aid": metrics.area_between(deleted, normalize=True),
        "aid_blur": metrics.area_between(deleted, inserted),
    }
    changed = partial(
        metrics.masked_changes,
        maps.context.forward(query.rows),
        pixels,
        grid=grid,
        samples=maps.config.draws,
        shifted=False,
        **options,
    )
    for stay in STAY:
        compute = partial(changed, share=1 - stay / 100)
        drawn = maps.batch.remember(f"{stay} % of {query.numbers[0]} stay", compute)
        values[f"p_faithfulness_{stay}"] = metrics.p_faithfulness(heat, drawn)
    return values
