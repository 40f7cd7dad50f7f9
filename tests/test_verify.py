"""The script behind the workflow that verifies public checkpoints, on an embedded model."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from tests import verify
from tests.verified import HEADER, KEY, read

WORKFLOWS = Path(__file__).parents[1] / ".github" / "workflows"


@pytest.mark.slow
def test_a_checkpoint_leaves_its_report_a_picture_and_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(tmp_path), "demo/resnet"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "demo-resnet.json",
        "demo-resnet.jpg",
        "rows.csv",
    }
    (found,) = csv.reader((tmp_path / "rows.csv").read_text().splitlines())
    assert [*csv.reader(capsys.readouterr().out.splitlines())] == [found]
    (row,) = (row for row in read() if row[0] == "demo/resnet" and "cpu" in row[2])
    assert found[KEY] == row[KEY]  # of the same model, tower, device and weights
    assert found[HEADER.index("explained")] == row[HEADER.index("explained")]


def test_a_broken_law_and_a_model_that_is_not_there_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the models after them are verified all the same."""
    seen = []

    def verified(name: str, photo: object, folder: Path) -> dict[str, object]:
        seen.append(name)
        if name == "missing":
            raise OSError("no such model")
        about = {
            "model": name,
            "tower": "ViT",
            "dtype": "float32",
            "device": "cpu",
            "weights": "0" * 64,
            "versions": {"torch": "2", "transformers": "5", "open_clip_torch": "3"},
        }
        row = {"result": "broken", "adds up": None, "oracle": None, "forwards": None}
        return json.loads(json.dumps({"about": about, "methods": {"direct": row}}))

    monkeypatch.setattr(verify, "verify", verified)
    assert verify.main([str(tmp_path), "missing", "mine"]) == 1
    assert seen == ["missing", "mine"]
    said = capsys.readouterr().err
    assert "missing: no such model" in said
    assert "mine: direct is broken" in said


def test_workflows_run_commands_that_exist() -> None:
    """The modules, files and README's line that they call."""
    assert len(verify.CHECKPOINTS) == len({*verify.CHECKPOINTS}) == 12
    root = WORKFLOWS.parents[1]
    for workflow in WORKFLOWS.glob("*.yml"):
        text = workflow.read_text(encoding="utf-8")
        for module in re.findall(r"python -m (tests\.[\w.]+)", text):
            assert (root / f"{module.replace('.', '/')}.py").exists()
