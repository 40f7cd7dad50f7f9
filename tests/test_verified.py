"""The table of verified models gets a row from each file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests import verified

COMMON: dict[str, Any] = {"adds up": None, "oracle": None, "forwards": 1.0}
ABOUT = {
    **{"model": "m", "tower": "t", "dtype": "float32", "device": "cpu", "weights": "0" * 64},
    "versions": {"torch": "2.13.0", "transformers": "5.24.0", "open_clip_torch": "3.3.0"},
}


def test_the_table_is_in_order_and_has_every_model_that_needs_no_network() -> None:
    with verified.TABLE.open(encoding="utf-8", newline="") as lines:
        assert [*csv.reader(lines)] == verified.table(verified.read(), [])
    random = {f"{name}, random weights" for name in verified.RANDOM}
    assert {row[0] for row in verified.read()} >= {*verified.EMBEDDED, *random}


def test_a_row_has_the_largest_errors_and_what_is_not_explained() -> None:
    rows = {
        "direct": {**COMMON, "result": "explained", "adds up": 1e-7},
        "all-grad": {**COMMON, "result": "explained", "oracle": 3e-6, "forwards": 2.0},
        "legrad": {**COMMON, "result": "refused", "why": "so", "forwards": None},
    }
    cells = verified.line({"about": ABOUT, "methods": rows})
    expected = ["m", "t", "float32, cpu", "`00000000`", "2 of 3", "`legrad` refused", "1e-07 (1)"]
    versions = "torch 2.13.0, transformers 5.24.0, OpenCLIP 3.3.0"
    assert cells == [*expected, "3e-06 (1)", "1.0 to 2.0", versions]
    assert verified.worst({"direct": COMMON}, "oracle") == "–"


def test_a_file_replaces_the_row_of_its_model_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, kept = verified.read(), tmp_path / "verified.csv"
    kept.write_text(verified.TABLE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(verified, "TABLE", kept)
    file = tmp_path / "check.json"
    for result in ("explained", "refused"):
        methods = {"direct": {**COMMON, "result": result}}
        file.write_text(json.dumps({"about": ABOUT, "methods": methods}))
        verified.main([str(file)])
    [added] = [row for row in verified.read() if row not in before]
    assert added[:6] == ["m", "t", "float32, cpu", "`00000000`", "0 of 1", "`direct` refused"]
    assert [row for row in verified.read() if row != added] == before
