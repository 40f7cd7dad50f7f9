"""A hundred random calls, and texts of any kind; ``python -m tests.fuzz`` makes thousands."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from captum_clip import load_clip, targets
from captum_clip.checks import excerpt, expand, is_encodable, show
from captum_clip.errors import InputError, TargetError
from captum_clip.models import ClipAdapter
from captum_clip.visualization import save_figure
from tests.fuzz import calls
from tests.fuzz.calls import World, ends

ANY_TEXT = st.text(st.characters(codec=None), max_size=400)
few = settings(max_examples=40, derandomize=True, deadline=None, database=None)


def test_random_calls_end_in_no_error_but_ours(tmp_path: Path) -> None:
    assert [end for end in ends(tmp_path, range(120)) if end.text] == []


def test_the_fuzzer_tells_another_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that finds nothing whatever happens would be no test."""
    monkeypatch.setattr(calls, "CALLS", {"good": lambda _: None, "bad": _fail})
    found = [end for end in ends(tmp_path, range(20)) if end.text]
    assert {end.call for end in found} == {"bad"}
    assert "ZeroDivisionError" in found[0].text


@cache
def demo() -> ClipAdapter:
    return load_clip("demo/vit")


def _fail(_: World) -> None:
    raise ZeroDivisionError


@few
@given(ANY_TEXT)
def test_any_text_is_a_target_or_refused(text: str) -> None:
    message = ""
    try:
        assert targets.text(demo(), text).names == (text,)
    except TargetError as error:
        message = str(error)
    assert len(message) < 700


@few
@given(ANY_TEXT)
def test_any_text_is_a_path_or_refused(text: str) -> None:
    message = ""
    try:
        assert isinstance(expand(text), Path)
    except InputError as error:
        message = str(error)
    assert is_encodable(message)


@few
@given(st.integers() | ANY_TEXT | st.floats() | st.binary(max_size=300))
def test_any_value_can_be_shown(value: object) -> None:
    assert len(show(value)) <= 103
    assert len(excerpt(str(value))) <= 900


@pytest.mark.filterwarnings("ignore")
@settings(few, max_examples=10)
@given(st.text(st.characters(codec="utf-8", exclude_characters="$"), min_size=1, max_size=20))
def test_any_text_makes_an_svg_that_can_be_read(text: str) -> None:
    figure = Figure(figsize=(1, 1))
    figure.text(0, 0, text)
    with tempfile.TemporaryDirectory() as folder:
        ElementTree.parse(save_figure(figure, Path(folder, "a.svg")))
