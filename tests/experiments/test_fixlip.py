"""FIxLIP's protocol is what its paper says, of a linear score."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from captum_clip.evaluation.data import Sample
from captum_clip.evaluation.tasks import TASKS
from captum_clip.metrics import masked_changes, mean_fill, perturbation_test
from captum_clip.metrics.map_statistics import spearman
from tests.evaluation.cases import Listed, context, joined, model, on_batch, picture
from tests.evaluation.data.writing import noise
from tests.experiments import experiment
from tests.samples import normal, uniform

fixlip = experiment("fixlip")
IMAGES = uniform(3, 3, 8, 12)
GRID = (2, 3)


def test_aid_scales_curves_by_their_ends() -> None:
    """One cell at a time, and the mean of n + 1 points is 6/7 of the area."""
    options: dict[str, Any] = {"unit": "patch", "fractions": [n / 6 for n in range(7)]}
    maps = uniform(3, 1, *GRID, seed=1)
    score, fill = (lambda x: x.sum((1, 2, 3))), mean_fill(IMAGES)
    curves = perturbation_test(score, IMAGES, maps, fill=fill, **options)
    for index, value in enumerate(fixlip.scaled_gap(curves.score)):
        most, least = curves.score.most_first[index], curves.score.least_first[index]
        theirs = ((least - most) / (most[0] - most[-1])).mean()
        torch.testing.assert_close(value, theirs * 7 / 6, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("p", [0.3, 0.7])
def test_p_faithfulness_ranks_the_coalitions_that_stay(p: float) -> None:
    """What is removed ranks them as well."""
    weights = normal(3, 8, 12, seed=3)
    score = lambda x: (x * weights).sum((1, 2, 3)).double()  # noqa: E731
    found = masked_changes(score, IMAGES, grid=GRID, share=1 - p, samples=40, shifted=False)
    maps = normal(3, *GRID, seed=2)
    for index, image in enumerate(IMAGES):
        stay = ~found.masks[index]
        sums = (stay[:, ::4, ::4] * maps[index]).sum((1, 2))
        wanted = spearman(sums.double(), score(torch.where(stay[:, None], image, 0)))
        got = fixlip.p_faithfulness(maps, found)[index].item()
        assert got == pytest.approx(wanted.item(), abs=0.02)


def test_the_task_measures_each_of_its_metrics() -> None:
    clip = model("demo/vit")
    data = Listed(Sample("a", noise((224, 224)), label=0), Sample("b", picture(1, 224), label=0))
    given = context(clip, data, slow_images=1, draws=8)
    got = joined(fixlip.FIXLIP.measure(on_batch(given, "last-grad")))
    [table] = fixlip.FIXLIP.metrics(given.config).values()
    assert {*got} <= {metric.name for metric in table}
    assert {len(rows.owners) for rows in got.values()} == {1}
    assert "fixlip" not in TASKS  # but where the script runs
