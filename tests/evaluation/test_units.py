"""Units of work: how data are cut, what a file holds, and files that are damaged."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captum_clip.errors import InputError
from captum_clip.evaluation.methods import Attributed, Drawn
from captum_clip.evaluation.metric import CurveRows, Rows
from captum_clip.evaluation.sample import Sample
from captum_clip.evaluation.tasks import Found
from captum_clip.evaluation.units import Unit, joined, read_unit, to_bytes, units_of
from captum_clip.studies.shards import unfinished
from captum_clip.studies.storage import storage_of
from tests.evaluation.cases import Listed, picture

UNIT = Unit(0, 0, (3, 4), "units/00-any/000003-00-random.npz")


def found(owner: int = 3) -> Found:
    owners = np.array([owner, 4])
    values = np.array([[0.5, 1.0], [0.25, 2.0]])
    curve = CurveRows(owners, np.array([0.0, 1.0]), values)
    return Found({"pointing": Rows(owners, values)}, {"most_mean_true": curve}, ((4, "why: ä"),))


def any_method(name: str, *, costly: bool = False) -> Any:
    if costly:
        return Attributed(name, "", lambda forward: lambda images: images, costly=True)
    return Drawn(name, "", lambda grid, number: None)  # type: ignore[arg-type,return-value]


def test_every_method_sees_every_sample_once_and_costly_ones_the_first() -> None:
    """Chunk by chunk, so that all methods of a chunk share it."""
    data = [Listed(*(Sample(str(n), picture()) for n in range(count))) for count in (5, 2)]
    methods = [any_method("one"), any_method("the other", costly=True)]
    units = units_of(data, methods, size=2, few=3)
    assert [(u.data, u.method, u.numbers) for u in units] == [
        *[(0, 0, (0, 1)), (0, 1, (0, 1)), (0, 0, (2, 3)), (0, 1, (2,)), (0, 0, (4,))],
        *[(1, 0, (0, 1)), (1, 1, (0, 1))],
    ]


def test_names_of_files_are_unique_and_tame() -> None:
    data = [Listed(Sample("a", picture()), name="Ä b")]
    methods = [any_method(name) for name in ("a:b=c,d=e", "a b=c d=e", "../x", "ÄÖ", "ä")]
    names = [unit.name for unit in units_of(data, methods, size=1, few=1)]
    assert len({*names}) == 5
    assert names[0] == "units/00-b/000000-00-a-b=c-d=e.npz"
    assert all(name.isascii() and ".." not in name and " " not in name for name in names)


def test_a_unit_is_read_as_it_was_written(tmp_path: Path) -> None:
    """And the same content is the same bytes, whatever order it was found in."""
    storage = storage_of(tmp_path)
    storage.write(UNIT.name, to_bytes(found()))
    got = read_unit(storage, UNIT)
    assert got.skipped == found().skipped
    for one, other in (
        (got.rows["pointing"], found().rows["pointing"]),
        (got.curves["most_mean_true"], found().curves["most_mean_true"]),
    ):
        for name, value in vars(other).items():
            assert np.array_equal(getattr(one, name), value)
            assert getattr(one, name).dtype == value.dtype
    some = {"a": found().rows["pointing"], "b": found().rows["pointing"]}
    assert to_bytes(Found(some)) == to_bytes(Found(dict(reversed(some.items()))))


def test_a_unit_without_anything_is_read_too(tmp_path: Path) -> None:
    storage = storage_of(tmp_path)
    storage.write(UNIT.name, to_bytes(Found()))
    got = read_unit(storage, UNIT)
    assert (got.rows, got.curves, got.skipped) == ({}, {}, ())


def saved(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def lone(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


NOTHING: dict[str, Any] = {"skipped": np.zeros(0, int), "reasons": np.zeros(0, "U1")}
WHOLE = to_bytes(found())
PLACE = WHOLE.index(np.float64(0.25).tobytes())  # of a value
DAMAGED = {
    "empty": b"",
    "no archive": b"hello",
    "cut": WHOLE[:-10],
    "changed": WHOLE[:PLACE] + b"\1" + WHOLE[PLACE + 1 :],
    "an array": lone(np.zeros(3)),
    "nothing told": saved(a=np.zeros(1)),
    "objects": saved(**NOTHING, a=np.array([{}])),
    "other samples": to_bytes(found(owner=5)),
    "reasons of others": to_bytes(Found(skipped=((5, "why"),))),
    "NaN": saved(
        **NOTHING, **{"rows a owners": np.array([3]), "rows a values": np.array([[np.nan]])}
    ),
    "no table": saved(**NOTHING, **{"rows a owners": np.array([3]), "rows a values": np.ones(1)}),
    "no owner": saved(
        **NOTHING, **{"rows a owners": np.array([3]), "rows a values": np.ones((2, 1))}
    ),
    "half": saved(**NOTHING, **{"rows a owners": np.array([3])}),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_unit_is_said_and_computed_anew(tmp_path: Path, content: bytes) -> None:
    storage = storage_of(tmp_path)
    storage.write(UNIT.name, content)
    with pytest.raises(InputError, match=r"000003-00-random.npz cannot be used \(.*delete it"):
        read_unit(storage, UNIT)
    assert unfinished(storage, [UNIT], {UNIT.name}, read_unit) == [UNIT]
    assert storage.read(UNIT.name) is None


def test_whole_units_are_kept_and_missing_ones_wanted(tmp_path: Path) -> None:
    storage = storage_of(tmp_path)
    other = Unit(0, 1, (3, 4), "units/00-any/000003-01-centre.npz")
    storage.write(UNIT.name, WHOLE)
    assert unfinished(storage, [UNIT, other], {UNIT.name}, read_unit) == [other]
    with pytest.raises(InputError, match="it is gone"):
        read_unit(storage, other)


def test_joined_chunks_are_one_after_the_other() -> None:
    one, other = found(), found(owner=9)
    got = joined([one, Found(skipped=((7, "x"),)), other])
    assert got.rows["pointing"].owners.tolist() == [3, 4, 9, 4]
    assert got.curves["most_mean_true"].values.shape == (4, 2)
    assert got.curves["most_mean_true"].fractions.tolist() == [0, 1]
    assert [number for number, _ in got.skipped] == [4, 7, 4]
    assert joined([]).rows == {}
