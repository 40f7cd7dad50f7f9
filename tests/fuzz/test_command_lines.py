"""A few hundred random command lines; ``python -m tests.fuzz`` makes thousands."""

from __future__ import annotations

from pathlib import Path

import pytest

from captum_clip import cli
from captum_clip.cli import main
from tests.fuzz.command_lines import COMMANDS, failures, run

Capture = pytest.CaptureFixture[str]


def test_random_lines_end_in_no_error_but_ours(tmp_path: Path) -> None:
    assert list(failures(tmp_path, 150)) == []


def test_every_command_is_drawn() -> None:
    names = {" ".join(words) for words, _ in COMMANDS}
    assert {"explain", "figure words", "study emotions", "emotions fit", "app"} <= names


@pytest.mark.parametrize(
    ("code", "said", "complaint"),
    [
        (3, "", "it ended with 3"),
        (0, "Exception ignored in: <x>", "Exception ignored"),
        (2, "no", "a message of 2 characters"),
        (2, "captum-clip: error: " + 900 * "a", "a message of 900 characters"),
        (2, "captum-clip: error: explain: expected sign='positive'.", "it speaks of Python"),
    ],
)
def test_the_fuzzer_tells_what_is_wrong(
    code: int, said: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that finds nothing whatever happens would be no test."""

    def instead(_: object) -> int:
        import sys

        print(said, file=sys.stderr)
        return code

    monkeypatch.setattr(cli, "main", instead)
    assert complaint in run([])


def test_the_fuzzer_tells_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def instead(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "main", instead)
    assert "ZeroDivisionError" in run([])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["models", "--vocabulary=--"], "argument --vocabulary: expected one argument"),
        (["explain", "a.jpg", "--text=--"], "argument --text: expected one argument"),
        (
            ["explain", "a.jpg", "a", "--side", "a" * 4000],
            f"invalid choice: '{'a' * 79}... (choose",
        ),
        (["explain", "a.jpg", "a", "--x", "b " * 900], "unrecognized arguments: --x b b"),
        (["demo", "--device", "cpu:99"], "there is no device 'cpu:99'"),
        (["demo", "--device", "meta"], "PyTorch cannot compute on 'meta' here"),
        (["explain", "none.jpg", "a"], "error: there is no image file none.jpg"),
        (["emotions", "check", "none", "--emotions", "a.json"], "there is no folder none"),
        (["emotions", "check", ".", "--emotions", "a.json"], "(No such file or directory)"),
    ],
)
def test_mistakes_are_answered_as_they_were_typed(
    line: list[str], message: str, capsys: Capture
) -> None:
    """Each was found by the lines above."""
    assert main(line) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()[-1]) < 700
