"""Files of units: the same bytes each time, and damage that is said and computed again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from captum_clip.errors import InputError
from captum_clip.runs import Arrays, read_unit, slug, storage_of, to_npz
from captum_clip.runs.units import unfinished


@dataclass(frozen=True)
class Squares:
    """The squares of some numbers."""

    name: str
    numbers: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.numbers)


def parse(arrays: Arrays, unit: Squares) -> list[float]:
    if len(arrays["squares"]) != len(unit.numbers):
        raise ValueError("it holds other numbers")
    squares: list[float] = arrays["squares"].tolist()
    return squares


UNIT = Squares("units/0.npz", (2, 3))
WHOLE = to_npz({"squares": np.array([4.0, 9.0])})
FLIPPED = WHOLE.replace(np.float64(9).tobytes(), np.float64(8).tobytes())


def test_a_unit_is_read_as_it_was_written(tmp_path: Path) -> None:
    storage = storage_of(tmp_path)
    for content in (WHOLE, to_npz({"squares": np.array([4.0, 9.0])}, UNIT)):
        storage.write(UNIT.name, content)
        assert read_unit(storage, UNIT, parse) == [4.0, 9.0]
    assert to_npz({"squares": np.array([4.0, 9.0])}) == WHOLE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "it is gone"),
        (b"", ""),
        (b"nothing of the kind", ""),
        (WHOLE[: len(WHOLE) // 2], ""),
        (FLIPPED, "CRC"),
        (to_npz({"squares": np.zeros(3)}), "it holds other numbers"),
        (to_npz({"cubes": np.zeros(2)}), "squares"),
        (to_npz({"squares": np.array([{}])}), "pickle"),
        (
            to_npz({"squares": np.zeros(2)}, Squares("units/1.npz", (2, 3))),
            r"it was written as units/1\.npz",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_wanted_again(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    storage = storage_of(tmp_path)
    if content is not None:
        storage.write(UNIT.name, content)
    with pytest.raises(InputError, match=rf"units/0\.npz cannot be used \(.*{message}.*delete it"):
        read_unit(storage, UNIT, parse)
    assert unfinished(storage, [UNIT], parse) == [UNIT]
    assert storage.read(UNIT.name) is None


def test_whole_units_are_kept_and_missing_ones_wanted(tmp_path: Path) -> None:
    storage, other = storage_of(tmp_path), Squares("units/1.npz", (4,))
    storage.write(UNIT.name, WHOLE)
    assert unfinished(storage, [UNIT, other], parse) == [other]


def test_a_file_that_cannot_be_reached_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that is away must not cost what was computed."""
    storage = storage_of(tmp_path)
    storage.write(UNIT.name, WHOLE)

    def refuse(*_: object) -> bytes:
        raise PermissionError("no leave")

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "cat_file", refuse)
        with pytest.raises(InputError, match="cannot be read: no leave"):
            unfinished(storage, [UNIT], parse)
    assert storage.read(UNIT.name) == WHOLE


def test_no_flipped_bit_is_a_traceback(tmp_path: Path) -> None:
    """It is an error that tells what to do, or the bit does not matter."""
    storage = storage_of(tmp_path)
    (tmp_path / UNIT.name).parent.mkdir(parents=True)
    for bit in range(8 * len(WHOLE)):
        damaged = bytearray(WHOLE)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / UNIT.name).write_bytes(damaged)
        try:
            assert read_unit(storage, UNIT, parse) == [4.0, 9.0]
        except InputError:
            continue


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ViT-B/32", "vit-b-32"), ("a:b=c,d=e", "a-b=c-d=e"), ("../x", "x"), ("Ä b", "b")],
)
def test_slugs_are_tame_names_of_files(name: str, expected: Any) -> None:
    assert slug(name) == expected
