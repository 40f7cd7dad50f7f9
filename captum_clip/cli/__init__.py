"""The command line: ``captum-clip COMMAND``.

Only arguments are handled here; a command imports what it needs when it runs, so that ``--help``
is quick.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from .. import errors
from .inputs import check_arguments
from .parser import build_parser

__all__ = ["main"]

_FAILED, _INTERRUPTED, _TERMINATED = 2, 130, 143
_TYPED = (
    (r"load_clip\(\.\.\., (processor|tokenizer)=\.\.\.\)", r"--\1 NAME"),
    (r"\b(sign|device|engine|workers|gpus)='?([^\s',;]+)'?", r"--\1 \2"),
    (r"\b(batch|chunk)_size\b", r"--\1-size"),
    (r"\bheld_out\b", "--held-out"),
    (r"^(load_clip|preprocess|StudyConfig|EmotionProbe\.load|figures\.\w+): ", ""),
)
"""What an error says to those who write Python -> to those who type commands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        Exit code: 0, 2 after an error that was said on one line, 130 after an interruption,
        143 after SIGTERM.
    """
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the shell; the next file would get its number
            setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    try:
        with _stopping_in_order(), _anything_printable():
            arguments = build_parser().parse_args(argv)
            with _quiet():
                check_arguments(arguments)
                arguments.run(arguments)
            sys.stdout.flush()
    except errors.CaptumClipError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed, which this command needs.")
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has enough
        _drop_output()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _drop_output()
        return _fail("the output cannot be written: no space is left on its device.")
    except SystemExit as stop:  # --help, --version and wrong arguments
        return int(stop.code or 0)
    return 0


@contextmanager
def _stopping_in_order() -> Iterator[None]:
    """Whoever ends the process with SIGTERM finds no half-written files, as after Ctrl-C."""

    def stop(*_: object) -> None:
        raise SystemExit(_TERMINATED)

    # only the main thread may set a handler, and one that somebody has set stays
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _anything_printable() -> Iterator[None]:
    """Names that stdout has no letters for are printed with escapes, as stderr does by itself."""
    out = sys.stdout
    if not isinstance(out, io.TextIOWrapper) or out.errors != "strict":
        yield
        return
    out.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with suppress(OSError):  # it flushes; a reader that has gone must not hide an error
            out.reconfigure(errors="strict")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings and log lines of the libraries from the user, and put all back after it."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _drop_output() -> None:
    """What is still to be written goes nowhere, so that nothing fails at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> int:
    for in_python, typed in _TYPED:
        message = re.sub(in_python, typed, message)
    print(f"captum-clip: error: {' '.join(message.split())}", file=sys.stderr)
    return _FAILED
