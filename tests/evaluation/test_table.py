"""The long table: what a row is, what a file holds, and files that hold something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captum_clip.errors import InputError
from captum_clip.evaluation.plan import Shard
from captum_clip.evaluation.run import _parse
from captum_clip.evaluation.table import (
    COLUMNS,
    concatenate,
    from_arrays,
    rows_of,
    table_of,
    to_arrays,
)
from captum_clip.runs import read_unit, storage_of, to_npz

SHARD = Shard(0, 0, (3, 4), "units/00-any/000003-00-random.npz")
ODD = "odd \udcff"  # a file's name that is no valid text
READ = "odd \\xff"


def table(sample: int = 3) -> Any:
    """Three metrics: of one column, of two, and a curve."""
    values, effect = torch.tensor([0.5, 0.25]), torch.tensor([1.0, -2.0])
    where = [sample, 4], ["a horse", ODD]
    rows = [
        rows_of("pointing", values, *where),
        rows_of("signs", {"mass": values, "effect": effect}, *where),
    ]
    curves = [rows_of("curve", values * x, *where, x=x) for x in (0.0, 1.0)]
    return table_of("ours", {"localization": rows, "perturbation": curves})


def test_a_row_is_a_measured_value() -> None:
    assert tuple(table().columns) == COLUMNS
    records = [tuple(record) for record in table().astype(object).itertuples(index=False)]
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


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """And the same content is the same bytes."""
    skipped = [(4, f"why: ä {ODD}")]
    storage = storage_of(tmp_path)
    storage.write(SHARD.name, to_npz(to_arrays(table(), skipped)))
    read, reasons = read_unit(storage, SHARD, _parse)
    assert read.equals(table())
    assert reasons == skipped
    assert to_npz(to_arrays(read, reasons)) == storage.read(SHARD.name)


def test_a_file_without_anything_is_read_too() -> None:
    read, reasons = from_arrays(to_arrays(table_of("ours", {}), []), [3])
    assert (len(read), reasons) == (0, [])
    assert len(concatenate([(read, ["a"]), (table(0), list("abcde"))])) == len(table())


def test_samples_go_by_name_in_the_whole_table() -> None:
    """In the order of their data sets, however the names sort; texts of all tables are one."""
    names = [*"zyx", ODD, "a"]
    other = table_of("theirs", {"words": [rows_of("game", torch.ones(1), [1], ["boat"])]})
    whole = concatenate([(table(), names), (other, ["one", "two"])])
    assert whole["sample"].tolist() == [*[READ, "a"] * 5, "two"]
    assert whole["sample"].cat.categories.tolist() == [*"zyx", READ, "a", "one", "two"]
    assert whole["region"].tolist() == [*["a horse", READ] * 5, "boat"]
    assert whole["method"].tolist() == [*["ours"] * 10, "theirs"]


def test_samples_whose_names_read_alike_are_one() -> None:
    """A byte of a file's name that is no Unicode reads as another file may be called."""
    whole = concatenate([(table(), [*"xyz", ODD, READ])])
    assert whole["sample"].tolist() == [READ] * 10
    assert whole["sample"].cat.categories.tolist() == [*"xyz", READ]


WHOLE = to_arrays(table(), [])
WRONG: dict[str, dict[str, Any]] = {
    "nothing told": {"a": np.zeros(1)},
    "other samples": to_arrays(table(sample=5), []),
    "reasons of others": to_arrays(table(), [(5, "why")]),
    "NaN": {**WHOLE, "value": np.full_like(WHOLE["value"], np.nan)},
    "too few values": {**WHOLE, "value": WHOLE["value"][1:]},
    "unknown names": {**WHOLE, "metric names": WHOLE["metric names"][:1]},
    "no names": {name: array for name, array in WHOLE.items() if name != "region names"},
}


@pytest.mark.parametrize("arrays", WRONG.values(), ids=WRONG)
def test_a_file_with_something_else_is_said(tmp_path: Path, arrays: Any) -> None:
    storage = storage_of(tmp_path)
    storage.write(SHARD.name, to_npz(arrays))
    with pytest.raises(InputError, match=r"000003-00-random.npz cannot be used \(.*delete it"):
        read_unit(storage, SHARD, _parse)
