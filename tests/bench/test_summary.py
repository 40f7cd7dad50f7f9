"""Figures of rows: plain loops over the same draws, one-line cases, and the laws of pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

from captum_clip import metrics
from captum_clip.bench.table import Metric, summarize
from captum_clip.folders.bootstrap import PARTS, StatisticName
from tests.bench.cases import Rows, long_table

Array = npt.NDArray[np.float64]
RESAMPLES = 200
NOTHING = (math.nan,) * 3


class Figure(NamedTuple):
    """A row of the summary."""

    interval: tuple[float, float, float]
    difference: tuple[float, float, float, float]  # with the adjusted p value
    images: int
    rows: int
    images_paired: int


def compare(
    statistic: StatisticName, rows: Mapping[str, Rows], *, reference: str, **options: Any
) -> dict[str, Figure]:
    """Each method's figures by one metric."""
    metric = Metric("found", "", statistic=statistic)
    tables = [long_table(name, "found", PARTS[statistic], r) for name, r in rows.items()]
    table = pd.concat(tables)
    found = summarize(table, {"": [metric]}, list(rows), reference=reference, **options)
    return {
        line.method: Figure(
            (line.mean, line.low, line.high),
            (line.difference, line.difference_low, line.difference_high, line.p_holm),
            *(line.images, line.rows, line.images_paired),
        )
        for line in found.figures.itertuples()
    }


BY_CLASS: dict[StatisticName, Any] = {
    "class_iou": np.mean,
    "lowest_class": np.min,
    "highest_class": np.max,
}


def rows_of(statistic: StatisticName, seed: int, samples: int = 30) -> Rows:
    """One to four rows a sample, with ties, in mixed order; sample numbers have gaps."""
    draw = np.random.default_rng(seed)
    owners = 7 * np.repeat(np.arange(samples), np.random.default_rng(99).integers(1, 5, samples))
    size = len(owners)
    if statistic == "mean":
        values = draw.random((size, 1))
    elif statistic == "mean_iou":
        values = draw.integers(0, 50, (size, 4)).astype(float)
        values[:, 1::2] += values[:, ::2]
    elif statistic == "balanced":
        kinds = np.random.default_rng(98).integers(0, 4, (size, 2))
        right = draw.integers(0, kinds + 1)
        values = np.stack([right, kinds], axis=2).reshape(size, 4).astype(float)
    elif statistic == "ratio":
        values = draw.integers(0, 5, (size, 2)).astype(float)
    else:
        union = draw.integers(0, 9, size)
        columns = [draw.integers(0, 3, size), np.minimum(draw.integers(0, 9, size), union), union]
        values = np.stack(columns, axis=1).astype(float)
    order = draw.permutation(size)
    return Rows(owners[order], values[order])


def plain(statistic: StatisticName, values: Array) -> float:
    """The statistic as metrics has it, of rows that are really repeated."""
    columns = [torch.from_numpy(column.copy()) for column in values.T]
    if statistic == "mean":
        return float(values.mean())
    if statistic == "ratio":
        return float(columns[0].sum() / columns[1].sum())
    if statistic in BY_CLASS:
        classes = [values[values[:, 0] == number].sum(0) for number in np.unique(values[:, 0])]
        return float(BY_CLASS[statistic]([shared / union for _, shared, union in classes]))
    first, whole, second, rest = values.sum(0)  # of pixels, or of effects above and below zero
    return float((first / whole + second / rest) / 2)


def plain_resamples(
    statistic: StatisticName, rows: Rows, samples: Sequence[int], resamples: int, seed: int
) -> Array:
    """One resample after the other; the rows of a sample are repeated as often as it is drawn."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = generator.integers(len(samples), size=len(samples))
        parts = [rows.values[rows.owners == samples[i]] for i in drawn]
        found.append(plain(statistic, np.concatenate(parts)))
    return np.array(found)


EVERY: list[StatisticName] = [
    *("mean", "ratio", "mean_iou", "balanced", *BY_CLASS),
]


@pytest.mark.parametrize("statistic", EVERY)
def test_figures_are_those_of_plain_loops(statistic: StatisticName) -> None:
    """Weights say exactly what repeated rows say: figure, interval, difference, p value."""
    ours, theirs = rows_of(statistic, 1), rows_of(statistic, 2)
    found = compare(statistic, {"a": ours, "b": theirs}, reference="a", resamples=RESAMPLES, seed=5)
    samples = np.unique(ours.owners).tolist()
    one, other = (plain_resamples(statistic, r, samples, RESAMPLES, 5) for r in (ours, theirs))
    figures = [plain(statistic, rows.values) for rows in (ours, theirs)]
    assert found["a"].interval == pytest.approx((figures[0], *np.quantile(one, [0.025, 0.975])))
    gaps = other - one
    tail = min((gaps <= 0).sum(), (gaps >= 0).sum())
    p_value = min(1, 2 * (1 + tail) / (RESAMPLES + 1))
    ends = np.quantile(gaps, [0.025, 0.975])
    assert found["b"].difference == pytest.approx((figures[1] - figures[0], *ends, p_value))
    assert found["b"].images == found["b"].images_paired == 30
    assert found["b"].rows == len(theirs.owners)


@pytest.mark.parametrize("statistic", ["mean", "class_iou"])
def test_a_method_does_not_differ_from_itself(statistic: StatisticName) -> None:
    """Difference 0 to the last digit, p value 1, in whatever order its rows come."""
    rows = rows_of(statistic, 6)
    order = np.random.default_rng(7).permutation(len(rows.owners))
    mixed = Rows(rows.owners[order], rows.values[order])
    found = compare(statistic, {"a": rows, "b": mixed, "c": rows}, reference="a")
    for name in ("b", "c"):
        assert found[name].difference == (0, 0, 0, 1)
        assert found[name].interval == found["a"].interval
    assert found["a"].difference == pytest.approx((*NOTHING, math.nan), nan_ok=True)


def test_a_constant_shift_is_that_difference() -> None:
    """In every resample, so the interval has no width and the p value is the smallest there is."""
    rows = rows_of("mean", 8)
    moved = Rows(rows.owners, rows.values + 0.125)
    difference = compare("mean", {"a": rows, "b": moved}, reference="a")["b"].difference
    assert difference[:3] == pytest.approx((0.125, 0.125, 0.125), abs=1e-14)
    assert difference[3] == 2 / 2001


def test_rounding_is_no_difference() -> None:
    """0.1 + 0.2 against 0.3 on every image: p value 1, not the smallest."""
    owners = np.arange(30)
    rows = {
        "a": Rows(owners, np.full((30, 1), 0.3)),
        "b": Rows(owners, np.full((30, 1), 0.1 + 0.2)),
    }
    assert compare("mean", rows, reference="a")["b"].difference == (0, 0, 0, 1)


def test_other_methods_change_nothing_but_holm() -> None:
    """Draws depend on the images and the seed alone."""
    rows = {name: rows_of("mean", seed) for seed, name in enumerate("abc")}
    all_three = compare("mean", rows, reference="a")
    raw = []
    for name in "bc":
        pair = compare("mean", {"a": rows["a"], name: rows[name]}, reference="a")
        assert pair[name].interval == all_three[name].interval
        assert pair[name].difference[:3] == all_three[name].difference[:3]
        raw.append(pair[name].difference[3])
    adjusted = [all_three[name].difference[3] for name in "bc"]
    assert adjusted == metrics.holm(raw).tolist()


def test_pairs_are_the_images_of_both() -> None:
    """Where one method has no rows the other's do not count; each keeps its own figure."""
    one = Rows(np.arange(10), np.arange(10.0)[:, None])
    other = Rows(np.arange(5, 20), np.arange(5.0, 20.0)[:, None] + 1)
    found = compare("mean", {"a": one, "b": other}, reference="a")["b"]
    assert found.images == 15
    assert found.images_paired == 5
    assert found.interval[0] == pytest.approx(13)
    assert found.difference[:3] == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(("images", "tested"), [(29, False), (30, True)])
def test_few_images_are_not_tested(images: int, tested: bool) -> None:
    """With ten the test finds a difference where there is none in .083 of the cases, not in .05."""
    ours = np.random.default_rng(0).random((images, 1))
    rows = {"a": Rows(np.arange(images), ours), "b": Rows(np.arange(images), ours - 1)}
    *difference, p_value = compare("mean", rows, reference="a")["b"].difference
    assert difference == pytest.approx([-1, -1, -1])
    assert math.isnan(p_value) is not tested


def test_nothing_measured_is_no_figure() -> None:
    """No rows, no number; and nothing is compared with an empty reference."""
    rows = {"a": rows_of("mean", 1), "b": Rows(np.empty(0, dtype=np.int64), np.empty((0, 1)))}
    found = compare("mean", rows, reference="a")
    assert found["b"].interval == pytest.approx(NOTHING, nan_ok=True)
    assert found["b"].difference == pytest.approx((*NOTHING, math.nan), nan_ok=True)
    assert found["b"][2:] == (0, 0, 0)
    alone = compare("mean", rows, reference="b")["a"]
    assert alone.interval == found["a"].interval
    assert math.isnan(alone.difference[0])
    assert alone.images_paired == 0


def test_one_image_has_neither_interval_nor_p_value() -> None:
    """Its rows have a mean, but nothing says how other images would differ."""
    image = np.zeros(3, dtype=np.int64)
    rows = {"a": Rows(image, np.ones((3, 1))), "b": Rows(image, np.zeros((3, 1)))}
    found = compare("mean", rows, reference="a")["b"]
    assert [found.interval[0], found.difference[0]] == [0, -1]
    assert all(map(math.isnan, (*found.interval[1:], *found.difference[1:])))


@pytest.mark.parametrize(
    ("statistic", "values"),
    [
        ("ratio", [[1.0, 0.0], [2.0, 0.0]]),
        ("balanced", [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 2.0]]),
        ("mean_iou", [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0]]),
        ("class_iou", [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
        ("lowest_class", [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
    ],
)
def test_a_statistic_that_means_nothing_is_nan(statistic: StatisticName, values: Any) -> None:
    """Not zero; the other methods are still tested among themselves."""
    undefined = Rows(np.arange(2), np.array(values))
    good = rows_of(statistic, 3)
    found = compare(statistic, {"a": good, "b": undefined, "c": good}, reference="a")
    assert found["b"].interval == pytest.approx(NOTHING, nan_ok=True)
    assert found["b"].rows == 2
    assert math.isnan(found["b"].difference[3])
    assert found["c"].difference[3] == 1


def test_parts_of_a_row_are_found_by_sample_and_region() -> None:
    """However the table is sorted."""
    rows = rows_of("ratio", 3)
    table = long_table("a", "found", PARTS["ratio"], rows)
    metric = Metric("found", "", statistic="ratio")
    one, other = (
        summarize(t, {"": [metric]}, ["a"], reference="a").figures
        for t in (table, table.sample(frac=1, random_state=0))
    )
    assert one.equals(other)
