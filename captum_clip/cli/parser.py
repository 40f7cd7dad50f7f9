"""The arguments of all commands."""

from __future__ import annotations

import argparse
from typing import NoReturn

from .._version import __version__
from . import demo, explain, models

_DESCRIPTION = "See where a CLIP model looks: saliency maps for images and texts."
_EXAMPLES = """\
examples:
  captum-clip demo
  captum-clip explain photo.jpg "a horse" "a dog"
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong on one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"captum-clip: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser; ``arguments.run(arguments)`` runs the chosen command."""
    parser = _Parser(
        prog="captum-clip",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"captum-clip {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (explain, models, demo):
        added = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=f"{command.HELP[0].upper()}{command.HELP[1:]}.",
            epilog=f"example:\n  {command.EXAMPLE}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return parser
