"""``captum-clip evaluate`` that knows FIxLIP's protocol as well: AID and p-faithfulness.

python docs/experiments/fixlip.py --model demo/vit --data demo --task fixlip -o fixlip

FIxLIP removes tokens by masking their attention, which not all towers support; here the removed
cells of the model's grid become the mean color.

Source: Baniecki et al. 2025 (arXiv:2508.05430); the start from a blur is that of RISE, Petsiuk et
al. 2018 (arXiv:1806.07421).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_clip import metrics
from captum_clip.bench.batch import MethodOnBatch, Task
from captum_clip.bench.run import Arrays, EvaluationConfig
from captum_clip.bench.table import Metric
from captum_clip.bench.tasks import TASKS
from captum_clip.cli import main
from captum_clip.metrics.map_statistics import spearman
from captum_clip.metrics.perturbation import TENTHS, Forward

STAY = (30, 50, 70)
"""Per cent, the chance of each cell to stay."""


def scaled_gap(curves: metrics.Curves) -> Tensor:
    """AID on one fill (B,): both curves are scaled to 1 for the image and 0 for nothing left.

    The authors take the mean of the n + 1 points of n units, which is n / (n + 1) of this area.
    NaN where nothing left scores as high as the image.
    """
    whole, nothing = curves.most_first[:, 0], curves.most_first[:, -1]
    return torch.where(whole > nothing, curves.gap / (whole - nothing), torch.nan)


def p_faithfulness(maps: Tensor, changes: metrics.MaskedChanges) -> Tensor:
    """Spearman (B,) of a map's sum over random coalitions of cells and their score.

    Ranks do not change if both sides are subtracted from those of the whole image, so what is
    removed does as well as what stays.
    """
    return spearman(changes.predicted(maps), changes.changes)


def score_cells(forward: Forward, pixels: Tensor, fill: Tensor, left: Tensor) -> Tensor:
    """Scores of an image (1, C, H, W) of which some cells are left, where (N, 1, h, w) is not 0."""
    shown = F.interpolate(left, pixels.shape[-2:]) > 0
    return forward(torch.where(shown, pixels, fill))


def draw_coalitions(
    forward: Forward,
    pixels: Tensor,
    grid: tuple[int, int],
    stay: int,
    draws: int,
    *,
    seed: Sequence[int],
    batch_size: int,
) -> metrics.MaskedChanges:
    """What removing random cells of an image (1, C, H, W) changes; of each `stay` per cent stay."""
    generator = torch.Generator().manual_seed(seed[0])
    drawn = torch.rand((draws, *grid), generator=generator).to(pixels.device)
    left = (drawn >= 1 - stay / 100)[:, None].to(pixels)
    states = torch.split(torch.cat([torch.ones_like(left[:1]), left]), batch_size)
    fill = metrics.mean_fill(pixels)
    scores = torch.cat([score_cells(forward, pixels, fill, state) for state in states])
    masks = F.interpolate(left, pixels.shape[-2:]) == 0
    changes = scores.flatten().double()
    return metrics.MaskedChanges(masks[None, :, 0], (changes[0] - changes[1:])[None])


def measure(batch: MethodOnBatch) -> Iterator[Arrays]:
    """One target an image, its first, in the images for what is slow."""
    first = batch.slow(batch.first_queries)
    kept, raw = batch.compute_finite(first)
    for index, heatmap in zip(kept, raw, strict=True):
        query, heatmaps = first.select([index]), heatmap[None].to(first.pixels)
        forward, grid = batch.context.forward(query.embeddings), batch.clip.grid(*query.size)
        options = batch.options_of(query)
        cells = F.adaptive_avg_pool2d(heatmaps, grid)  # the same for all methods
        whole, pixels = torch.ones_like(cells)[:, None], query.pixels
        mean, blur = (
            partial(score_cells, forward, pixels, fill)
            for fill in (metrics.mean_fill(pixels), metrics.blur_fill(pixels))
        )
        options_of_test = {"fill": torch.zeros_like(whole), **options}
        deleted = metrics.perturbation_test(mean, whole, cells, **options_of_test).score
        # Insertion, most relevant first, is deletion, least relevant first, read backwards: it
        # shows as many cells at a step as deletion removes.
        shown = [1 - round(share * whole.numel()) / whole.numel() for share in TENTHS[::-1]]
        options_of_test["fractions"] = shown
        inserted = metrics.perturbation_test(blur, whole, cells, **options_of_test).score
        yield query.rows_of("aid", scaled_gap(deleted))
        yield query.rows_of("aid_blur", inserted.least_area - deleted.most_area)
        for stay in STAY:
            drawn = draw_coalitions(forward, pixels, grid, stay, batch.config.draws, **options)
            ranks = p_faithfulness(heatmaps, drawn)
            yield query.rows_of(f"p_faithfulness_{stay}", ranks, chance=0)


def metrics_of(config: EvaluationConfig) -> dict[str, list[Metric]]:
    """The table of the task."""
    fill = "the other cells of the model's grid become the mean color"
    images = f"{config.slow_images} images at most"
    blur = "the same of the plain cosines, with insertion into a blurred image"
    faithful = "Spearman of the map's sum over the cells that stay and the cosine"
    scaled = "area between insertion and deletion, most relevant first, of scaled cosines"
    draws = f"{config.draws} draws"
    return {
        "FIxLIP: AID and p-faithfulness": [
            Metric("aid", f"{scaled}; {fill}; {images}", constant=0),
            Metric("aid_blur", f"{blur}; {fill}; {images}"),
            *(
                Metric(
                    f"p_faithfulness_{stay}",
                    f"{faithful}, each with a chance of {stay} %, {draws}; {fill}; {images}",
                    constant=0,
                )
                for stay in STAY
            ),
        ]
    }


FIXLIP = Task(metrics_of, measure, ("masks", "classes", "retrieval"))

if __name__ == "__main__":
    TASKS["fixlip"] = FIXLIP
    sys.exit(main(["evaluate", *sys.argv[1:]]))
