"""The application, what makes a dataclass the options of a command, and options that several share.

The help of all options stands in options.json.
"""

import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import MISSING, dataclass, field, fields
from importlib.metadata import entry_points
from inspect import Parameter, Signature, cleandoc
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

from typer import Argument, Context, Exit, Option, Typer
from typer.core import TyperCommand
from typer.models import OptionInfo

from .._version import __version__
from ..checks import Look, check_choice, current_look, find_file, limit_pixels, suggestion
from ..errors import InputError, assigned, spelled
from ..explaining.request import Request
from ..files import read_lines

_CommandFunction = TypeVar("_CommandFunction", bound=Callable[[Any], None])
_Lists = Callable[[], Mapping[str, Iterable[str]]]
app: Final = Typer(
    help="See where a CLIP model looks: saliency maps for images and texts.",
    epilog='\b\nexamples:\n  captum-clip demo\n  captum-clip explain photo.jpg "a horse" "a dog"',
    rich_markup_mode=None,  # rich puts help and errors into boxes, and takes .1 s to import
    context_settings={"help_option_names": ["-h", "--help"]},
)
OPTIONS: Final = json.loads(Path(__file__).with_name("options.json").read_text("utf-8"))
"""How options are typed where it is not by their name, which stand last, what --help lists (the
registries would load torch), and the help of each command, or of `several`."""
_HELP: Final[dict[str, dict[str, str]]] = OPTIONS["help"]


@app.callback(invoke_without_command=True)
def _root(
    context: Context,
    version: Annotated[bool, Option("--version", help="show the version and exit")] = False,
) -> None:
    if version:
        print(f"captum-clip {__version__}")
        raise Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


class _Command(TyperCommand):
    """A command whose help ends with an example, and whose messages name its options."""

    example: str
    lists: _Lists

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(args=[*args])
        models = [each for each in order if each.name == "model" and not each.multiple]
        if len(models) > 1:  # of which the last would win in silence
            raise InputError(
                f"{self.name} takes one --model, got {len(models)}; run each by itself."
            )
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = [self.options_metavar or ""]
        for parameter in self.params:  # a metavar of several words has its own brackets
            usual = parameter.get_usage_pieces(ctx)
            pieces += [parameter.metavar] if usual and parameter.metavar else usual
        return pieces

    def invoke(self, ctx: Any) -> Any:
        options = {parameter.name: parameter.opts[0] for parameter in self.params}

        def spell(name: str, value: Any) -> str:
            flag = options.get(name, options.get(f"{name}s"))
            if flag is None:  # of a method, or of Python alone
                return name if value is None else f"{name}={value!r}"
            return flag if value is None or value is True else f"{flag} {value}"

        with spelled(spell):
            return super().invoke(ctx)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        for title, names in self.lists().items():
            with formatter.section(title):
                lines = textwrap.wrap(", ".join(names), 76, break_on_hyphens=False)
                formatter.write("".join(f"  {line}\n" for line in lines))
        with formatter.section("example"):
            formatter.write(f"  {ctx.command_path} {self.example}\n")


def command(
    group: Typer, name: str, example: str, lists: _Lists = dict
) -> Callable[[_CommandFunction], _CommandFunction]:
    """Decorate a function of one dataclass as a command, with an option for each of its fields.

    Args:
        group: the application, or a group of it.
        name: as it is written.
        example: what may follow the name; a line with it ends the help.
        lists: names by title for the help.
    """

    def decorate(function: _CommandFunction) -> _CommandFunction:
        [kind] = [hint for key, hint in get_type_hints(function).items() if key != "return"]

        class Command(_Command):
            pass

        Command.example, Command.lists = example, staticmethod(lists)

        def run(**args: Any) -> None:
            with limit_pixels(args.get("max_pixels")):
                line, looks = kind(**args), {e.name for e in fields(Look)} & args.keys()
                if args.get("cmap"):
                    from ..visualization.colors import colormap  # loads matplotlib

                    colormap(args["cmap"])
                with assigned(current_look, Look(**{name: args[name] for name in looks})):
                    function(line)

        run.__signature__ = Signature(_parameters(kind, name))  # type: ignore[attr-defined]
        group.command(name, cls=Command, help=cleandoc(function.__doc__ or ""))(run)
        return function

    return decorate


def _parameters(kind: type[Any], name: str) -> list[Parameter]:
    """What typer makes the options of a command from: the fields of its dataclass."""
    types = get_type_hints(kind, include_extras=True)
    # what several commands share refers to explain, where that says more
    helps = {
        key: text for n in ("explain", "several", name) for key, text in _HELP.get(n, {}).items()
    }
    parameters = []
    for entry in fields(kind):
        hint = entry.metadata.get("typed", types[entry.name])
        if hint is None:  # no command line has it
            continue
        hint, info = get_args(hint) if get_origin(hint) is Annotated else (hint, Option())
        hint = str | None if hint is Any and info.parser is None else hint
        names, required = OPTIONS["typed"].get(entry.name), entry.default is MISSING
        if entry.name == "texts" or (required and names is None):
            info = Argument(metavar=info.metavar)
        info = copy(info)  # commands share types
        info.help = helps.get(entry.name, info.help)
        if isinstance(info, OptionInfo):
            flag = (
                (f"--{entry.name.replace('_', '-')}",) if hint is bool and not entry.default else ()
            )
            info.param_decls = entry.metadata.get("names", names or flag)
            info.help += "; may be repeated" * ("list[" in str(hint))
        default = Parameter.empty if required else entry.default
        annotation: Any = Annotated[hint, info]
        parameters.append(
            Parameter(entry.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    last = {name: place for place, name in enumerate(OPTIONS["last"])}
    return sorted(parameters, key=lambda parameter: last.get(parameter.name, -1))


DEFAULT_MODEL: Final[str] = Request.model
Count = Annotated[int, Option(min=1)]
Workers = Annotated[int, Option(min=0)]
Texts = list[str] | None


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """What every command takes."""

    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class Drawing(Look, Quiet):
    """What `explain` and `figure` take besides what they draw."""

    texts_file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Loading(Quiet):
    """What every command takes that loads a model."""

    processor: str | None = None
    tokenizer: str | None = None
    device: str | None = None
    max_pixels: Annotated[int | None, Option(min=1)] = None
    image_size: Any = field(default=None, metadata={"typed": None})


@dataclass(frozen=True, kw_only=True)
class Computing(Loading):
    """What a command over many images takes besides."""

    batch_size: int = 32
    workers: int | None = None
    image_size: int | None = None
    engine: Literal["local", "ray"] = "local"
    gpus: int | None = None
    threads: int | None = None

    def settings(self, *others: str) -> dict[str, Any]:
        """What is set, as the library takes it, without the `others`, which it does not take."""
        from ..models.loading import choose_device

        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        if self.gpus is None:
            if ":" in (self.device or ""):
                raise InputError(f"--device {self.device}: expected cpu or cuda, without a number.")
            values["gpus"] = int(choose_device(self.device).type == "cuda")
        left_out = {"device", "quiet", "max_pixels", *others}
        return {
            name: value
            for name, value in values.items()
            if name not in left_out and value is not None and value is not False
        }


def methods() -> dict[str, Iterable[str]]:
    """What --help lists under --method, without the registry, which loads torch."""
    others = entry_points(group="captum_clip.methods").names
    listed: dict[str, Iterable[str]] = {**OPTIONS["methods"]}
    return listed | ({"methods of other packages": sorted(others)} if others else {})


def check_method_name(name: str | None) -> None:
    """Refuse a method that nobody has registered, before the registry, which loads torch."""
    vit, resnet = OPTIONS["methods"].values()
    names = [resnet[0], *vit, "layer", "cam"]  # in the registry's order
    others = [*entry_points(group="captum_clip.methods").names, "mamooler"]
    others += dir(sys.modules["captum_clip"])  # its classes are named, and none is loaded
    stem = (name or "mamooler").partition(":")[0]
    # what a program registered itself is known to the registry alone, which is loaded then
    if stem not in (*names, *others) and "captum_clip.attr.registry" not in sys.modules:
        raise InputError(
            f"method: expected one of {', '.join(names)}, with options as in "
            "last-grad:heads=averaged, or a class of captum_clip.attr; got "
            f"{name!r}{suggestion(stem, (*names, *others))}."
        )


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts; InputError where one is empty."""
    texts = [*texts]
    for text in texts:
        if not text.strip():
            raise InputError(f"the text {text!r} is empty; name what to look for.")
    return texts


def read_texts(file: Path | None) -> list[str]:
    """The texts of a file, one a line; none where no file is given."""
    if file is None:
        return []
    if not (texts := read_lines(find_file(file))):
        raise InputError(f"{file} holds no text; write one per line.")
    return texts


def check_emotions(names: Iterable[str]) -> None:
    """Raise InputError unless each name is an emotion."""
    from ..demo.catalog import CLASSES

    for name in names:
        check_choice(name, CLASSES, name="an emotion")
