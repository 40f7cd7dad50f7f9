"""Curves of many methods: what is drawn, in which colors, and next to which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from captum_clip.bench.report import curve_bands, perturbation_curves
from captum_clip.bench.table import Summary
from captum_clip.metrics import bootstrap_mean
from captum_clip.visualization.charts import Curve, curves
from tests.figure_parts import lines_of

FRACTIONS = np.linspace(0, 1, 3)


def curve(height: float = 0.5) -> Curve:
    mean = height * (1 - FRACTIONS)
    return FRACTIONS, mean, mean - 0.1, mean + 0.1


def pens_of(figure: Figure, panel: int = 0) -> dict[str, tuple[Any, ...]]:
    """Color, dash and width of each line."""
    lines: list[Any] = figure.axes[panel].get_lines()
    return {
        line.get_label(): (line.get_color(), str(line._unscaled_dash_pattern), line.get_linewidth())
        for line in lines
    }


def measured(method: str = "ours", seed: int = 0, images: int = 12) -> pd.DataFrame:
    """The rows of one curve of the long table, two regions an image."""
    values = np.random.default_rng(seed).random((2 * images, 3)).ravel()
    columns = {"method": method, "sample": np.repeat(np.arange(images), 6), "value": values}
    return pd.DataFrame({**columns, "x": np.tile(FRACTIONS, 2 * images)})


def test_lines_and_bands_are_what_is_given() -> None:
    figure = curves({"a": curve(0.4), "b": curve(0.8)})
    [axes] = figure.axes
    for line, height in zip(axes.get_lines(), (0.4, 0.8), strict=True):
        assert np.allclose(line.get_xydata(), np.stack([FRACTIONS, height * (1 - FRACTIONS)], 1))
    band = np.asarray(axes.collections[1].get_paths()[0].vertices)
    assert band[:, 1].min() == pytest.approx(-0.1)
    assert band[:, 1].max() == pytest.approx(0.9)


def test_reference_and_baselines_are_told_apart() -> None:
    """Black and thick, first in the legend; gray and thin, last."""
    series = {name: curve() for name in ("random", "theirs", "ours")}
    figure = curves(series, reference="ours", baselines=["random"])
    pens = pens_of(figure)
    assert pens["ours"][2] > pens["theirs"][2] > pens["random"][2]
    assert len({pens["random"][0][i : i + 2] for i in (1, 3, 5)}) == 1  # gray: red = green = blue
    assert [word for word in lines_of(figure) if word in series] == ["ours", "theirs", "random"]


def test_words_are_in_their_places() -> None:
    """Title, axes, caption; a dollar sign is a dollar sign."""
    figure = curves(
        {"5 $ or 6 $": curve()}, title="above", xlabel="removed", ylabel="top-1", caption="below"
    )
    assert {"above", "below", "5 $ or 6 $"} <= set(lines_of(figure))
    assert not any(text.get_parse_math() for text in figure.texts)
    [axes] = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("removed", "top-1")
    assert not axes.xaxis.label.get_parse_math()
    assert not axes.yaxis.label.get_parse_math()
    figure.canvas.draw()
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert (ticks[0], ticks[-1]) == ("0 %", "100 %")


def test_nothing_is_cut_off_or_overlaps() -> None:
    """A long legend makes the figure taller; long names are broken."""
    long = "a name so long that it must be broken into two lines at the least"
    series = {f"{i} {long}": curve() for i in range(20)}
    words: dict[str, Any] = {
        "headers": ["most", "least"],
        "title": f"{long} {long}",
        "caption": f"{long} {long}",
    }
    figure = curves(series, series, **words)
    figure.canvas.draw()
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [text.get_window_extent() for text in figure.texts]
    for axes in figure.axes:
        around: Any = axes.get_tightbbox()
        boxes.append(around)
    for number, box in enumerate(boxes):
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= width
        assert box.y1 <= height
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_bands_are_means_with_their_intervals() -> None:
    """Whole images are drawn; one image alone has no interval."""
    table = pd.concat([measured("a"), measured("b", images=1)])
    bands = curve_bands(table, resamples=300, seed=2)
    assert list(bands) == ["a", "b"]
    fractions, *band = map(np.asarray, bands["a"])
    assert fractions.tolist() == FRACTIONS.tolist()
    for place, x in enumerate(FRACTIONS):
        rows = measured("a")
        rows = rows[rows["x"] == x]
        expected = bootstrap_mean(rows["value"], rows["sample"], resamples=300, seed=2)
        assert [part[place] for part in band] == pytest.approx(list(expected))
    assert np.isnan(bands["b"][2]).all()


def summary(methods: list[str], reference: str, *baselines: str) -> Summary:
    return Summary(None, {}, methods, baselines, (), reference, resamples=50, seed=0)


def test_perturbation_curves_say_what_they_show() -> None:
    """Both orders and the number of images; a method without curves has no line."""
    most = pd.concat([measured("random", 2), measured("ours", 1)])
    least = pd.concat([measured("random", 4, images=9), measured("ours", 3)])
    methods = ["ours", "lost", "random"]
    figure = perturbation_curves(
        most, least, summary(methods, "ours", "random", "lost"), title="Deletion"
    )
    words = lines_of(figure)
    assert {"Deletion", "most relevant first", "least relevant first", "ours", "random"} <= {*words}
    assert "Bands: 95 % bootstrap intervals at each point, over 9 to 12 images." in words
    assert "lost" not in words
    assert "lost" not in lines_of(perturbation_curves(most, least, summary(methods, "lost")))
    mean = figure.axes[1].get_lines()[0].get_ydata()
    expected = measured("ours", 3)["value"].to_numpy().reshape(-1, 3).mean(0)
    assert np.allclose(np.asarray(mean), expected)
