"""Checks of arguments: what they take, what they refuse, and in which words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from captum_clip import checks
from captum_clip.errors import InputError, TargetError


def test_check_integer_takes_whole_numbers_in_range() -> None:
    for value in (1, 7):
        checks.check_integer("n", value, least=1, most=7)
    wrong: list[Any] = [0, True, 1.0, "1", None, math.nan]
    for value in wrong:
        with pytest.raises(InputError, match=rf"^expected n of 1 or more, got {value!r}\.$"):
            checks.check_integer("n", value)
    with pytest.raises(InputError, match=r"^expected n up to 7, got 8\.$"):
        checks.check_integer("n", 8, most=7)


def test_check_interval_knows_open_and_closed_ends() -> None:
    ends: list[tuple[str, tuple[float, ...], tuple[float, ...]]] = [
        ("[0, 1]", (0, 0.5, 1), (-0.1, 1.1)),
        ("[0, 1)", (0, 0.5), (1, 1.0)),
        ("(0, 1)", (0.5,), (0, 1)),
        ("(0, inf)", (1e300,), (0, math.inf)),
    ]
    for interval, inside, outside in ends:
        for value in inside:
            checks.check_interval("share", value, interval)
        for wrong in (*outside, math.nan, True, "0.5", None):
            with pytest.raises(InputError) as caught:
                checks.check_interval("share", wrong, interval)
            assert str(caught.value) == f"expected share in {interval}, got {wrong!r}."


def test_check_choice_lists_the_choices() -> None:
    checks.check_choice("a", ("a", "b"))
    with pytest.raises(InputError, match=r"^expected a mode of a, b, got 'c'\.$"):
        checks.check_choice("c", ("a", "b"), name="a mode")
    with pytest.raises(InputError, match=r"^expected one of a, b, got \['a'\]\.$"):
        checks.check_choice(["a"], {"a": 1, "b": 2})


def test_expecting_gives_the_reason_of_the_library_and_keeps_its_error() -> None:
    refused = pytest.raises(InputError, match=r"^expected a number, got 'a'; could .*; try 1\.$")
    with refused as caught, checks.expecting("a number", "a", "try 1"):
        float("a")
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(TargetError, match=r"^of ours$"), checks.expecting("a number", "a"):
        raise TargetError("of ours")
    with pytest.raises(OSError, match="another"), checks.expecting("a number", "a"):
        raise OSError("another")


def test_describe_gives_arrays_by_shape_and_objects_by_class() -> None:
    for value, described in (
        (torch.zeros(2, 3), "Tensor (2, 3) of torch.float32"),
        (torch.zeros(2, device="meta"), "Tensor (2,) of torch.float32 on meta"),
        ([np.zeros(3)], "[ndarray (3,) of float64]"),
        ("a", "'a'"),
        (None, "None"),
        (torch.int8, "torch.int8"),
        (torch.Tensor, "<class 'torch.Tensor'>"),
        (torch.nn.Sequential(torch.nn.ReLU()), "Sequential"),
        (len, "builtin_function_or_method"),
        (pd.DataFrame({"a": [1]}), "DataFrame"),
    ):
        assert checks.describe(value) == described


def test_as_list_keeps_a_text_whole() -> None:
    assert checks.as_list("ab") == ["ab"]
    assert checks.as_list(("a", "b")) == ["a", "b"]


def test_error_context_is_said_once_and_keeps_the_cause() -> None:
    cause = TargetError("the text is empty.")
    refused = pytest.raises(InputError, match=r"^demo: the text is empty\.$")
    with refused as caught, checks.error_context("demo"):
        raise cause
    assert caught.value.__cause__ is cause
    with pytest.raises(KeyError), checks.error_context("demo"):
        raise KeyError  # no error of ours


def test_find_file_and_folder_expand_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").touch()
    assert checks.find_file("~/a.txt") == tmp_path / "a.txt"
    assert checks.find_folder("~") == tmp_path
    with pytest.raises(InputError, match=r"^there is no image file ~/b.txt\.$"):
        checks.find_file("~/b.txt", what="image file")
    with pytest.raises(InputError, match=r"^there is no folder ~/a.txt\.$"):
        checks.find_folder("~/a.txt")


@pytest.fixture
def circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "circle")
    monkeypatch.chdir(tmp_path)


def test_expand_takes_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for path in (tmp_path, tmp_path / "a", tmp_path / "b", tmp_path / "a" / "below a file"):
        assert checks.expand(str(path)) == path
    assert checks.expand("~") == Path.home()
    with pytest.raises(InputError, match=r"^expected a path, got 3\.$"):
        checks.expand(3)  # type: ignore[arg-type]
