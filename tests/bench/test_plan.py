"""What is to be computed: how data are cut into units, and what they are called."""

from __future__ import annotations

from typing import Any

import pytest

from captum_clip.bench.batch import Task
from captum_clip.bench.data import DATA_SETS
from captum_clip.bench.data.base import Sample
from captum_clip.bench.evaluator import _units
from captum_clip.bench.methods import Drawn
from captum_clip.bench.tasks import TASKS, tasks_of
from captum_clip.files import draw_names
from tests.bench.cases import Listed, context, model, picture, settings


def any_method(name: str, *, costly: bool = False) -> Any:
    method = Drawn(name, "", lambda grid, number: None)  # type: ignore[arg-type,return-value]
    method.costly = costly
    return method


def test_every_method_sees_every_sample_once_and_costly_ones_a_sample_of_them() -> None:
    """Batch by batch, so that all methods of a batch share it."""
    data = [Listed(*(Sample(str(n), picture()) for n in range(count))) for count in (5, 2)]
    methods = [any_method("one"), any_method("the other", costly=True)]
    units = [*_units(settings(chunk_size=2, slow_images=3), data, methods)]
    first, second, last = (units[place].numbers for place in (0, 2, 4))
    assert [(*divmod(u.job, 2), u.numbers) for u in units] == [
        *[(0, 0, first), (0, 1, first), (0, 0, second), (0, 1, units[3].numbers), (0, 0, last)],
        *[(1, 0, (0, 1)), (1, 1, (0, 1))],
    ]
    assert sorted(first + second + last) == [0, 1, 2, 3, 4]
    assert len(units[3].numbers) == 1
    assert {*units[3].numbers} < {*second}


def test_costly_methods_see_every_class_of_a_sorted_list() -> None:
    """250 images of 50 classes, as file data list them: 64 come from most, not from 13."""
    names = [f"class{number:02d}/image{n}" for number in range(50) for n in range(5)]
    data = Listed(*(Sample(name, picture()) for name in names))
    costly = any_method("costly", costly=True)
    units = _units(settings(slow_images=64), [data], [costly])
    seen = [number for unit in units for number in unit.numbers]
    assert len({*seen}) == 64
    assert len({number // 5 for number in seen}) > 35
    drawn = context(model("hf_vit"), data, slow_images=64).slow_numbers
    assert {*seen} == drawn
    assert {names[number] for number in seen} == {*draw_names(names, 64, 0)}


def test_a_task_fits_each_data_set_that_has_its_truth() -> None:
    """Those that docs/appendix/protocols.md lists; one of your own as soon as it is entered."""
    targets = ("faithfulness", "sanity")
    objects = ("localization", "signs", *targets)
    every = [name for name in TASKS if name != "identical"]
    assert {kind: tasks_of(data) for kind, data in DATA_SETS.items()} == {
        "demo": ("localization", "signs", "effect", *targets, "pairs"),
        "demo-objects": ("perturbation",),
        "demo-mosaics": ("words", "grid"),
        "demo-thirds": ("thirds",),
        "demo-identical": ("identical",),
        **dict.fromkeys(("masks", "coco"), objects),
        "samples": tuple(every),
    }
    own = Task(lambda config: {}, lambda batch: iter(()), truth=("scenes", "captions"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "own", own)
        fitting = [kind for kind, data in DATA_SETS.items() if "own" in tasks_of(data)]
    assert sorted(fitting) == ["demo", "demo-mosaics", "samples"]
