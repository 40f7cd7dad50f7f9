"""The command line: ``captum-clip COMMAND``.

A command hands its options to the library, and prints what comes back. `application.py` says what
a command is, `options.py` has the options that several share.

The commands of the bench, the apps and other packages are modules that entry points of the group
``captum_clip.commands`` name, each after a command that the module registers.
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
from functools import partial
from typing import Any

import click

from .. import errors
from ..checks import excerpt
from . import completion, explain_command, show_commands  # noqa: F401
from .application import COMMANDS, app, load_commands

__all__ = ["COMMANDS", "app", "load_commands", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        Exit code: 0, 2 after an error that is reported on one line or for an image of the line that
        is left out, 130 after Ctrl-C.
    """
    _open_streams()
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        # Names of files may hold letters that steer a terminal.
        with _silenced(), redirect_stdout(_Plain(sys.stdout)), redirect_stderr(_Plain(sys.stderr)):
            code = _run(words)
            sys.stdout.flush()
            return code
    except errors.CaptumClipError as error:
        return _fail(error.reason)
    except click.UsageError as error:
        return _fail(_describe_usage(error))
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed, and this command needs it.")
    except OSError as error:
        return _end_output(error)
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:  # of SIGTERM
        return int(stop.code or 0)


def _run(words: list[str]) -> int:
    """Run a command, or answer the shell that completes one."""
    code = completion.complete(app)
    if code is not None:
        return code
    try:
        with app.make_context(completion.PROGRAM, words) as context:
            app.invoke(context)
    except click.exceptions.Exit as stop:  # after --help and --version, or of a command
        return stop.exit_code
    return 0


class _Plain:
    """A stream that escapes what would steer a terminal, but for the return of a progress bar."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> Any:
        return self._stream.write(errors.printable(text))


def _open_streams() -> None:
    """Make stdout and stderr safe to write to."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:
            # The shell closed it, and the next file that is opened would get its number.
            setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Letters that the encoding of the terminal lacks are written as escapes.
        sys.stdout.reconfigure(errors="backslashreplace")


def _end_output(error: OSError) -> int:
    """Return the exit code where stdout takes no more; any other error is raised again."""
    if error.errno not in (errno.EPIPE, errno.ENOSPC):
        raise error
    # What is still buffered goes nowhere, so that nothing fails when Python exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        # The reader, such as `head`, has enough, and that is no failure.
        return 0
    return _fail("the output cannot be written: no space is left on its device.")


def _describe_usage(error: click.UsageError) -> str:
    """Describe a usage error in one sentence, with what was probably meant."""
    if isinstance(error, click.NoSuchOption):
        sentence = f"No such option: {error.option_name}"
        if error.possibilities:
            sentence += f"; did you mean {error.possibilities[0]}?"
    elif isinstance(error, click.exceptions.NoSuchCommand):
        sentence = f"No such command '{error.command_name}'"
        if error.possibilities:
            sentence += f"; did you mean '{error.possibilities[0]}'?"
    else:
        sentence = " ".join(error.format_message().split()).rstrip(".")
        # click suggests options and commands, but not the values of a choice.
        choice = re.search(r"'([^']*)' is not one of (.*)", sentence)
        if choice:
            close = get_close_matches(choice[1], re.findall(r"[^\s',]+", choice[2]), n=1)
            if close:
                sentence += f"; did you mean {close[0]}?"
    # A word may have thousands of letters, and a line thousands of words.
    sentence = excerpt(re.sub(r"(\S{80})\S+", r"\1...", sentence), 500)
    command = error.ctx.command_path if error.ctx else completion.PROGRAM
    return f"{sentence} (see {command} --help)"


@contextmanager
def _silenced() -> Iterator[None]:
    """Hide warnings and log lines of the libraries, and restore their settings afterwards."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", errors.CaptumClipWarning)
            warnings.showwarning = partial(_print_warning, set())
            yield
    finally:
        logging.disable(disabled)


def _print_warning(printed: set[str], message: Warning | str, *_: Any, **__: Any) -> None:
    sentence = str(message)
    # Many images of a folder may lose the same, and one line says it.
    if sentence not in printed:
        printed.add(sentence)
        print(f"captum-clip: warning: {sentence}", file=sys.stderr)


def _fail(message: str) -> int:
    print(f"captum-clip: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
