"""What docs/appendix/support.md says of models and methods is what happens: every cell is run."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import captum.attr
import pytest
import torch

from captum_clip import TextSimilarity, attr, targets
from captum_clip.errors import UnsupportedModelError
from captum_clip.models import tower_of
from tests import builders, oracles
from tests.attr import cases
from tests.attr.test_contract import FORMULAS, OWN_ORACLES
from tests.attr.test_contract import ROWS as CONTRACT
from tests.support import COLUMNS, METHODS, TABLES, TOWERS, similarity_of, what_happens

TESTS = Path(__file__).parent
METHODS_PAGE = TABLES.parents[1] / "methods.md"


def table_of(name: str) -> dict[str, dict[str, str]]:
    """The rows of a table of the page: first cell -> column -> cell."""
    with (TABLES / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        columns, *lines = ([cell.strip("`") for cell in line] for line in csv.reader(file))
    rows = {}
    for line in lines:
        for each in line[0].split("; "):
            rows[each] = dict(zip(columns[1:], line[1:], strict=True))
    return rows


@pytest.mark.parametrize("name", TOWERS)
def test_table_of_models_says_what_happens(name):
    """Every cell of the row, and no tower is refused by one way in and taken by another."""
    model = TOWERS[name]()
    stated = table_of("towers")[name]
    assert {method: what_happens(model, method) for method in COLUMNS} == stated
    with nullcontext() if "yes" in stated.values() else pytest.raises(UnsupportedModelError):
        tower_of(model)


def test_table_of_models_is_whole():
    """Every tower is tested, every listed method has a column."""
    rows = table_of("towers")
    assert set(rows) == set(TOWERS)
    assert all(list(row) == COLUMNS for row in rows.values())
    assert len(COLUMNS) >= 11


ORACLES = {"ClipGradCam": "test_oracles.py"} | OWN_ORACLES | dict.fromkeys(oracles.METHODS, "")
"""Class -> the file of its oracle; those of tests/oracles.py are run by test_oracles.py."""
LAWS_HOLD_FOR = {case.method for case, *_ in [*CONTRACT, *FORMULAS]}


def lacks(name: str) -> list[str]:
    """What else a registered method needs: what is missing of it."""
    method = METHODS[name].__name__
    cells = re.findall(rf"^\| `{method}`[ ,|].*", METHODS_PAGE.read_text("utf-8"), re.MULTILINE)
    columns = next(iter(table_of("towers").values()))
    needed = {
        "an oracle": method in ORACLES,
        "its laws": method in LAWS_HOLD_FOR,
        "a row in docs/methods.md": any(f"| `{name}" in row for row in cells),
        "a column in docs/appendix/support.md": name in columns,
    }
    return [what for what, there in needed.items() if not there]


def test_a_registered_method_has_all_that_it_needs():
    """An oracle that names it, a row of the contract, a row and a column of the documentation."""
    for name in METHODS:
        assert lacks(name) == [], name
        method = METHODS[name].__name__
        if file := ORACLES[method]:
            code = (TESTS / "attr" / file).read_text(encoding="utf-8")
            assert re.search(rf"\b{method}\b", code), f"{file} says nothing of {method}"


def test_a_method_that_lacks_something_is_noticed(monkeypatch):
    """One that is registered, and that is all."""
    bare = type("Bare", (attr.LastGradAttention,), {"name": "bare", "__module__": __name__})
    monkeypatch.setitem(METHODS, "bare", bare)
    needed = ["an oracle", "its laws", "a row in docs/methods.md"]
    needed.append("a column in docs/appendix/support.md")
    assert lacks("bare") == needed


def words_run(name: str) -> bool:
    """Whether every method without a grid runs on the words of a tower, or all refuse."""
    clip = TEXTS[name]().load()
    target = targets.embedding(torch.eye(24)[:2])
    try:
        forward = TextSimilarity(clip, target)
    except UnsupportedModelError:
        return False
    ids, mask = clip.text_inputs("a horse")
    methods = [cls for cls in cases.OWN.values() if "text" in cls.towers]
    assert methods
    for method in methods:
        values = method(forward).attribute_targets(ids, additional_forward_args=mask)
        assert values.shape == (1, 2, ids.shape[1])
        assert torch.isfinite(values).all()
    return True


TEXTS: dict[str, Callable[..., builders.Small]] = {
    **builders.BUILDERS,
    "naflex": builders.naflex,
    "coca": builders.coca,
    "another": partial(builders.dual_encoder, kind="DistilBert"),
    "bert": builders.open_clip_bert,
    "roberta": partial(builders.open_clip_bert, kind="roberta", pooler="mean_pooler"),
    "mT5": partial(builders.open_clip_bert, kind="mt5", pooler="mean_pooler"),
}
ROWS = {
    "transformers CLIP": "hf_vit metaclip2 clipseg owlvit owlv2",
    "transformers SigLIP": "siglip naflex",
    "transformers AltCLIP": "altclip chinese_clip",
    "transformers VisionTextDualEncoder with BERT": "dual_encoder",
    "transformers VisionTextDualEncoder with another": "another",
    "transformers BLIP": "blip aimv2 tipsv2",
    "OpenCLIP TextTransformer": "open_clip_vit",
    "OpenCLIP CoCa": "coca",
    "OpenCLIP HFTextEncoder with BERT": "bert roberta",
    "OpenCLIP HFTextEncoder with another": "mT5",
}


@pytest.mark.parametrize("start", ROWS)
def test_table_of_text_towers_says_what_happens(start):
    """Every row has a model, and either all methods or none of them."""
    rows = table_of("text_towers")
    (row,) = (row for name, row in rows.items() if name.startswith(start))
    assert len(rows) == len(ROWS)
    for name in ROWS[start].split():
        assert words_run(name) == (row["words"] == "yes")


@pytest.mark.parametrize("name", ["demo/vit", "demo/resnet"])
def test_table_of_captums_methods_says_what_happens(name):
    """Maps of the images' shape, or Captum's own error."""
    forward, images = similarity_of(TOWERS[name]())
    half = images.shape[-1] // 2
    options: dict[str, dict[str, Any]] = {
        "IntegratedGradients": {"n_steps": 2},
        "GradientShap": {"baselines": torch.zeros_like(images), "n_samples": 2},
        "Occlusion": {"sliding_window_shapes": (3, half, half), "strides": (3, half, half)},
        "FeatureAblation": {"feature_mask": torch.zeros(images.shape, dtype=torch.long)},
    }
    for method, row in table_of("captum_methods").items():
        explain = getattr(captum.attr, method)(forward).attribute
        pixels = images.clone().requires_grad_()
        if row[name] == "raises":
            with pytest.raises(TypeError, match="has no rule defined"):
                explain(pixels, target=0)
        else:
            assert row[name] == "yes"
            found = explain(pixels, target=0, **options.get(method, {}))
            assert found.shape == images.shape
