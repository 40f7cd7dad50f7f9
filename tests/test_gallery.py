"""The gallery: every script runs as a reader would run it, is short, and saves its picture."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_docs import ROOT

SCRIPTS = sorted((ROOT / "docs" / "gallery").glob("*.py"))
LONGEST = 22  # lines after the docstring


def test_the_gallery_has_its_scripts() -> None:
    """As many as its first page says, numbered without a gap."""
    assert len(SCRIPTS) == 16
    assert [path.stem[:8] for path in SCRIPTS] == [f"plot_{n:02}_" for n in range(1, 17)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_saves_its_picture(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One picture, named after the script, in which there is something to see."""
    code = script.read_text(encoding="utf-8")
    docstring, first = ast.parse(code).body[:2]
    assert isinstance(docstring, ast.Expr)
    assert len(code.splitlines()) - first.lineno < LONGEST
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    (picture,) = tmp_path.iterdir()
    assert picture.name == re.sub(r"plot_\d+_", "", script.stem) + ".png"
    pixels = np.asarray(Image.open(picture).convert("RGB"), dtype=int)
    assert min(pixels.shape[:2]) > 300
    assert (np.ptp(pixels, axis=2) > 30).mean() > 0.005  # colored lines, or far more of a map
