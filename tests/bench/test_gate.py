"""A model at chance on what is asked is told from one above it, and named no winner for."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from captum_clip.bench.batch import measure_gate
from captum_clip.bench.data.base import NamedRegion, Sample
from captum_clip.bench.data.demo import DemoScenes
from captum_clip.bench.evaluator import Evaluation, evaluate
from captum_clip.bench.report import TABLES, findings, render, report_tables
from captum_clip.bench.run import EvaluationConfig
from captum_clip.bench.table import Check, Gate
from captum_clip.files import draw_order
from captum_clip.metrics import bootstrap_mean
from captum_clip.models.variants import randomize_parameters
from tests.bench.cases import Listed, context, half, model, settings
from tests.bench.test_tables import metric, rows, summary

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def asked(samples: list[Sample], answers: Any = None, **given: Any) -> Gate:
    """The gate of a model of colors: the mean of an image next to red, green and blue.

    `answers` takes the place of its embeddings of images.
    """

    def encode_image(pixels: Tensor) -> Tensor:
        means = F.normalize(pixels.mean((-2, -1)), dim=-1)
        return means if answers is None else answers(means)

    def encode(texts: list[str]) -> Tensor:
        return torch.eye(3)[[[*COLORS].index(text) for text in texts]]

    real = model("hf_vit")
    clip = SimpleNamespace(
        encode_image=encode_image, preprocess=real.preprocess, processor=real.processor
    )
    options = {"classes": [*COLORS], **given}
    fake: Any = SimpleNamespace(
        data=Listed(*samples, **options), clip=clip, config=settings(), encode=encode
    )
    return measure_gate(fake)


def plain(*colors: str, **given: Any) -> Sample:
    """Stripes of colors, of the class of the first."""
    columns = [np.full((32, 32 // len(colors), 3), COLORS[color], np.uint8) for color in colors]
    name = f"{colors}{given.pop('number', 0)}"
    return Sample(name, Image.fromarray(np.hstack(columns)), **given)


SIX = [plain(c, label=k, number=n) for n in range(3) for k, c in enumerate(COLORS)]


def test_a_model_that_knows_all_is_right_where_it_should_be_and_nowhere_else() -> None:
    gate = asked(SIX)
    assert gate.checks == {"recall among 3 texts": Check(1, 0, 1, 1, 9)}
    assert gate.is_above_chance
    assert str(gate) == (
        "listed: above chance on what is asked (recall among 3 texts 1, by chance 0, difference "
        "+1 [+1, +1] on 9 images)."
    )


def test_an_answer_that_is_always_the_same_is_at_chance_however_often_it_is_right() -> None:
    """Three of four images are red, and so is the answer: .75 of them, and chance is as high."""
    samples = [plain("red", label=0, number=n) for n in range(6)]
    gate = asked([*samples, plain("blue", label=2), plain("green", label=1)], torch.zeros_like)
    [check] = gate.checks.values()
    assert check.figure == check.chance == pytest.approx(0.75)
    assert not gate.is_above_chance
    assert "this model is at chance on what is asked; do not interpret (recall" in str(gate)


def test_one_text_that_is_known_does_not_vouch_for_the_others() -> None:
    """Over many images the answer for red is sure, but over texts the interval reaches zero."""
    samples = [plain("red", label=0, number=n) for n in range(40)]
    samples += [plain(c, label=COLORS_NUMBER[c], number=n) for n in range(9) for c in OTHERS]

    def only_red(means: Tensor) -> Tensor:  # green and blue are taken for each other
        return torch.where(means[:, :1] > 0.5, means, means[:, [0, 2, 1]])

    gate = asked(samples, only_red)
    [check] = gate.checks.values()
    assert not gate.is_above_chance
    assert check.figure == pytest.approx(40 / 58)
    assert check.low < 0 < check.figure - check.chance


COLORS_NUMBER = {name: number for number, name in enumerate(COLORS)}
OTHERS = ("green", "blue")


def test_what_no_text_can_tell_apart_is_not_checked() -> None:
    """One image; images of one text; images that all hold all texts."""
    every = tuple(
        NamedRegion(text, half(side)) for text, side in (("red", "top"), ("blue", "left"))
    )
    both = [plain("red", "blue", regions=every, number=n) for n in range(3)]
    for samples, classes in (
        (SIX[:1], [*COLORS]),
        ([plain("red", label=0, number=n) for n in range(3)], ["red"]),
        (both, ["red", "blue"]),
    ):
        gate = asked(samples, classes=classes)
        assert gate.checks == {}
        assert gate.is_above_chance
        said = "listed: whether the model is above chance cannot be told; add images that show"
        assert str(gate).startswith(said)


def test_every_kind_of_truth_says_what_an_image_holds() -> None:
    """Numbers of label images but background and void, and texts of regions."""
    labels = np.array([[0, 3, -1, 0]] * 2)
    samples = [
        plain("red", labels=labels),
        plain("green", regions=(NamedRegion("green", half("top")),)),
        plain("blue", regions=(NamedRegion("any", half("top"), label=2),)),
        # a caption that is a class, whatever phrases have boxes
        plain(
            "blue", label=2, caption="blue", regions=(NamedRegion("green", half("top")),), number=1
        ),
    ]
    [check] = asked(samples).checks.values()
    assert (check.figure, check.chance, check.images) == (1, 0, 4)


def scenes(count: int) -> DemoScenes:
    return DemoScenes(count, 3)


@pytest.mark.parametrize("name", ["demo/vit"])
def test_checks_are_their_definitions(name: str) -> None:
    """Recall and |effect| by loops, in double precision, with both intervals."""
    clip, data = model(name), scenes(5)
    gate = measure_gate(context(clip, data, batch_size=2, resamples=50, seed=1))
    texts = torch.cat([clip.encode_text([text]) for text in data.classes]).detach().double()
    own, answers, effects = [], [], []
    for sample in map(data.read, draw_order(data.names, 1)):
        own.append([data.classes.index(region.text) for region in sample.regions])
        subsets = (
            clip.encode_image(clip.preprocess([image for image in sample.subsets if image]))
            .detach()
            .double()
        )
        scores = subsets @ texts.T
        answers.append(scores[-1].argsort(descending=True).tolist())
        count = len(sample.regions)
        phi = torch.zeros(count, len(texts)).double()
        for thing in range(count):
            for subset in range(2**count):
                if not subset >> thing & 1:
                    size = bin(subset).count("1")
                    weight = {2: (1 / 2, 1 / 2), 3: (1 / 3, 1 / 6, 1 / 3)}[count][size]
                    phi[thing] += weight * (scores[subset | 1 << thing] - scores[subset])
        effects.append(phi.abs().mean(0))
    recall: list[tuple[Any, ...]] = []
    moved: list[tuple[Any, ...]] = []
    for place, held in enumerate(own):
        for text in held:
            others = [n for n in range(5) if text not in own[n]]
            chance = np.mean([text in answers[n][: len(held)] for n in others])
            recall.append((place, text, text in answers[place][: len(held)], chance))
            rest = [t for t in range(len(texts)) if t not in held]
            moved.append((place, text, effects[place][text].item(), effects[place][rest].mean()))
    for check, found in zip(gate.checks.values(), (recall, moved), strict=True):
        images, words, values, chances = map(np.array, zip(*found, strict=True))
        assert check.figure == pytest.approx(values.mean(), abs=1e-6)
        assert check.chance == pytest.approx(chances.mean(), abs=1e-6)
        gaps = values - chances
        over_images = bootstrap_mean(gaps, images, resamples=50, seed=1)
        names = [data.classes[word] for word in words]
        over_texts = bootstrap_mean(gaps, names, resamples=50, seed=1)
        assert check.images == 5
        assert check.low == pytest.approx(min(over_images.low, over_texts.low), abs=1e-6)
        assert check.high == pytest.approx(max(over_images.high, over_texts.high), abs=1e-6)


def test_random_weights_are_stopped_and_trained_ones_are_not() -> None:
    drawn = scenes(16)  # once for all three
    data = Listed(*map(drawn.read, range(16)), classes=drawn.classes)
    for seed in range(2):
        clip = randomize_parameters(model("demo/vit"), seed=seed)
        assert not measure_gate(context(clip, data)).is_above_chance
    assert measure_gate(context(model("demo/vit"), data)).is_above_chance


def test_metrics_of_unknown_data_name_no_winner() -> None:
    """Neither bold cells nor findings; those of other data stay."""
    given = {
        "ours": {"pointing": rows(0.1, 0.2), "words_4": rows(0.1, 0.2)},
        "theirs": {"pointing": rows(0.3, 0.4), "words_4": rows(0.3, 0.4)},
    }
    found = summary(given, [metric("pointing"), metric("words_4")])
    assert [len(c.bold) for c in report_tables(found)["Where"]] == [1, 1]
    gates = [
        Gate("scenes", {"recall": Check(0.02, 0.02, -0.01, 0.01, 20)}),
        Gate("mosaics", {"recall": Check(0.9, 0.02, 0.8, 0.9, 20)}),
    ]
    found = replace(found, gates=gates, unknown={"pointing"})
    assert [c.bold for c in report_tables(found)["Where"]] == [(), ("theirs",)]
    lines = findings(found)
    assert lines[0].startswith(
        "scenes: this model is at chance on what is asked; do not interpret ("
    )
    assert lines[1].startswith("Where is each of four words? theirs")
    assert not any("Where is it?" in line for line in lines)
    assert lines[-1].startswith("What not to conclude")
    found = replace(found, unknown={"pointing", "words_4"})
    assert findings(found) == lines[:1]
    text = render(TABLES, found, title="Evaluation", about={})
    assert "**0." not in text
    assert text.index("do not interpret") < text.index("| Method")
    assert "mosaics: above chance on what is asked (recall" in text


def ran(model: str, output: Path, **given: Any) -> tuple[Evaluation, str, str]:
    config = EvaluationConfig(
        *(model, str(output), ("demo",), ("last-grad", "random")),
        tasks=("localization",),
        images=6,
        resamples=50,
        threads=1,
        **given,
    )
    return evaluate(config), *written(output)


def written(output: Path) -> tuple[str, str]:
    """The tables and the page of an evaluation."""
    return (output / "results.md").read_text(), (output / "report.html").read_text()


def test_maps_against_images_have_no_gate(tmp_path: Path, vit: str) -> None:
    """Nothing is asked in words there."""
    evaluation, table, page = ran(vit, tmp_path, against="image")
    assert evaluation.findings[0].startswith("Where is it?")
    assert "what is asked" not in table + page


def test_a_report_on_random_weights_names_no_winner(tmp_path: Path, vit: str) -> None:
    """And one on trained weights does; both say what the model knows before any table."""
    evaluation, table, page = ran(vit, tmp_path / "random")
    warning = "demo: this model is at chance on what is asked; do not interpret (recall among"
    assert [line[: len(warning)] for line in evaluation.findings] == [warning]
    assert not re.search(r"\*\*[−\d.]+\*\*", table)
    assert not re.search(r"<td[^>]*><strong>", page)
    for text, begin in ((table, "| Method"), (page, "<table>")):
        assert text.index(warning.replace("|", r"\|")) < text.index(begin)
    config = EvaluationConfig(
        *("demo/vit", str(tmp_path / "trained"), ("demo",), ("direct", "legrad", "center")),
        tasks=("localization",),
        images=6,
        seed=5,
        threads=1,
    )
    trained = evaluate(config)
    table, page = written(tmp_path / "trained")
    assert trained.findings[0].startswith("Where is it? direct")
    assert re.search(r"\*\*[−\d.]+\*\*", table)
    for text, begin in ((table, "| Method"), (page, "<table>")):
        assert text.index("demo: above chance on what is asked (recall") < text.index(begin)
