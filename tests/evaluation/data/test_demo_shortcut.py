"""The planted shortcut's scenes as data sets, and what an evaluation finds on them."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import pytest

from captum_clip.demo.captions import article
from captum_clip.demo.tags import draw_tagged_scene
from captum_clip.evaluation import EvaluationConfig, evaluate
from captum_clip.evaluation.data import DemoShortcut, DemoShortcutObject, DemoShortcutOther

KINDS: list[Any] = [DemoShortcut, DemoShortcutObject, DemoShortcutOther]


@pytest.mark.parametrize("kind", KINDS)
def test_tagged_scenes_are_a_lawful_data_set(kind, lawful):
    lawful(kind(4, seed=3))


def test_each_data_set_asks_for_its_part_of_the_same_scenes():
    """The tagged noun on the tag and on the object, the other noun on the tag."""
    for index in range(4):
        scene = draw_tagged_scene(index)
        [tag], [thing], [other] = (kind(4).read(index).regions for kind in KINDS)
        assert tag.text == thing.text == article(scene.noun)
        assert other.text == article(scene.others[0].noun)
        assert np.array_equal(tag.mask, scene.tag_mask)
        assert np.array_equal(other.mask, scene.tag_mask)
        assert np.array_equal(thing.mask, scene.object_mask)
        assert all(np.array_equal(kind(4).read(index).image, scene.image) for kind in KINDS)


METHODS = ("all-grad", "direct", "rollout", "random")


def pointing(folder, model, data, methods=METHODS, images=6):
    """How often the maximum of a method's map is on the part, within 15 pixels: method -> share."""
    output = folder / f"{model}-{data}".replace("/", "-")
    settings: dict[str, Any] = {"methods": methods, "images": images, "resamples": 9}
    evaluate(EvaluationConfig(model, output, data=(data,), **settings))
    with open(output / "results.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "pointing_15"]
    return {row["method"]: float(row["mean"]) for row in rows}


@pytest.mark.slow
def test_methods_show_the_tag_where_it_is_the_reason(tmp_path):
    """As docs/shortcut.md finds: these do, and only there; rollout whatever the text."""
    planted = pointing(tmp_path, "demo/shortcut", "demo-shortcut")
    control = pointing(tmp_path, "demo/vit", "demo-shortcut")
    other = pointing(tmp_path, "demo/shortcut", "demo-shortcut-other")
    for method in ("all-grad", "direct"):
        assert planted[method] > 0.8
        assert max(control[method], other[method]) <= 0.5
    assert other["rollout"] == planted["rollout"] > 0.5
    assert planted["random"] < 0.3
    assert pointing(tmp_path, "demo/shortcut", "demo-shortcut-object")["all-grad"] == 0


def test_captums_occlusion_shows_the_tag(tmp_path):
    shares = pointing(tmp_path, "demo/shortcut", "demo-shortcut", ("occlusion",), images=2)
    assert shares == {"occlusion": 1.0}
