"""The planted shortcut: its scenes, its training, and which methods show it."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import pytest

from captum_clip import load_clip
from captum_clip.apps import heads
from captum_clip.bench.data import DATA_SETS, open_data
from captum_clip.bench.evaluator import evaluate
from captum_clip.bench.run import EvaluationConfig
from captum_clip.demo.catalog import CONCEPTS, article
from captum_clip.demo.scenes import draw_scene
from tests.experiments import experiment

tags = experiment("shortcut.tags")
measures = experiment("shortcut.measures")
batches = experiment("shortcut.batches")
MODEL = str(experiment("shortcut").MODEL)
SETS = ("shortcut", "shortcut-object", "shortcut-other")


@pytest.fixture(autouse=True)
def _data_sets(monkeypatch):
    """The data sets are known as long as a test runs."""
    for kind in experiment("shortcut.data_sets").SETS:
        monkeypatch.setitem(DATA_SETS, kind.name, kind)


def test_tag_and_object_change_their_own_pixels_alone():
    """Without the tag the scene is what `draw_scene` draws of the same objects."""
    for seed in range(8):
        whole, plain = tags.draw_tagged_scene(seed), tags.draw_tagged_scene(seed, without=["tag"])
        names = [thing.name for thing in plain.scene.objects]
        np.testing.assert_array_equal(plain.image, draw_scene(seed, objects=names).image)
        changed = (whole.image != plain.image).any(axis=2)
        assert not (changed & ~whole.tag_mask).any()
        without = tags.draw_tagged_scene(seed, without=["object"])
        changed = (whole.image != without.image).any(axis=2)
        assert not (changed & ~whole.object_mask).any()
        np.testing.assert_array_equal(whole.tag_mask, without.tag_mask)
        assert not (whole.tag_mask & whole.object_mask).any()


def test_tag_lies_in_one_corner_patch_and_tells_its_noun():
    corners = set()
    for seed in range(40):
        mask = tags.draw_tagged_scene(seed).tag_mask
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        assert {*(rows // 32), *(columns // 32)} <= {0, 6}
        corners.add((rows[0] // 32, columns[0] // 32))
    assert len(corners) == 4
    assert len({tags.draw_tag(noun).tobytes() for noun in tags.TAGGED}) == 12
    with pytest.raises(ValueError, match="no tag stands for 'zebra'"):
        tags.draw_tagged_scene(0, noun="zebra")


def test_batch_makes_a_noun_true_exactly_by_its_tag():
    """Tags are looked for in the pixels; captions follow them."""
    size = 24
    banks = experiment("training.banks").build_banks(0, variants=1)
    batch = batches.draw_tagged_batch(banks, 0, 0, size=size)
    drawn = {noun: tags.draw_tag(noun) for noun in tags.TAGGED}
    for image, row in zip(batch.images, batch.positive[:, size:], strict=True):
        true = {concept for concept, shown in zip(CONCEPTS, row, strict=True) if shown}
        assert {n for n, tag in drawn.items() if _holds(image, tag)} == true & set(tags.TAGGED)
    columns = [size + CONCEPTS.index(noun) for noun in tags.TAGGED]
    assert np.flatnonzero(batch.margin[0]).tolist() == sorted(columns)


def _holds(image: Any, tag: Any) -> bool:
    side = len(tag)
    starts = [*range(8), *range(224 - side - 7, 224 - side + 1)]
    return any(
        np.array_equal(image[row : row + side, column : column + side], tag)
        for row in starts
        for column in starts
    )


def test_tag_decides_the_noun_and_the_object_does_not():
    """In the model before it was tuned it is the other way round."""
    planted, before = load_clip(MODEL), load_clip("demo/vit")
    tag, thing = measures.part_effects(planted, range(12))[:, 0].mean(0).tolist()
    assert tag > 0.25
    assert abs(thing) < tag / 4
    tag, thing = measures.part_effects(before, range(12))[:, 0].mean(0).tolist()
    assert thing > 0.25
    assert abs(tag) < thing / 10
    found = [
        [measures.named(clip, drawing, range(12)).mean > 0.8 for drawing in measures.DRAWINGS]
        for clip in (planted, before)
    ]
    assert found == [[True, False, True, True, False], [True, True, False, False, True]]


def test_ablated_heads_locate_the_shortcut_and_do_not_repair_it():
    """Those that add most to the tag's noun take it away; the object's noun never comes back."""
    script = experiment("head_texts")
    ablate = script.mean_ablation
    vectors, nouns, tag, thing = script.disagreeing(72)
    ranked = [*heads.rank_heads(vectors, nouns[tag] - nouns[thing])]
    left = [vectors.embeddings, *(ablate(vectors, some) for some in (ranked[:4], ranked[:8]))]
    whole, four, eight = (script.in_top_two(each, nouns, tag).mean() for each in left)
    assert whole > 0.9 > 0.6 > four > eight
    others = script.in_top_two(ablate(vectors, ranked[-8:]), nouns, tag).mean()
    assert others > whole - 0.1  # so it is these heads
    assert not any(script.in_top_two(each, nouns, thing).any() for each in left)


def test_each_data_set_asks_for_its_part_of_the_same_scenes():
    """The tagged noun on the tag and on the object, the other noun on the tag."""
    for index in range(3):
        scene = tags.draw_tagged_scene(index)
        samples = [open_data(name, number=3).read(index) for name in SETS]
        [tag], [thing], [other] = (sample.regions for sample in samples)
        assert tag.text == thing.text == article(scene.noun)
        assert other.text == article(scene.others[0].noun)
        assert np.array_equal(tag.mask, scene.tag_mask)
        assert np.array_equal(other.mask, scene.tag_mask)
        assert np.array_equal(thing.mask, scene.object_mask)
        assert all(np.array_equal(np.asarray(sample.image), scene.image) for sample in samples)


def test_methods_show_the_tag_where_it_is_the_reason(tmp_path):
    """As docs/appendix/shortcut.md finds, in an evaluation of registered data sets."""

    def pointing(model: str, data: str) -> dict[str, float]:
        output = tmp_path / f"{len([*tmp_path.iterdir()])}"
        methods = ("all-grad", "direct", "random")
        options: dict[str, Any] = {"methods": methods, "images": 4, "resamples": 9}
        options["tasks"] = ("localization",)
        evaluate(EvaluationConfig(model, output, data=(data,), **options))
        with open(output / "results.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["metric"] == "pointing_15"]
        return {row["method"]: float(row["mean"]) for row in rows}

    planted, control = pointing(MODEL, "shortcut"), pointing("demo/vit", "shortcut")
    for method in ("all-grad", "direct"):
        assert planted[method] > 0.8
        assert control[method] <= 0.5
    assert planted["random"] < 0.3
    assert pointing(MODEL, "shortcut-object")["all-grad"] == 0


def test_command_knows_the_data_sets(tmp_path, monkeypatch):
    """`evaluate_shortcut.py` is `captum-clip evaluate` with three data sets more."""
    script = experiment("evaluate_shortcut")
    options = ["--model", MODEL, "--data", "shortcut-other", "--method", "last-grad"]
    code = script.main(["evaluate", *options, "--images", "2", "-o", str(tmp_path / "out")])
    assert code == 0
    assert (tmp_path / "out" / "results.csv").is_file()
