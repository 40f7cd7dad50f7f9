"""What the page on image search says of rounding, and of sizes, is made by scripts that run."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.experiments import FOLDER, experiment


def test_rounding_costs_no_object(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """On eight scenes: the maps point alike, and scores are exact."""
    script = experiment("index_accuracy")
    monkeypatch.setattr(script, "SCENES", 8)
    script.main("demo/vit")
    lines = capsys.readouterr().out.splitlines()
    assert float(lines[2].split()[-1]) < 1e-6
    method, index = (line.partition(" points at ")[2] for line in lines[3:5])
    assert method == index
    mean = float(lines[0].split("mean ")[2].split(",")[0])
    assert 0 < mean < 0.002  # a scale that is off by five hundredths makes it .004


def test_sizes_are_measured(tmp_path: Any) -> None:
    """A row for each number of images: 25 kB of vectors each, and two of the embedding."""
    command = [sys.executable, str(FOLDER / "index_size.py"), "600"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    count, _, size, found, made, _ = [cell.strip() for cell in printed.strip("|\n ").split("|")]
    assert count == "600"
    assert 27 < float(size.split()[0]) < 28
    assert float(found.split()[0]) > 0
    assert float(made.split()[0]) > 0
