"""Tables that can be read: every cell by hand, in CSV and in Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

from captum_clip.bench.report import TABLES, findings, render, results_csv, shown
from captum_clip.bench.table import Metric, Summary, summarize
from captum_clip.folders.bootstrap import PARTS
from tests.bench.cases import Rows, long_table

ABOUT = {"Model": "demo/vit", "Seed": 0}


def metric(name: str, better: Literal["high", "low", "none"] = "high") -> Metric:
    return Metric(name, f"how {name} is measured", better)


def rows(*values: float, times: int = 1) -> Rows:
    """One image a value; the values `times` over."""
    repeated = np.tile(np.array(values), times)
    return Rows(np.arange(len(repeated)), repeated[:, None])


def summary(
    given: Mapping[str, Mapping[str, Rows]], metrics: Sequence[Metric], **options: Any
) -> Summary:
    """Of rows by method and metric."""
    parts = {metric.name: PARTS[metric.statistic] for metric in metrics}
    tables = [
        long_table(method, name, parts[name], of)
        for method, by_metric in given.items()
        for name, of in by_metric.items()
    ]
    options = {"reference": "ours", "resamples": 200, **options}
    return summarize(pd.concat(tables), {"Where": metrics}, list(given), **options)


def markdown(found: Summary) -> str:
    return render(TABLES, found, title="Evaluation", about=ABOUT)


def table(text: str, number: int = 0) -> list[list[str]]:
    """The cells of a pipe table, its header first, without the rule."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    lines = [line for line in blocks[number] if not line.startswith("| -")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def records(found: Summary) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(results_csv(found).decode())))


def test_csv_has_a_row_for_each_figure() -> None:
    """Method by method, metric by metric; three decimals, numbers as in all other tables."""
    given = {
        "ours": {"pointing": rows(0.25, times=32), "area": rows(1, times=32)},
        "theirs": {"pointing": rows(2 / 3, times=32), "area": rows(1, times=30)},
    }
    found = summary(given, [metric("pointing"), metric("area", "low")])
    assert results_csv(found).decode() == (
        "method,metric,mean,low,high,images,rows,difference,difference_low,difference_high,p_holm,"
        "reference,images_paired,better\n"
        "ours,pointing,0.25,0.25,0.25,32,32,,,,,ours,32,high\n"
        "ours,area,1,1,1,32,32,,,,,ours,32,low\n"
        "theirs,pointing,0.667,0.667,0.667,32,32,0.417,0.417,0.417,0.00995,ours,32,high\n"
        "theirs,area,1,1,1,30,30,0,0,0,1,ours,30,low\n"
    )


def test_what_was_not_measured_is_blank() -> None:
    """An empty field and a dash, with n = 0; never a zero."""
    given = {"ours": {"pointing": rows(0.0, 0.0)}, "none": {"pointing": rows()}, "lost": {}}
    found = summary(given, [metric("pointing")])
    for record in records(found)[1:]:
        assert [record[name] for name in ("mean", "low", "high", "difference", "p_holm")] == [
            ""
        ] * 5
        assert [record[name] for name in ("images", "rows", "images_paired")] == ["0"] * 3
    text = markdown(found)
    assert table(text)[1:] == [
        ["ours (reference)", "**0.000** [0.000, 0.000]"],
        ["none", "–"],
        ["lost", "–"],
    ]
    assert "– not measured" in text


@pytest.mark.parametrize(
    ("better", "bold"),
    [("high", {"theirs", "random"}), ("low", {"ours"}), ("none", set())],
)
def test_the_best_is_bold(better: Literal["high", "low", "none"], bold: set[str]) -> None:
    """Of the methods, by what is good; and a baseline where it is at least as good."""
    figures = {"ours": 0.2, "theirs": 0.6, "other": 0.4, "random": 0.7, "center": 0.3}
    given = {name: {"area": rows(value, times=4)} for name, value in figures.items()}
    found = summary(given, [metric("area", better)], baselines=["random", "center"])
    cells = {line[0].removesuffix(" (reference)"): line[1] for line in table(markdown(found))}
    assert {name for name, cell in cells.items() if cell.startswith("**")} == bold


def test_nothing_is_bold_that_a_uniform_map_reaches() -> None:
    """Most pixels are background: marking none is right in .914 of them, the best map in .828."""
    for best, bold in ((0.828, False), (0.92, True)):
        figures = {"ours": best, "theirs": 0.8, "uniform": 0.914}
        given = {name: {"accuracy": rows(value, times=4)} for name, value in figures.items()}
        text = markdown(summary(given, [metric("accuracy")], baselines=["uniform"]))
        assert (f"**{best:.3f}**" in text) is bold
        assert "**0.914**" not in text


@pytest.mark.parametrize("best", [0.8, 0.9])
def test_what_no_map_beats_is_said(best: float) -> None:
    """A predictor without a map is no winner, and nothing is bold that is no better than it."""
    figures = {"ours": best, "random": 0.1, "named": 0.84, "score": 0.2, "text-only": math.nan}
    given = {
        name: {} if math.isnan(value) else {"area": rows(value, times=4)}
        for name, value in figures.items()
    }
    without = ["named", "score", "text-only"]
    found = summary(given, [metric("area")], baselines=["random", *without], without_map=without)
    text = markdown(found)
    assert [line[0] for line in table(text)] == [
        *("Method", "ours (reference)", "*Baselines*", "random"),
        *("*Without a map*", "named", "score"),  # the other one answers nothing
    ]
    assert ("**0.900**" in text) is (best == 0.9)
    assert "**0.840**" not in text
    [line, _] = findings(found)
    rival = "named, which uses no map and has 0.840 [0.840, 0.840]"
    won = "ours (the reference), with area 0.900 [0.900, 0.900], not tested on fewer than 30 images"
    won += f"; for comparison, {rival}"
    assert line == f"Where {won if best == 0.9 else f'by area no method beats {rival}'}."


def test_baselines_stand_in_a_block_of_their_own() -> None:
    """Below the methods, whatever the order they came in."""
    names = ["random", "ours", "center", "theirs"]
    given = {name: {"area": rows(0.5, times=3)} for name in names}
    found = summary(given, [metric("area")], baselines=["random", "center"])
    assert [line[0] for line in table(markdown(found))] == [
        "Method",
        "ours (reference)",
        "theirs",
        "*Baselines*",
        "random",
        "center",
    ]


def test_a_dagger_says_which_methods_differ() -> None:
    """From the reference, after Holm's correction; the same p values alone would do."""
    draw = np.random.default_rng(0)
    ours = draw.random(60)
    given = {"ours": {"area": rows(*ours)}, "far": {"area": rows(*ours - 0.25)}}
    given |= {f"near {i}": {"area": rows(*ours + draw.normal(0, 0.1, 60))} for i in range(4)}
    found = summary(given, [metric("area")], resamples=1000)
    marked = [line[0] for line in table(markdown(found)) if line[1].endswith("†")]
    assert marked == ["far"]
    assert "† differs from *ours*" in markdown(found)


def test_few_images_bear_no_dagger() -> None:
    """Images that all differ alike, and one less than is tested."""
    for times, marked in ((29, False), (30, True)):
        given = {"ours": {"pointing": rows(0.2, times=times)}}
        given["theirs"] = {"pointing": rows(0.6, times=times)}
        _, _, (_, cell) = table(markdown(summary(given, [metric("pointing")])))
        assert ("\N{DAGGER}" in cell) == marked


def test_page_says_what_was_measured_and_how() -> None:
    """Title, model, data and seed above; a line a metric below."""
    text = markdown(summary({"ours": {"area": rows(1, 2)}}, [metric("area", "low")]))
    assert text.startswith("# Evaluation\n\n**What was found**\n\n- Where")
    assert "**What was measured**\n\n- Model: demo/vit\n- Seed: 0\n\nFigures with 95 %" in text
    assert text.endswith("## Protocols\n\n- **area ↓**: how area is measured (2 images)\n")
    assert "200 resamples" in text


def test_findings_name_the_winner_its_lead_and_what_is_not_told_apart() -> None:
    """A line for each question that was asked, the last on what not to conclude."""
    draw = np.random.default_rng(0)
    ours = draw.random(60)
    given = {
        "ours": {"pointing": rows(*ours), "words_4": rows(0.5, 0.5)},
        "near": {"pointing": rows(*ours + draw.normal(0, 0.1, 60)), "words_4": rows(0.4, 0.4)},
        "far": {"pointing": rows(*ours + 0.25), "words_4": rows(0.3, 0.3)},
        "random": {"pointing": rows(*ours - 1), "words_4": rows(0.9, 0.9)},
    }
    asked = [metric("pointing"), metric("words_4"), metric("energy")]
    found = findings(summary(given, asked, baselines=["random"]))
    assert found[0].startswith("Where is it? far, with pointing 0.7")
    lead = ", +0.250 [0.250, 0.250] against ours, not significantly different from ours: near."
    assert found[0].endswith(lead)
    assert found[1] == (
        "Where is each of four words? ours (the reference), with words 4 0.500 [0.500, 0.500], "
        "not tested on fewer than 30 images, but random is no worse."
    )
    assert found[2].startswith("What not to conclude: all tests are against ours")
    assert "60 images" in found[2]


def test_metrics_are_shown_as_papers_call_them() -> None:
    assert shown("legrad_map") == "LeGrad mAP"
    assert shown("mean_iou_half") == "mean IoU half"


RIVAL = Metric("which", "how it is measured", constant=0, rival="magnitude")
"""A metric whose best method is bold where it is better than a rival."""


def rival_column(shift: float, noise: float, *, rival: float = 0, named: float = 0) -> Summary:
    """Four methods, each better than the one before by `shift`, and their rivals as the n-th."""
    draw, images = np.random.default_rng(1), 40
    names = {"a": 1, "b": 2, "c": 3, "ours": 4, "magnitude": rival, "painted": 9, "named": named}
    given = {
        name: {"which": rows(*(shift * place + noise * draw.standard_normal(images)))}
        for name, place in names.items()
    }
    beside = {"baselines": ["magnitude", "named", "painted"], "without_map": ["named", "painted"]}
    return summary(given, [RIVAL], **beside, reference="a", resamples=1000)


def test_bold_needs_to_differ_from_the_rival_of_a_metric() -> None:
    """Whatever the reference of the evaluation is, and no ceiling need be beaten."""
    found = rival_column(0.5, 0.3)
    lines = table(markdown(found))
    assert [line[0] for line in lines if "**" in line[-1]] == ["ours"]
    assert "magnitude (reference)" in {line[0] for line in lines}
    assert "*Ceilings*" in {line[0] for line in lines}
    assert set(found.figures["reference"]) == {"magnitude"}
    assert found.reliability["which"] == 1
    assert "rank correlation between halves of the images is 1.00" in markdown(found)
    near = rival_column(0.5, 0.3, rival=3.8)  # lower, but not for certain
    means = near.figures.set_index("method")["mean"]
    assert means["ours"] > means["magnitude"]
    assert near.reliability["which"] > 0.9
    assert "**" not in "".join(line[-1] for line in table(markdown(near)))
    nobody = "no method that differs from magnitude after Holm's correction beats"
    assert f"{nobody} magnitude" in findings(near)[0]
    assert f"{nobody} named" in findings(rival_column(0.5, 0.3, named=5))[0]


def test_a_column_whose_halves_disagree_orders_nothing() -> None:
    draw = np.random.default_rng(1)
    given = {name: {"which": rows(*draw.standard_normal(60))} for name in ("a", "b", "ours")}
    given["magnitude"] = {"which": rows(*draw.standard_normal(60) - 5)}  # which all are better than
    found = summary(given, [RIVAL], baselines=["magnitude"], resamples=1000)
    assert "**" not in "".join(line[-1] for line in table(markdown(found)))
    assert found.reliability["which"] < 0.5
    assert "ranks nothing, since two halves of the images disagree" in findings(found)[0]
    assert "below 0.7, so it ranks nothing" in markdown(found)
    given = {name: {"which": rows(*range(40))} for name in ("ours", "theirs")}
    assert math.isnan(summary(given, [RIVAL]).reliability["which"])  # two have no order to compare


def test_halves_agree_as_plain_loops_find() -> None:
    """Of a ratio as well: sums over a half first."""
    draw, images = np.random.default_rng(3), 21
    values = {name: draw.random((images, 2)) + 0.1 for name in "abcde"}
    given = {name: {"which": Rows(np.arange(images), v)} for name, v in values.items()}
    metric = Metric("which", "", statistic="ratio", rival="a")
    found = summary(given, [metric]).reliability["which"]
    random, expected = np.random.default_rng(0), list[float]()
    for _ in range(200):
        half = random.permutation(images) % 2 == 0
        ranks = []
        for side in (half, ~half):
            sums = [values[name][side].sum(0) for name in "abcde"]
            order = np.argsort(np.argsort([top / bottom for top, bottom in sums]))
            ranks.append((order - order.mean()) / (order - order.mean()).std())
        expected.append(float((ranks[0] * ranks[1]).mean()))
    assert found == pytest.approx(np.mean(expected))


def test_undefined_figures_are_blank() -> None:
    """A share of nothing is none."""
    nothing = Rows(np.arange(3), np.zeros((3, 2)))
    good = Rows(np.arange(3), np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    share = Metric("share", "", statistic="ratio")
    found = summary({"ours": {"share": good}, "flat": {"share": nothing}}, [share])
    assert [records(found)[1][name] for name in ("mean", "rows", "difference")] == ["", "3", ""]
    text = markdown(found)
    assert table(text)[2] == ["flat", "–"]


def test_bold_compares_methods_on_equally_many_images() -> None:
    """A better figure on half of the images is not the best of all, and says on how many it is."""
    given = {"ours": {"pointing": rows(0.5, times=8)}, "theirs": {"pointing": rows(0.9, times=4)}}
    _, ours, theirs = table(markdown(summary(given, [metric("pointing")])))
    assert ours[1].startswith("**0.500**")
    assert ours[1] == "**0.500** [0.500, 0.500]"
    assert theirs[1] == "0.900 [0.900, 0.900] (n = 4)"


def test_bold_compares_methods_on_all_regions_of_the_images() -> None:
    """A better figure that lacks a region of an image is not the best, and says what it lacks."""
    ours = Rows(np.arange(8).repeat(2), np.full((16, 1), 0.5))
    theirs = Rows(ours.owners[:15], np.full((15, 1), 0.9))
    given = {"ours": {"pointing": ours}, "theirs": {"pointing": theirs}}
    text = markdown(summary(given, [metric("pointing")]))
    _, best, other = table(text)
    assert best[1] == "**0.500** [0.500, 0.500]"
    assert other[1] == "0.900 [0.900, 0.900] (n = 8, 15 of 16 values)"
    assert "lacks values of some texts or regions shows how many it has" in text


def test_what_a_constant_answer_gets_is_never_bold() -> None:
    """Not even where it is the best of the column."""
    given = {"ours": {"auc": rows(0.45, times=4)}, "random": {"auc": rows(0.5, times=4)}}
    for ours, bold in ((0.45, False), (0.5, False), (0.51, True)):
        given["ours"] = {"auc": rows(ours, times=4)}
        column = Metric("auc", "", constant=0.5)
        text = markdown(summary(given, [column], baselines=["random"]))
        assert ("**0.5" in text) is bold
