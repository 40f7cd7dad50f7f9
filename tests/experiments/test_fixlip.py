"""FIxLIP's protocol is what its paper says, of a linear score."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from captum_clip.bench.data.base import Sample
from captum_clip.bench.tasks import TASKS
from captum_clip.metrics import mean_fill, perturbation_test
from captum_clip.metrics.map_statistics import spearman
from tests.bench.cases import Listed, context, joined, model, on_batch, picture
from tests.bench.data.writing import noise
from tests.experiments import experiment
from tests.samples import normal, uniform

fixlip = experiment("fixlip")
IMAGES = uniform(3, 3, 8, 12)
GRID = (2, 3)


def score_of(weights: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """A linear score of images (N, C, H, W), double."""
    return (images * weights).sum((1, 2, 3)).double()


def test_aid_scales_curves_by_their_ends() -> None:
    """One cell at a time, and the mean of n + 1 points is 6/7 of the area."""
    cells, maps = uniform(3, 1, *GRID), uniform(3, 1, *GRID, seed=1)
    score, fractions = (lambda x: x.sum((1, 2, 3))), [n / 6 for n in range(7)]
    curves = perturbation_test(score, cells, maps, fill=mean_fill(cells), fractions=fractions)
    for index, value in enumerate(fixlip.scaled_gap(curves.score)):
        most, least = curves.score.most_first[index], curves.score.least_first[index]
        theirs = ((least - most) / (most[0] - most[-1])).mean()
        torch.testing.assert_close(value, theirs * 7 / 6, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("p", [0.3, 0.7])
def test_p_faithfulness_ranks_the_coalitions_that_stay(p: float) -> None:
    """What is removed ranks them as well."""
    weights = normal(3, 8, 12, seed=3)
    maps = normal(3, *GRID, seed=2)
    for index, image in enumerate(IMAGES):
        forward, options = partial(score_of, weights[index]), {"seed": [index], "batch_size": 7}
        drawn = fixlip.draw_coalitions(forward, image[None], GRID, round(100 * p), 40, **options)
        stay = ~drawn.masks[0]
        assert stay.float().mean().item() == pytest.approx(p, abs=0.1)
        sums = (stay[:, ::4, ::4] * maps[index]).sum((1, 2))
        wanted = spearman(sums.double(), forward(torch.where(stay[:, None], image, 0)))
        got = fixlip.p_faithfulness(maps[index, None], drawn).item()
        assert got == pytest.approx(wanted.item(), abs=0.02)


def test_cells_are_removed_one_at_a_time() -> None:
    """One cell of 2 x 3 at a time, with all of its pixels."""
    cells = IMAGES.unfold(2, 4, 4).unfold(3, 4, 4).sum((1, 4, 5))  # (B, 2, 3)
    left = 1 - torch.eye(6).view(6, 1, *GRID)
    score = lambda x: x.sum((1, 2, 3))  # noqa: E731
    for image, sums in zip(IMAGES, cells, strict=True):
        got = fixlip.score_cells(score, image[None], torch.zeros(1, 3, 1, 1), left)
        torch.testing.assert_close(got, sums.sum() - sums.flatten(), rtol=1e-4, atol=1e-4)


def test_the_task_measures_each_of_its_metrics() -> None:
    clip = model("demo/vit")
    data = Listed(Sample("a", noise((224, 224)), label=0), Sample("b", picture(1, 224), label=0))
    given = context(clip, data, slow_images=1, draws=8)
    got = joined(fixlip.FIXLIP.measure(on_batch(given, "last-grad")))
    [table] = fixlip.FIXLIP.metrics(given.config).values()
    assert {*got} <= {metric.name for metric in table}
    assert {len(rows.owners) for rows in got.values()} == {1}
    assert "fixlip" not in TASKS  # but where the script runs
