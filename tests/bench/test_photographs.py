"""Photographs: phrases in boxes, retrieval, points, removed objects and groups, by plain loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_clip import attr, maps, targets
from captum_clip.bench.data import open_data
from captum_clip.bench.evaluator import evaluate
from captum_clip.bench.run import EvaluationConfig
from tests.bench.cases import Listed, Rows, context, direct, measured, model
from tests.photographs import (
    make_captions,
    make_counterfactuals,
    make_points,
)

CLIP = model("demo/vit")


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_data(make_captions(tmp_path_factory.mktemp("captions")))


def text(caption: str) -> Tensor:
    return targets.text(CLIP, caption).embeddings[0]


def values(rows: Rows) -> list[float]:
    return rows.values[:, 0].tolist()


def test_maps_of_phrases_are_measured_in_their_boxes(captions: Any) -> None:
    """A phrase's target is what it adds to the caption; the caption's own map stands beside it."""
    found = measured("words", context(CLIP, captions), "last-grad")
    expected: dict[str, list[float]] = {name: [] for name in found}
    for number in range(3):
        sample = captions.read(number)
        [pixels] = CLIP.preprocess([sample.image])
        of_caption = direct(CLIP, attr.LastGradAttention, pixels, text(sample.caption)).clamp(min=0)
        for region in sample.regions:
            mask = torch.from_numpy(region.mask)
            row = targets.words(CLIP, sample.caption, [region.text]).embeddings[0]
            raw, against = (
                direct(CLIP, attr.LastGradAttention, pixels, r).clamp(min=0) for r in (row, -row)
            )
            one, whole, signed = (
                maps.upsample(m, (224, 224)) for m in (raw, of_caption, raw - against)
            )
            right = signed.clamp(min=0)[mask].sum() - signed.clamp(max=0)[~mask].sum()
            expected["words_boxes"].append(float(right / signed.abs().sum()))
            expected["word_energy_boxes"].append(float(one[mask].sum() / one.sum()))
            expected["word_pointing_boxes"].append(float(mask.flatten()[one.argmax()]))
            expected["caption_boxes"].append(float(whole[mask].sum() / whole.sum()))
    assert len(expected) == 4
    for name, plain in expected.items():
        assert values(found[name]) == pytest.approx(plain, abs=1e-6), name
    assert found["words_boxes"].regions == ("horse", "dog", "cat", "car", "bus", "apple")


def test_retrieval_asks_for_the_own_caption_among_all(captions: Any) -> None:
    """R@1 over shares removed, with a limit too; no map of another caption is made."""
    small = open_data(f"samples:{captions.path}", number=2)
    assert len(small) == 2
    found = measured("perturbation", context(CLIP, small, fills=("mean",)), "last-grad")
    rows = torch.stack([text(caption) for caption in captions.classes])
    for number, sample in enumerate(map(small.read, range(2))):
        [pixels] = CLIP.preprocess([sample.image])
        assert sample.caption is not None
        own = captions.classes.index(sample.caption)
        heatmap = direct(CLIP, attr.LastGradAttention, pixels, rows[own]).clamp(min=0)
        order = maps.upsample(heatmap, (224, 224)).flatten().argsort(descending=True, stable=True)
        first, gaps = [], []
        for step in range(11):
            cosines = []
            for ranked in (order, order.flip(0)):
                changed = pixels.clone().flatten(1)
                changed[:, ranked[: round(step / 10 * len(order))]] = 0
                embedding = CLIP.encode_image(changed.view_as(pixels)[None]).detach()[0]
                cosines.append(rows @ embedding)
            first.append(float(cosines[0].argmax() == own))
            gaps.append(float(cosines[1][own] - cosines[0][own]))
        curve = found["curve_most_mean_caption"].values[number]
        assert curve.tolist() == first
        assert found["most_mean_caption"].values[number] == pytest.approx(
            np.trapezoid(first) / 10, abs=1e-4
        )
        gap = found["gap_cosine_mean_caption"].values[number]
        assert gap == pytest.approx(np.trapezoid(gaps) / 10, abs=2e-3)  # ties are in another order
    assert not [name for name in found if name.endswith(("_true", "_predicted", "_2"))]


def test_points_are_compared_in_pairs(tmp_path: Path) -> None:
    """The share of pairs of a pixel inside and one outside that the map puts in order."""
    data = open_data(make_points(tmp_path), number=3)
    found = measured("localization", context(CLIP, data), "last-grad")
    for number, sample in enumerate(map(data.read, range(3))):
        [pixels] = CLIP.preprocess([sample.image])
        [region] = sample.regions
        heatmap = direct(CLIP, attr.LastGradAttention, pixels, text(region.text)).clamp(min=0)
        heatmap = maps.upsample(heatmap, (224, 224))
        assert region.void is not None
        inside = heatmap[torch.from_numpy(region.mask)].tolist()
        outside = heatmap[torch.from_numpy(~region.mask & ~region.void)].tolist()
        wins = [(1 + np.sign(one - other)) / 2 for one in inside for other in outside]
        assert found["point_auc"].values[number] == pytest.approx(np.mean(wins), abs=1e-6)
        assert found["pointing"].values[number] == float(max(inside) > max(outside))
    constant = measured("localization", context(CLIP, data), "uniform")
    assert values(constant["point_auc"]) == [0.5] * 3


def test_removed_objects_are_effects(tmp_path: Path) -> None:
    """All of a whole set of images; of one without a thing what is lost with it, for both texts."""
    data = open_data(make_counterfactuals(tmp_path))
    found = measured("effect", context(CLIP, data), "direct")
    effects: dict[str, list[list[float]]] = {"effect": [], "removal": []}
    for sample in map(data.read, range(4)):
        rows = torch.stack([text(region.text) for region in sample.regions])
        scores = [
            None
            if image is None
            else rows @ CLIP.encode_image(CLIP.preprocess([image]))[0].detach()
            for image in sample.subsets
        ]
        for of_image in effects.values():
            of_image.append([])
        for index in range(2):
            for without in (0b10, 0b01):
                none, whole = scores[0], scores[3]
                assert whole is not None
                left, kept = scores[without], scores[3 - without]
                if left is not None:
                    effects["removal"][-1].append(float(whole[index] - left[index]))
                if none is not None and left is not None and kept is not None:
                    gains = (whole - left)[index], (kept - none)[index]
                    effects["effect"][-1].append(float(sum(gains) / 2))
    for name, counts in (("effect", [4, 4, 4, 0]), ("removal", [4, 4, 4, 2])):
        assert [len(each) for each in effects[name]] == counts
        expected = [[sum(e > 0 for e in each), sum(e < 0 for e in each)] for each in effects[name]]
        got = found[f"{name}_balanced"]
        assert got.values[:, 1::2].tolist() == [both for both in expected if any(both)]
        assert found[f"{name}_spearman_scene"].owners.tolist() == got.owners.tolist()
        # of the last picture each text has one object alone, and no ranks
        assert found[f"{name}_spearman_scene_others"].owners.tolist() == [0, 1, 2]
    sample = data.read(3)
    alone = replace(sample, regions=sample.regions[1:], subsets=(sample.subsets[1], sample.image))
    one = measured("effect", context(CLIP, Listed(alone)), "direct")
    assert set(one) == {f"{name}_{end}" for name in effects for end in ("agreement", "balanced")}
    for name in effects:
        rises, falls = one[f"{name}_balanced"].values[0, 1::2]
        assert rises - falls == np.sign(effects["removal"][-1][-1])
    pairs = measured("pairs", context(CLIP, data), "direct")
    assert pairs["share_interaction_scene"].owners.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("make", "tasks", "title", "best"),
    [
        (make_captions, ("words", "perturbation"), "Phrases in their boxes", "word_pointing_boxes"),
        (make_points, ("localization",), "Localization", "point_auc"),
        (make_counterfactuals, ("effect", "signs"), "Effect of an object", "target_among_regions"),
    ],
)
def test_photographs_are_evaluated(
    tmp_path: Path, make: Any, tasks: tuple[str, ...], title: str, best: str
) -> None:
    """From a folder to a report, in which groups have tables of their own."""
    data = make(tmp_path / "data", ("land", "water"))
    given: dict[str, Any] = {"fills": ("mean",), "resamples": 20, "methods": ("direct", "uniform")}
    config = EvaluationConfig("demo/vit", str(tmp_path / "out"), (data,), tasks=tasks, **given)
    found = evaluate(config)
    assert title in found.summary.groups
    figures = found.summary.figures.set_index(["metric", "method"])["mean"]
    assert figures[best, "direct"] > figures[best, "uniform"]
    of_groups = [figures[f"{best}_in_{group}", "direct"] for group in ("land", "water")]
    assert figures[f"{best}_in_worst_group", "direct"] == min(of_groups)
    page = (tmp_path / "out/results.md").read_text()
    assert "worst group" in page
