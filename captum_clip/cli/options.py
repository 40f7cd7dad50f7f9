"""The application, what makes a dataclass the options of a command, and options that several share.

The help of what `explain` takes stands in :class:`captum_clip.explaining.request.Request`, that of
all other options in options.json.
"""

import json
import textwrap
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from importlib.metadata import entry_points
from inspect import Parameter, Signature, cleandoc
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    TypeAlias,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from typer import Argument, Context, Exit, Option, Typer
from typer.core import TyperCommand
from typer.models import OptionInfo

from .._version import __version__
from ..checks import check_choice, find_file, limit_pixels
from ..errors import InputError, spelled
from ..explaining.request import Request, asked

_Function = TypeVar("_Function", bound=Callable[[Any], None])
_Lists: TypeAlias = Callable[[], Mapping[str, Iterable[str]]]
app: Final = Typer(
    help="See where a CLIP model looks: saliency maps for images and texts.",
    epilog='\b\nexamples:\n  captum-clip demo\n  captum-clip explain photo.jpg "a horse" "a dog"',
    rich_markup_mode=None,  # rich puts help and errors into boxes, and takes .1 s to import
    context_settings={"help_option_names": ["-h", "--help"]},
)
OPTIONS: Final = json.loads(Path(__file__).with_name("options.json").read_text("utf-8"))
"""How options are typed where it is not by their name, which stand last, what --help lists (the
registries would load torch), and the help of each command, or of `several`."""
_EXPLAIN: Final = {entry.name: entry.metadata.get("help") for entry in fields(Request)}


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
            typed = options.get(name, options.get(f"{name}s"))
            if typed is None:  # of a method, or of Python alone
                return name if value is None else f"{name}={value!r}"
            return typed if value is None or value is True else f"{typed} {value}"

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
) -> Callable[[_Function], _Function]:
    """Decorate a function of one dataclass as a command, with an option for each of its fields.

    Args:
        group: the application, or a group of it.
        name: as it is typed.
        example: what may follow the name; a line with it ends the help.
        lists: names by title for the help.
    """

    def decorate(function: _Function) -> _Function:
        [kind] = [hint for key, hint in get_type_hints(function).items() if key != "return"]

        class Command(_Command):
            pass

        Command.example, Command.lists = example, staticmethod(lists)

        def run(**typed: Any) -> None:
            with limit_pixels(typed.get("max_pixels")):
                function(kind(**typed))

        run.__signature__ = Signature(_parameters(kind, name))  # type: ignore[attr-defined]
        group.command(name, cls=Command, help=cleandoc(function.__doc__ or ""))(run)
        return function

    return decorate


def _parameters(kind: type[Any], name: str) -> list[Parameter]:
    """What typer makes the options of a command from: the fields of its dataclass."""
    types = get_type_hints(kind, include_extras=True)
    sources = [_EXPLAIN, OPTIONS["help"]["several"]]  # which refers to explain where that says more
    first, second = reversed(sources) if issubclass(kind, Request) else sources
    helps = {**first, **second, **OPTIONS["help"][name]}
    parameters = []
    for entry in fields(kind):
        typed = entry.metadata.get("typed", types[entry.name])
        if typed is None:  # no command line has it
            continue
        typed, option = get_args(typed) if get_origin(typed) is Annotated else (typed, Option())
        typed = str | None if typed is Any and option.parser is None else typed
        names, required = OPTIONS["typed"].get(entry.name), entry.default is MISSING
        if entry.name == "texts" or (required and names is None):
            option = Argument(metavar=option.metavar)
        option = copy(option)  # commands share types
        option.help = helps[entry.name]
        if isinstance(option, OptionInfo):
            flag = (f"--{entry.name.replace('_', '-')}",) if typed is bool else ()
            option.param_decls = entry.metadata.get("names", names or flag)
            option.help += "; may be repeated" * ("list[" in str(typed))
        default = Parameter.empty if required else entry.default
        annotation: Any = Annotated[typed, option]
        parameters.append(
            Parameter(entry.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    last = {name: place for place, name in enumerate(OPTIONS["last"])}
    return sorted(parameters, key=lambda parameter: last.get(parameter.name, -1))


DEFAULT_MODEL: Final[str] = Request.model
Count: TypeAlias = Annotated[int, Option(min=1)]
Workers: TypeAlias = Annotated[int, Option(min=0)]
Texts: TypeAlias = list[str] | None
ruled: Final = partial(asked, "")
"""A field with rules, whose help stands in options.json."""


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """What every command takes."""

    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class Drawing(Quiet):
    """What `explain` and `figure` take besides what they draw."""

    texts_file: Path | None = None
    center: bool = ruled(False, needs=("emotions",))
    dpi: Annotated[int | None, Option(min=1, max=2400)] = None


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
    others, listed = entry_points(group="captum_clip.methods").names, OPTIONS["listed"]
    return {
        "methods for ViTs": listed["vit"],
        "methods for ResNets": [
            *listed["resnet"],
            "classes of pytorch-grad-cam as cam:variant=LayerCAM",
        ],
        **({"methods of other packages": sorted(others)} if others else {}),
    }


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
    try:
        lines = find_file(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as text in UTF-8 ({error}).") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError(f"{file} holds no text; write one per line.")
    return texts


def check_emotions(names: Iterable[str]) -> None:
    """Raise InputError unless each name is an emotion."""
    from ..emotions import CLASSES

    for name in names:
        check_choice(name, CLASSES, name="an emotion")
