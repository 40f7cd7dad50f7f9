"""How calls end, and what ends those that do not.

A call has `SECONDS`. One that runs Python by then is stopped by a signal; one that is stuck in C
is killed with its process, and the next calls get another.
"""

import faulthandler
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

SECONDS = 300.0
How = Literal["right", "refused", "foreign", "out of time"]


@dataclass(frozen=True)
class End:
    """How a call ended.

    Attributes:
        case: number of the call.
        call: its name.
        how: "foreign" is an error, or a message, that is not ours.
        text: what is wrong with it; "" where nothing is.
    """

    case: int
    call: str
    how: How
    text: str = ""


Ends = Callable[[Path, range, int], Iterator[End]]
"""A folder to write in, the numbers of the cases, their seed -> how each ends."""


class OutOfTime(BaseException):
    """A call ran longer than it may; no `except Exception` or `except OSError` takes it."""


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise `OutOfTime` in what runs longer than `SECONDS`, and again if that was swallowed."""

    def stop(*_: object) -> None:
        raise OutOfTime(f"it took longer than {SECONDS:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def watched(ends: Ends, cases: range, seed: int, until: float) -> Iterator[End]:
    """Make the calls in another process, until all are made or `time.monotonic()` is `until`."""
    context = multiprocessing.get_context("fork")
    while cases and time.monotonic() < until:
        reader, writer = context.Pipe(duplex=False)
        with tempfile.TemporaryDirectory() as folder, reader:
            arguments = (writer, ends, Path(folder), cases, seed)
            process = context.Process(target=_send, args=arguments)
            process.start()
            writer.close()
            try:
                while cases and reader.poll(_patience(until)):
                    yield reader.recv()
                    cases = cases[1:]
                if cases and time.monotonic() < until:
                    os.kill(process.pid or 0, signal.SIGABRT)  # which prints where it is stuck
                    yield End(cases[0], "a call", "out of time", "it was stuck in C")
                    cases = cases[1:]
            except EOFError:
                process.join()
                yield End(
                    cases[0], "a call", "foreign", f"its process ended with {process.exitcode}"
                )
                cases = cases[1:]
            finally:
                process.kill()
                process.join()


def _patience(until: float) -> float:
    """Seconds to wait for the next end: longer than the signal needs, where there is time."""
    return max(0.0, min(2 * SECONDS, until - time.monotonic()))


def _send(writer: Connection, ends: Ends, folder: Path, cases: range, seed: int) -> None:
    faulthandler.enable()
    for end in ends(folder, cases, seed):
        writer.send(end)
