"""Calls that do not end are ended."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fuzz import calls, ends
from tests.fuzz.ends import End, watched


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "SECONDS", 0.2)


def test_a_call_is_stopped_whatever_it_catches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TimeoutError would be an OSError, which the package has reasons to catch."""

    def stubborn(_: object) -> None:
        with suppress(BaseException):
            time.sleep(60)
        with suppress(Exception):
            time.sleep(60)

    monkeypatch.setattr(calls, "CALLS", {"stubborn": stubborn})
    assert [end.how for end in calls.ends(tmp_path, range(2))] == ["out of time"] * 2


def _stuck_and_dead(_: Path, cases: range, seed: int) -> Iterator[End]:
    for case in cases:
        if case == 1:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            time.sleep(60)
        if case == 2:
            os._exit(3)
        yield End(case, str(seed), "right")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of forks, since 3.12
def test_the_calls_go_on_after_one_that_is_stuck_or_ends_its_process() -> None:
    found = list(watched(_stuck_and_dead, range(4), 7, float("inf")))
    assert [end.how for end in found] == ["right", "out of time", "foreign", "right"]
    assert [end.case for end in found] == [0, 1, 2, 3]
    assert found[2].text == "its process ended with 3"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_the_calls_stop_where_the_time_is_over() -> None:
    start = time.monotonic()
    found = list(watched(_stuck_and_dead, range(4), 7, start + 0.3))
    assert [end.how for end in found] == ["right"]
    assert time.monotonic() - start < 30
