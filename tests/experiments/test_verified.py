"""The table of verified models is made from its files."""

from __future__ import annotations

import csv
from typing import Any

from tests.experiments import experiment

verified = experiment("verified")


def test_the_table_has_a_row_for_each_file() -> None:
    with verified.TABLE.open(encoding="utf-8", newline="") as lines:
        assert [*csv.reader(lines)] == verified.table()
    assert len([*verified.FOLDER.glob("*.json")]) >= len(verified.EMBEDDED) + len(verified.RANDOM)


def test_a_row_has_the_largest_errors_and_what_is_not_explained() -> None:
    common: dict[str, Any] = {"adds up": None, "oracle": None, "forwards": 1.0}
    rows = {
        "direct": {**common, "result": "explained", "adds up": 1e-7},
        "all-grad": {**common, "result": "explained", "oracle": 3e-6, "forwards": 2.0},
        "legrad": {**common, "result": "refused", "why": "so", "forwards": None},
    }
    about = {"model": "m", "tower": "t", "dtype": "float32", "device": "cpu", "weights": "0" * 64}
    cells = verified.line({"about": about, "methods": rows})
    expected = ["m", "t", "float32, cpu", "`00000000`", "2 of 3", "`legrad` refused", "1e-07 (1)"]
    assert cells == [*expected, "3e-06 (1)", "1.0 to 2.0"]
    assert verified.worst({"direct": common}, "oracle") == "–"
