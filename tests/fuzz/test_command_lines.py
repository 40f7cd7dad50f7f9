"""Some random command lines; ``python -m tests.fuzz`` draws thousands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from captum_clip import cli
from tests.fuzz.command_lines import ends, run


def test_random_lines_end_in_no_error_but_ours(tmp_path: Path) -> None:
    assert [end for end in ends(tmp_path, range(25)) if end.text] == []


@pytest.mark.parametrize(
    ("code", "said", "complaint"),
    [
        (3, "", "it ended with 3"),
        (2, "captum-clip: error: " + 900 * "a", "a message of 900 characters"),
        (2, "captum-clip: error: explain: expected sign='positive'.", "it speaks of Python"),
    ],
)
def test_the_fuzzer_tells_what_is_wrong(
    code: int, said: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that finds nothing whatever happens would be no test."""

    def instead(_: object) -> int:
        print(said, file=sys.stderr)
        return code

    monkeypatch.setattr(cli, "main", instead)
    assert complaint in run([])[1]
