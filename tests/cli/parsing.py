"""The commands as click has them, and lines that are parsed but not run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import click

from captum_clip.cli import app, load_commands


def leaves(
    command: click.Command = app, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that has none below it, with the words that call it."""
    load_commands()
    if not isinstance(command, click.Group):
        yield words, command
        return
    for name, below in command.commands.items():
        yield from leaves(below, (*words, name))


def parse(arguments: Sequence[str]) -> None:
    """Parse a line; an error of click where a command, an option or a choice does not exist."""
    command: click.Command = app
    context = None
    name = "captum-clip"
    rest = list(arguments)
    with suppress(click.exceptions.Exit):  # after the help
        while isinstance(command, click.Group):
            context = click.Context(command, context, info_name=name)
            if rest and rest[0].startswith("-"):
                command.parse_args(context, rest)
                return
            found, below, rest = command.resolve_command(context, rest)
            assert found is not None
            assert below is not None
            name, command = found, below
        command.make_context(name, rest, parent=context)
