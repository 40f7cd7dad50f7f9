"""The application ``captum-clip``, and how its commands and options differ from click's own.

A command is a plain function below ``@app.command(...)``, with one ``@option(...)`` for each
option. Its module imports heavy libraries inside the function, so that ``--help`` is quick.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import click

from .._version import __version__
from ..errors import InputError, spelled, warn
from .completion import install_completion, show_completion

COMMANDS: Final = "captum_clip.commands"
"""Group of entry points; a module of it registers its commands when it is imported."""

PANELS: Final = ("First steps", "Maps", "Models", "Many images")
"""The headings in the list of commands, in their order; those of other packages come last."""

_OTHER_PANEL: Final = "Commands of other packages"
_OPTIONS: Final = "Options"

Lists = Callable[[], Mapping[str, Iterable[str]]]
"""Makes lists of names by title, only when a help has to show them."""


class Range(click.ParamType[float]):
    """A number from `low` to `high`, or of `low` or more; click itself says "x>=1"."""

    def __init__(self, number: type[int] | type[float], low: int, high: int | None = None) -> None:
        self.name = "integer" if number is int else "float"
        self.number = number
        self.low = low
        self.high = high

    def __str__(self) -> str:
        return f"{self.low} or more" if self.high is None else f"from {self.low} to {self.high}"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        kind = "a whole number" if self.number is int else "a number"
        sentence = f"expected {kind}, {self}, got {value}."
        try:
            number = self.number(value)
        except ValueError:
            self.fail(sentence, param, ctx)
        # A NaN is in no range.
        if not self.low <= number or not (self.high is None or number <= self.high):
            self.fail(sentence, param, ctx)
        return number


class Option(click.Option):
    """An option that stands in a section of the help, where its range is said in words."""

    def __init__(self, *args: Any, section: str = _OPTIONS, **settings: Any) -> None:
        settings.setdefault("show_default", True)
        super().__init__(*args, **settings)
        self.section = section

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        if isinstance(self.type, Range):
            extra["range"] = str(self.type)
        return extra


option = partial(click.option, cls=Option)
argument = click.argument


class AnyPath(click.Path):
    """A path that the command checks itself, since its messages say more."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return Path(value)


PATH: Final = AnyPath()


class Command(click.Command):
    """A command whose help has sections and ends with an example.

    Messages that it raises name its options: ``--words`` instead of `words`.

    Args:
        *args: click's.
        example: what may follow the name of the command.
        panel: the heading above it in the list of commands, from :data:`PANELS`.
        lists: makes lists of names for the help, by title.
        **settings: click's.
    """

    def __init__(
        self,
        *args: Any,
        example: str = "",
        panel: str = _OTHER_PANEL,
        lists: Lists = dict,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.example = example
        self.panel = panel
        self.lists = lists

    def invoke(self, ctx: click.Context) -> Any:
        flags = {parameter.name: parameter.opts[0] for parameter in self.params}

        def spell(name: str, value: Any) -> str:
            # The library may use the singular of what may be given several times.
            flag = flags.get(name, flags.get(f"{name}s"))
            if flag is None:
                # It is an option of a method, or an argument that Python alone has.
                return name if value is None else f"{name}={value!r}"
            return flag if value is None or value is True else f"{flag} {value}"

        with spelled(spell):
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Argument) or record is None:
                continue
            # The option --help is click's own.
            section = parameter.section if isinstance(parameter, Option) else _OPTIONS
            sections.setdefault(section, []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in self.lists().items():
            with formatter.section(title):
                for line in textwrap.wrap(", ".join(names), 76, break_on_hyphens=False):
                    formatter.write(f"  {line}\n")
        if self.example:
            with formatter.section("example"):
                formatter.write(f"  {ctx.command_path} {self.example}\n")


class Group(click.Group):
    """A group that lists its commands in panels, each with the whole of its first sentence."""

    command_class = Command

    def __init__(self, *args: Any, panel: str = _OTHER_PANEL, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.panel = panel

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        panels: dict[str, list[tuple[str, str]]] = {panel: [] for panel in PANELS}
        for name in self.list_commands(ctx):
            command = self.commands[name]
            panel = command.panel if isinstance(command, (Command, Group)) else _OTHER_PANEL
            summary = command.get_short_help_str(limit=200)
            panels.setdefault(panel, []).append((name, summary))
        for panel, records in panels.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl(records)


class _Application(Group):
    """The group of all commands, which imports the module of a command when that is called."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        load_commands(cmd_name)
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        load_commands()
        return super().list_commands(ctx)


@click.group(
    "captum-clip",
    cls=_Application,
    help="See where a CLIP model looks: saliency maps for images and texts.",
    epilog='\b\nexamples:\n  captum-clip demo\n  captum-clip explain photo.jpg "a horse" "a dog"',
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)
@click.version_option(
    __version__, message="captum-clip %(version)s", help="show the version and exit"
)
@click.option(
    "--install-completion",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=install_completion,
    help="complete commands and options in this shell from now on, and exit",
)
@click.option(
    "--show-completion",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=show_completion,
    help="print the script that completes them in this shell, and exit",
)
@click.pass_context
def app(context: click.Context) -> None:
    """Print the help where no command is called."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def load_commands(name: str | None = None) -> None:
    """Import the module of a command, or those of all where none or an unknown one is named."""
    if name in app.commands:
        return
    entries = entry_points(group=COMMANDS)
    named = entries.select(name=name or "")
    # For an unknown name all commands are loaded, since click suggests one that is spelled alike.
    for entry in named or entries:
        try:
            entry.load()
        except ImportError as error:
            sentence = f"the command {entry.name} of {entry.value} cannot be imported ({error})."
            if entry.name == name:
                raise InputError(sentence) from error
            # Where another command is called, or the help lists all, the others still work.
            warn(sentence)
