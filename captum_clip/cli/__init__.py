"""The command line: ``captum-clip COMMAND``.

A function of one dataclass is a command: the fields are its options. It hands them to the library,
and prints what comes back. It imports what it needs when it runs, so that ``--help`` is quick.

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
from importlib.metadata import entry_points
from typing import Any

import typer

from .. import errors
from ..checks import excerpt
from . import explain_command, show_commands  # noqa: F401
from .options import app

__all__ = ["COMMANDS", "app", "load_commands", "main"]

COMMANDS = "captum_clip.commands"
"""Group of entry points; a module of it registers its commands when it is imported."""

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
        with _silenced(), redirect_stdout(_Plain(sys.stdout)), redirect_stderr(_Plain(sys.stderr)):
            words = sys.argv[1:] if argv is None else argv
            load_commands(next((word for word in words if not word.startswith("-")), None))
            code = typer.main.get_command(app).main(
                argv, prog_name="captum-clip", standalone_mode=False
            )
            sys.stdout.flush()
            return int(code or 0)
    except errors.CaptumClipError as error:
        return _fail(error.reason)
    except _UsageError as error:
        return _fail(_describe_usage(error))
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed, and this command needs it.")
    except OSError as error:
        return _end_output(error)
    except SystemExit as stop:  # of SIGTERM, and of typer's completion
        if isinstance(stop.__context__, BrokenPipeError):  # which typer makes a failure
            return _end_output(stop.__context__)
        return int(stop.code or 0)


def load_commands(name: str | None = None) -> None:
    """Import the module of a command, or for help and for any other name those of all commands."""
    if name in {command.name for command in app.registered_commands}:
        return
    entries = entry_points(group=COMMANDS)
    for entry in entries.select(name=name or "") or entries:
        try:
            entry.load()
        except ImportError as error:
            sentence = f"the command {entry.name} of {entry.value} cannot be imported ({error})."
            if entry.name == name:
                raise errors.InputError(sentence) from error
            warnings.warn(sentence, stacklevel=1)  # the help lists the others


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


def _describe_usage(error: Any) -> str:
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


_TOLD = "which no tower reads|drops transparency|16-bit image|so it is loaded as|no preprocessor_"


@contextmanager
def _silenced() -> Iterator[None]:
    """Hide warnings and log lines of the libraries, and restore their settings afterwards.

    Of the package's own a user sees that weights were left over, what an image loses, and what it
    tells a command.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", f".*({_TOLD})")
            warnings.filterwarnings("always", module=r"captum_clip\.(cli|\w+\.commands)(\.|$)")
            warnings.showwarning = partial(_print_warning, set())
            yield
    finally:
        logging.disable(disabled)


def _print_warning(printed: set[str], message: Warning | str, *_: Any, **__: Any) -> None:
    if str(message) not in printed:  # a folder has many images that lose the same
        printed.add(str(message))
        print(f"captum-clip: warning: {message}", file=sys.stderr)


def _fail(message: str) -> int:
    print(f"captum-clip: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
