"""What the page on measurements says of rounding is made by a script that runs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.experiments import experiment


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
