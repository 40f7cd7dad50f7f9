"""The commands as typer makes them, and lines that are parsed but not run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from typer.main import get_command

from captum_clip.cli import app, load_commands


def leaves(
    command: Any = None, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that has none below it, with the words that call it."""
    if command is None:
        load_commands()
        command = get_command(app)
    if not hasattr(command, "commands"):
        yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from leaves(below, (*words, name))


def parse(arguments: Sequence[str]) -> None:
    """Parse a line; an error of typer where a command, an option or a choice does not exist."""
    load_commands()
    root: Any = get_command(app)
    for _, command in leaves(root):
        command.callback = lambda **_: None
        for parameter in command.params:  # they look for devices and load the registries
            parameter.callback = None
    root.main(list(arguments), prog_name="captum-clip", standalone_mode=False)
