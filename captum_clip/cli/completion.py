"""Completion of commands and options in the shell: the script that click writes, and its place."""

import os
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import get_completion_class, shell_complete

from ..errors import InputError

PROGRAM: Final = "captum-clip"
_VARIABLE: Final = "_CAPTUM_CLIP_COMPLETE"
_STARTUP: Final = {"bash": ".bashrc", "zsh": ".zshrc"}
"""The file in the home folder that a shell reads when it starts."""


def complete(app: click.Command) -> int | None:
    """Answer the shell where it asks for completions; the exit code, or None where it does not."""
    instruction = os.environ.get(_VARIABLE)
    if not instruction:
        return None
    return shell_complete(app, {}, PROGRAM, _VARIABLE, instruction)


def show_completion(context: click.Context, option: click.Parameter, is_set: bool) -> None:
    """Print the script of the user's shell."""
    if is_set:
        _, script = _shell_and_script(context)
        print(script)
        context.exit()


def install_completion(context: click.Context, option: click.Parameter, is_set: bool) -> None:
    """Write the script of the user's shell where that shell reads it when it starts."""
    if not is_set:
        return
    shell, script = _shell_and_script(context)
    home = Path.home()
    if shell == "fish":
        # It reads every file of this folder by itself, so no file of the user's changes.
        file = home / ".config" / "fish" / "completions" / f"{PROGRAM}.fish"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(script, encoding="utf-8")
    else:
        file = home / f".{PROGRAM}-complete.{shell}"
        file.write_text(script, encoding="utf-8")
        startup = home / _STARTUP[shell]
        line = f'source "{file}"\n'
        written = startup.read_text(encoding="utf-8") if startup.exists() else ""
        # A second installation adds no second line.
        if line not in written:
            startup.write_text(f"{written}\n{line}", encoding="utf-8")
    print(f"{shell} completes {PROGRAM} in new terminals, by {file}")
    context.exit()


def _shell_and_script(context: click.Context) -> tuple[str, str]:
    shell = Path(os.environ.get("SHELL", "")).name
    writer: Any = get_completion_class(shell)
    if writer is None:
        raise InputError(
            f"completion works in bash, zsh and fish, got the shell {shell!r} of SHELL; "
            "start the command in one of these."
        )
    script = writer(context.command, {}, PROGRAM, _VARIABLE).source()
    return shell, str(script)
