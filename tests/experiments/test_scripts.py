"""Every script of the experiments says what it does."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.experiments import FOLDER, experiment, printed

PLAIN = ("index_accuracy", "tables", "tag_maps")
"""They have no options."""
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.stem not in PLAIN)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_prints_its_help(
    script: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if script.stem == "pair_peers" and not (find_spec("exclip") and find_spec("shapiq")):
        assert "pip install exclip shapiq" in script.read_text(encoding="utf-8")
        return
    monkeypatch.setattr(sys, "path", [*sys.path, str(FOLDER)])
    with pytest.raises(SystemExit) as ended:
        printed(script, "--help")
    assert ended.value.code == 0


@pytest.mark.parametrize("name", PLAIN)
def test_a_script_without_options_can_be_imported(name: str) -> None:
    assert experiment(name).__doc__.count(f"{name}.py") >= 1
