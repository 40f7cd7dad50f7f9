"""The arguments of all commands."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, NoReturn

from .._version import __version__
from ..checks import excerpt
from . import app, demo, emotions, evaluate, explain, figure, models, rank, study
from .command import QUIET, Command

_DESCRIPTION = "See where a CLIP model looks: saliency maps for images and texts."
_EXAMPLES = """\
examples:
  captum-clip demo
  captum-clip explain photo.jpg "a horse" "a dog"
"""
_COMMANDS = (explain, figure, rank, study, evaluate, emotions, models, demo, app)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong on one line.

    Attributes:
        options: of a command without commands below it, as they are typed.
        late: the list that takes words after an option too. argparse itself gives up on a list that
            may be empty as soon as it meets an option, and leaves it to the parser of all commands
            to refuse what one of them does not know.
    """

    options: tuple[str, ...] = ()
    late: str = ""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"(\S{80})\S+", r"\1...", message)  # what was typed may be endless
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            message += _suggestion(choice[1], re.findall(r"[^\s',]+", choice[2]))
        self.exit(2, f"captum-clip: error: {message} (see {self.prog} --help)\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        for word in args or ():  # argparse makes an empty list of it
            if re.fullmatch(r"-[\w-]+=--", word):
                self.error(f"argument {word[:-3]}: expected one argument")
        found, rest = super().parse_known_args(args, namespace)
        if self.late:
            words = list(takewhile(lambda word: not word.startswith("-"), rest))
            rest = rest[len(words) :]
            if self.late == "texts":
                words += found.text or []
                del found.text
            setattr(found, self.late, getattr(found, self.late) + words)
        if rest and self.options:
            self.print_usage(sys.stderr)
            close = _suggestion(rest[0], self.options)
            self.error(f"unrecognized arguments: {excerpt(' '.join(rest))}{close}")
        return found, rest


def build_parser() -> argparse.ArgumentParser:
    """The parser; ``arguments.run(arguments)`` runs the chosen command."""
    parser = _Parser(
        prog="captum-clip",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda _: parser.print_help())
    parser.add_argument("--version", action="version", version=f"captum-clip {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in _COMMANDS:
        _add_command(module.COMMAND, commands)
    return parser


def _suggestion(typed: str, known: Sequence[str]) -> str:
    close = get_close_matches(typed.partition("=")[0], known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _add_command(command: Command, commands: Any) -> None:
    parser = commands.add_parser(
        command.name,
        help=command.help,
        description=textwrap.fill(command.description, 78),
        epilog=command.example and f"example:\n  {command.example}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if command.commands:
        below = parser.add_subparsers(title="commands", metavar=command.metavar, required=True)
        for subcommand in command.commands:
            _add_command(subcommand, below)
        return
    parser.set_defaults(run=command.run, command=command.name)
    parser.options = ("--help",)
    for option in (*command.options, QUIET):
        exclusive = isinstance(option, tuple)
        group = parser.add_mutually_exclusive_group() if exclusive else parser
        for each in option if isinstance(option, tuple) else (option,):
            action = each.add_to(group)
            parser.options += tuple(action.option_strings)
            if action.nargs == "*":
                parser.late = action.dest
