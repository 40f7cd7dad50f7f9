"""`captum_clip.check`: the table of a model, its oracles, its file, and its command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from captum_clip import ModelCheck, attr, check
from captum_clip.cli import main
from captum_clip.explaining.check import (
    CHECKED,
    REFERENCE_TEXTS,
    Price,
    autograd_maps,
)
from tests.attr import cases
from tests.attr.test_check_method import Mixing
from tests.models import checkpoints


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only two of the methods, since all take seconds."""
    methods = {name: attr.METHODS[name] for name in ("grad-cam", "last-grad")}
    monkeypatch.setattr("captum_clip.explaining.check.registered", lambda: methods)


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit_mean", "siglip", "timm_registers"])
def test_methods_of_a_transformer_equal_their_equations(name: str) -> None:
    dtype = torch.float64
    forward, pixels = cases.similarity(name, dtype), cases.images(name, dtype)
    wanted = autograd_maps(forward, pixels, forward(pixels))
    assert {*wanted} == {"attention-grad-cam", "rollout", "all-grad", "last-grad"}
    for method, maps in wanted.items():
        found = attr.METHODS[method](forward).attribute_targets(pixels)
        cases.assert_maps_close(found, maps, cases.TOLERANCE[dtype])


def test_attention_that_is_not_written_out_has_no_equations() -> None:
    """Here its scores are others than those of the model."""
    forward, pixels = cases.similarity("hf_vit"), cases.images("hf_vit")
    assert autograd_maps(forward, pixels, forward(pixels) + 1) == {}


def test_a_model_that_no_method_explains_has_the_reasons(few: None) -> None:
    clip = cases.BUILDERS["hf_vit"]().load()
    clip.vision.encoder.layers[0].self_attn.dropout = 0.5
    clip.model.train()
    row = check(clip).methods["last-grad"]
    assert row["result"] == "refused"
    assert "call model.eval()" in row["why"]
    clip.model.eval()


@pytest.fixture(scope="module")
def resnet() -> ModelCheck:
    return check(cases.adapter("open_clip_resnet"))


def test_methods_of_a_resnet_equal_captums(resnet: ModelCheck) -> None:
    assert [*resnet.methods] == ["grad-cam", "direct", "removal", "cam"]
    assert resnet.methods["grad-cam"]["oracle"] < 1e-5
    assert resnet.rows[0] == ["method", *CHECKED]
    assert [row[:2] for row in resnet.rows[1:]] == [[n, "explained"] for n in resnet.methods]
    assert all(1 <= row["forwards"] < 3 for row in resnet.methods.values())


def test_the_file_says_which_model_ran_where_and_holds_no_path(
    resnet: ModelCheck, tmp_path: Path, few: None
) -> None:
    built = cases.built("hf_vit")
    folder = tmp_path / "secret" / "model"
    checkpoints.save_transformers(built, folder)
    content = json.loads(check(str(folder)).json)
    assert content["about"]["model"] == "model"
    assert "secret" not in json.dumps(content)
    assert re.fullmatch("[0-9a-f]{64}", content["about"]["weights"])
    assert content["about"]["weights"] != json.loads(resnet.json)["about"]["weights"]
    assert content["about"]["versions"]["torch"] == torch.__version__
    assert [*content["scores"]] == [*REFERENCE_TEXTS]


def test_a_model_without_its_tools_is_checked_on_numbers(few: None) -> None:
    found = check(cases.built("open_clip_resnet").model)
    assert found.scores == {}
    assert found.methods["grad-cam"]["oracle"] < 1e-5


def test_a_broken_method_is_told_with_its_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captum_clip.explaining.check.registered", lambda: {"mixing": Mixing})
    found = check(cases.adapter("open_clip_resnet"))
    assert found.methods["mixing"]["result"] == "broken"
    assert "Mixing breaks laws" in found.methods["mixing"]["why"]
    assert found.rows[1] == ["mixing", "broken", "", "", "", "", ""]


def test_a_price_counts_what_is_multiplied_launched_and_kept() -> None:
    one, other = torch.ones(2, 3), torch.ones(3, 4)
    with Price() as price:
        product = one @ other  # 32 bytes
        product.view(-1)
        for _ in range(3):
            product.exp()  # 32 more, which go
    assert (price.kernels, price.operations, price.peak) == (4, 48, 64)


def test_the_command_prints_the_table_and_writes_the_file(
    few: None, tmp_path: Path, capsys: Any
) -> None:
    file = tmp_path / "check.json"
    assert main(["check", "demo/resnet", "-o", str(file), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"grad-cam +explained", printed)
    assert re.search(r"^adds up +largest error", printed, re.MULTILINE)
    assert re.search(r"^methods for its tower: 1 explained$", printed, re.MULTILINE)
    assert re.search(
        r"^cosine similarity to each text:\n +0\.\d{4}  a horse$", printed, re.MULTILINE
    )
    assert json.loads(file.read_text())["format"] == "captum_clip check 1"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["demo/resnet", "-o", "check.txt"], "the name must end in .json"),
        (["demo/resnet", "none.png"], "there is no image file none.png"),
        (["demo/none"], "demo/none"),
        ([], "Missing argument 'NAME'"),
    ],
)
def test_the_command_names_what_is_wrong(line: list[str], message: str, capsys: Any) -> None:
    assert main(["check", *line]) == 2
    assert message in capsys.readouterr().err
