"""The long table: what a row is, and what a file holds."""

from __future__ import annotations

import numpy as np
import torch

from captum_clip.bench.run import Arrays
from captum_clip.bench.table import COLUMNS, join_tables, rows_of, table_of

ODD = "odd \udcff"  # a file's name that is no valid text
READ = "odd \\xff"


def table(sample: int = 3) -> Arrays:
    """The columns of three metrics: of one value, of two, and a curve."""
    values, effect = torch.tensor([0.5, 0.25]), torch.tensor([1.0, -2.0])
    where = [sample, 4], ["a horse", ODD]
    rows = [
        rows_of("pointing", values, *where),
        rows_of("signs", {"mass": values, "effect": effect}, *where),
    ]
    curves = [rows_of("curve", values * x, *where, x=x) for x in (0.0, 1.0)]
    return table_of("ours", {"localization": rows, "perturbation": curves})


def test_a_row_is_a_measured_value() -> None:
    columns = table()
    assert {*columns} == {*COLUMNS}
    records = list(zip(*(columns[name].tolist() for name in COLUMNS), strict=True))
    nothing = records[0][6]
    assert np.isnan(nothing)
    assert [(*r[:6], r[7]) for r in records[:4]] == [
        ("localization", "pointing", "ours", 3, "a horse", "", 0.5),
        ("localization", "pointing", "ours", 4, READ, "", 0.25),
        ("localization", "signs", "ours", 3, "a horse", "mass", 0.5),
        ("localization", "signs", "ours", 4, READ, "mass", 0.25),
    ]
    assert records[-1] == ("perturbation", "curve", "ours", 4, READ, "", 1.0, 0.25)


def test_what_is_not_finite_is_left_out_with_all_its_parts() -> None:
    mass = torch.tensor([1.0, torch.nan, 2.0])
    effect = torch.tensor([1.0, 1.0, torch.inf])
    rows = rows_of("signs", {"mass": mass, "effect": effect}, [0, 1, 2], ["a", "b", "c"])
    assert rows["sample"].tolist() == [0, 0]
    assert rows["part"].tolist() == ["mass", "effect"]


def test_samples_go_by_name_in_the_whole_table() -> None:
    """In the order of their data sets, however the names sort; texts of all tables are one."""
    names = [*"zyx", ODD, "a"]
    other = table_of("theirs", {"words": [rows_of("game", torch.ones(1), [1], ["boat"])]})
    whole = join_tables([(table(), names), (other, ["one", "two"])])
    assert whole["sample"].tolist() == [*[READ, "a"] * 5, "two"]
    assert whole["sample"].cat.categories.tolist() == [*"zyx", READ, "a", "one", "two"]
    assert whole["region"].tolist() == [*["a horse", READ] * 5, "boat"]
    assert whole["method"].tolist() == [*["ours"] * 10, "theirs"]
