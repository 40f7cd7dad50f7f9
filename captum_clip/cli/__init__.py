"""The command line: ``captum-clip COMMAND``.

A function of one dataclass is a command: the fields are its options. It hands them to the library,
and prints what comes back. It imports what it needs when it runs, so that ``--help`` is quick.
"""

import errno
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from difflib import get_close_matches
from typing import Any

import typer

from .. import errors
from ..checks import excerpt
from . import (  # noqa: F401
    explain_command,
    export_command,
    figure_command,
    measure_commands,
    search_commands,
    show_commands,
)
from .options import app

__all__ = ["app", "main"]

# typer brings its own click or imports it, by version; of both it names this error alone
_UsageError: type[Any] = typer.BadParameter.__bases__[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        Exit code: 0, 2 after an error that is reported on one line, typer's 130 after Ctrl-C.
    """
    _open_streams()
    try:
        # names of files may hold letters that steer a terminal
        with _quiet(), redirect_stdout(_Plain(sys.stdout)), redirect_stderr(_Plain(sys.stderr)):
            code = typer.main.get_command(app).main(
                argv, prog_name="captum-clip", standalone_mode=False
            )
            sys.stdout.flush()
            return int(code or 0)
    except errors.CaptumClipError as error:
        return _fail(error.reason)
    except _UsageError as error:
        return _fail(_describe(error))
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed, and this command needs it.")
    except OSError as error:
        return _end_output(error)
    except SystemExit as stop:  # of SIGTERM, and of typer's completion
        return int(stop.code or 0)


class _Plain:
    """A stream to which nothing is written that steers a terminal, but the return of a bar."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> Any:
        return self._stream.write(errors.printable(text))


def _open_streams() -> None:
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the shell; the next file would get its number
            setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):  # letters that it cannot encode get escapes
        sys.stdout.reconfigure(errors="backslashreplace")


def _end_output(error: OSError) -> int:
    if error.errno not in (errno.EPIPE, errno.ENOSPC):
        raise error
    # what is still to be written goes nowhere, so that nothing fails at the exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:  # the reader, such as `head`, has enough
        return 0
    return _fail("the output cannot be written: no space is left on its device.")


def _describe(error: Any) -> str:
    """A usage error as one sentence, with what was probably meant."""
    sentence = " ".join(error.format_message().split()).rstrip(".").replace("Value error, ", "")
    if possible := getattr(error, "possibilities", None):
        sentence = f"{error.message}; did you mean {possible[0]}?"
    elif choice := re.search(r"'([^']*)' is not one of (.*)", sentence):
        close = get_close_matches(choice[1], re.findall(r"[^\s',]+", choice[2]), n=1)
        sentence += f"; did you mean {close[0]}?" if close else ""
    sentence = sentence.replace(". Did you mean", "; did you mean")
    sentence = excerpt(re.sub(r"(\S{80})\S+", r"\1...", sentence), 500)  # it may be endless
    command = error.ctx.command_path if error.ctx else "captum-clip"
    return f"{sentence} (see {command} --help)"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings and log lines of the libraries, and restore their settings afterwards.

    Of the package's own a user sees that weights were left over, and what it tells a command.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", ".*which no tower reads")
            warnings.filterwarnings("always", module=rf"{re.escape(__name__)}\.")
            warnings.showwarning = _warn
            yield
    finally:
        logging.disable(disabled)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"captum-clip: warning: {message}", file=sys.stderr)


def _fail(message: str) -> int:
    print(f"captum-clip: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
