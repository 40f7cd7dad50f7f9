"""What a study is told, before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from captum_clip.bench.run import StudyConfig
from captum_clip.bench.study import emotions_study
from captum_clip.errors import InputError

GOOD = StudyConfig("images", "out", ("a horse",))


BAD: list[Any] = [
    ({"batch_size": 0}, "`batch_size` of 1 or more, got 0"),
    ({"batch_size": True}, "`batch_size` of 1 or more, got True"),
    ({"chunk_size": 2.0}, "`chunk_size` of 1 or more, got 2.0"),
    ({"limit": 0}, "limit of 1 or more"),
    ({"workers": -1}, "workers of 0 or more"),
    ({"threads": 0}, "threads of 1 or more"),
    ({"threads": 10**12}, "threads up to 4096, got"),
    ({"batch_size": 10**9}, "`batch_size` up to 65536, got"),
    ({"value_entropy": "no"}, "`value_entropy` of True or False, got 'no'"),
    ({"seed": None}, "seed of 0 or more, got None"),
    ({"models": ()}, "nothing to explain"),
    ({"models": ("",)}, "expected models by name or path"),
    ({"models": ("a", "a")}, "'a' is given twice in models"),
    ({"methods": ("nonsense",)}, "expected one of grad-cam"),
    ({"methods": ("last-grad:heads",)}, "cannot read 'heads'"),
    ({"texts": ()}, "nothing to explain"),
    ({"texts": ("a", " ")}, "texts with something in them, got ' '"),
    ({"texts": ("a", "a")}, "'a' is given twice in texts"),
    ({"centered": True}, "centered applies to emotions"),
    ({"emotions": ("a", "b")}, r"each of ViT-B/32, .* got \('a', 'b'\)"),
    ({"engine": "spark"}, "engine of local, ray, got 'spark'"),
    ({"gpus": 2}, "`engine='ray'` uses more"),
    ({"engine": "ray", "workers": 0}, "Ray needs one worker"),
    ({"engine": "ray", "workers": 1, "gpus": 2}, "as many as GPUs, got `workers=1` and `gpus=2`"),
]


def test_config_says_what_cannot_be_studied() -> None:
    for change, message in BAD:
        with pytest.raises(InputError, match=message):
            replace(GOOD, **change)


SAME: list[Any] = [
    {"images": "elsewhere"},
    {"output": "elsewhere"},
    {"engine": "ray"},
    {"workers": 5},
    {"gpus": 1},
    {"seed": 1},
]


def test_identity_knows_neither_places_nor_the_engine() -> None:
    for change in SAME:
        assert replace(GOOD, **change).identity() == GOOD.identity()


DECIDING: list[Any] = [
    {"texts": ("a dog",)},
    {"batch_size": 8},
    {"chunk_size": 64},
    {"limit": 5},
    {"value_entropy": True},
    {"threads": 1},
    {"image_size": 448},
]


def test_identity_knows_all_that_decides_results() -> None:
    for change in DECIDING:
        changed = replace(GOOD, **change).identity()
        assert changed != GOOD.identity()
        assert json.loads(json.dumps(changed)) == changed


def test_identity_knows_the_seed_of_a_sample() -> None:
    sample = replace(GOOD, limit=5)
    assert replace(sample, seed=1).identity() != sample.identity()


def test_single_things_become_tuples() -> None:
    """A list is a tuple, and one text is no list of letters."""
    config = StudyConfig("images", "out", "ab", ["a"])
    assert config.models == ("a",)
    assert config.texts == ("ab",)


def test_each_engine_has_its_own_number_of_workers() -> None:
    assert GOOD.processes == 2
    assert replace(GOOD, engine="ray").processes == 1
    assert replace(GOOD, engine="ray", gpus=4).processes == 4
    assert replace(GOOD, workers=0).processes == 0


def test_emotions_are_studied_with_a_vit_next_to_a_resnet() -> None:
    """Plain and centered, each model with its own file."""
    config = emotions_study("images", "out", emotions=["a.json", "b.json"], seed=3)
    assert (config.models, config.emotions) == (("ViT-B/32", "RN101"), ("a.json", "b.json"))
    assert (config.centered, config.seed, config.texts) == (True, 3, ())
    with pytest.raises(InputError, match="there is nothing to explain"):
        emotions_study("images", "out")
