"""What a study is told, before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from captum_clip.errors import InputError
from captum_clip.studies import StudyConfig, Subject

GOOD = StudyConfig("images", "out", (Subject("ViT-B/32"),), texts=("a horse",))
EMOTIONS = (Subject("ViT-B/32", emotions="a.json"), Subject("RN101"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size of 1 or more, got 0"),
        ({"batch_size": True}, "batch_size of 1 or more, got True"),
        ({"shard_size": 2.0}, "shard_size of 1 or more, got 2.0"),
        ({"limit": 0}, "limit of 1 or more"),
        ({"workers": -1}, "workers of 0 or more"),
        ({"threads": 0}, "threads of 1 or more"),
        ({"seed": None}, "seed of 0 or more, got None"),
        ({"subjects": ()}, "one or more Subjects"),
        ({"subjects": ("ViT-B/32",)}, "one or more Subjects"),
        ({"subjects": 3}, "subjects as a tuple, got int"),
        ({"subjects": (Subject("a"), Subject("a"))}, "'a, its default' is given twice"),
        ({"texts": ()}, "nothing to explain"),
        ({"texts": ("a", " ")}, "texts with something in them, got ' '"),
        ({"texts": ("a", "a")}, "the text 'a' is given twice"),
        ({"centred": True}, "centred means emotions"),
        ({"subjects": EMOTIONS}, "some have none"),
        ({"engine": "spark"}, "an engine of local, ray, got 'spark'"),
        ({"gpus": 2}, "engine='ray' uses 2"),
        ({"engine": "ray", "workers": 0}, "Ray needs one worker"),
        ({"engine": "ray", "workers": 1, "gpus": 2}, "2 GPUs need as many workers"),
    ],
)
def test_config_says_what_cannot_be_studied(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"StudyConfig: .*{message}"):
        replace(GOOD, **change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("",), "expected model by name"),
        ((3,), "expected model by name or path, so that any worker can load it, got int"),
        (("a", "nonsense"), "expected one of grad-cam"),
        (("a", "last-grad:heads"), "cannot read 'heads'"),
        (("a", None, 3), "expected emotions by name or path"),
    ],
)
def test_subject_is_a_name_with_a_method(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Subject(*arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"images": "elsewhere"},
        {"output": "elsewhere"},
        {"engine": "ray"},
        {"workers": 5},
        {"gpus": 1},
        {"seed": 1},
    ],
)
def test_identity_knows_neither_places_nor_the_engine(change: dict[str, Any]) -> None:
    assert replace(GOOD, **change).identity() == GOOD.identity()


@pytest.mark.parametrize(
    "change",
    [
        {"texts": ("a dog",)},
        {"subjects": (Subject("ViT-B/16"),)},
        {"subjects": (Subject("ViT-B/32", "all-grad"),)},
        {"subjects": (Subject("ViT-B/32", emotions="a.json"),)},
        {"batch_size": 8},
        {"shard_size": 64},
        {"limit": 5},
        {"value_entropy": True},
        {"threads": 1},
    ],
)
def test_identity_knows_all_that_decides_results(change: dict[str, Any]) -> None:
    changed = replace(GOOD, **change).identity()
    assert changed != GOOD.identity()
    assert json.loads(json.dumps(changed)) == changed


def test_identity_knows_the_seed_of_a_sample() -> None:
    sample = replace(GOOD, limit=5)
    assert replace(sample, seed=1).identity() != sample.identity()


def test_single_things_become_tuples() -> None:
    """A list is a tuple, and one text is no list of letters."""
    config = StudyConfig("images", "out", [Subject("a")], texts="ab")  # type: ignore[arg-type]
    assert config.subjects == (Subject("a"),)
    assert config.texts == ("ab",)


def test_results_call_a_folder_by_its_last_part(tmp_path: Path) -> None:
    """So that no path gets into them; names stay as they are."""
    (tmp_path / "small-vit").mkdir()
    assert Subject(str(tmp_path / "small-vit")).label == "small-vit"
    assert Subject("demo/vit").label == "demo/vit"
    assert Subject("ViT-B/32").label == "ViT-B/32"
    assert Subject("org/model").label == "org/model"


def test_shards_are_whole_batches() -> None:
    assert replace(GOOD, batch_size=16, shard_size=128).batches_per_shard == 8
    assert replace(GOOD, batch_size=16, shard_size=20).batches_per_shard == 2
    assert replace(GOOD, batch_size=16, shard_size=1).batches_per_shard == 1


def test_each_engine_has_its_own_number_of_workers() -> None:
    assert GOOD.choose_engine().processes == 2
    assert replace(GOOD, engine="ray").choose_engine().processes == 1
    assert replace(GOOD, engine="ray", gpus=4).choose_engine().processes == 4
    assert replace(GOOD, workers=0).choose_engine().processes == 0
