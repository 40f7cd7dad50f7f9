"""The application, what makes a function a command of it, and options that commands share."""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

from typer import Argument, Context, Exit, Option, Typer
from typer.core import TyperCommand

from .._version import __version__
from ..checks import check_choice
from ..errors import InputError

_Function = TypeVar("_Function", bound=Callable[..., None])
_Lists: TypeAlias = Callable[[], Mapping[str, Iterable[str]]]
app: Final = Typer(
    help="See where a CLIP model looks: saliency maps for images and texts.",
    epilog='\b\nexamples:\n  captum-clip demo\n  captum-clip explain photo.jpg "a horse" "a dog"',
    rich_markup_mode=None,  # rich puts help and errors into boxes, and takes .1 s to import
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


def command(
    group: Typer, name: str, example: str, *, lists: _Lists | None = None
) -> Callable[[_Function], _Function]:
    """Decorate a function as a command, whose help is its docstring, that of its ``Args`` included.

    Args:
        group: the application, or a group of it.
        name: as it is typed.
        example: what may follow the name; a line with it ends the help.
        lists: names by title for the help, from the registries; called for help alone, since they
            load torch.
    """

    def decorate(function: _Function) -> _Function:
        summary, _, arguments = (inspect.getdoc(function) or "").partition("\n\nArgs:\n")
        helps = dict(re.findall(r"^    (\w+): (.+(?:\n        .+)*)", arguments, re.MULTILINE))

        class Command(TyperCommand):
            def __init__(self, *args: Any, **settings: Any) -> None:
                super().__init__(*args, **settings)
                parameter: Any
                for parameter in self.params:
                    if text := helps.get(parameter.name):
                        parameter.help = " ".join(text.split())

            def format_epilog(self, ctx: Any, formatter: Any) -> None:
                for title, names in lists().items() if lists else ():
                    with formatter.section(title):
                        lines = textwrap.wrap(", ".join(names), 76, break_on_hyphens=False)
                        formatter.write("".join(f"  {line}\n" for line in lines))
                with formatter.section("example"):
                    formatter.write(f"  {ctx.command_path} {example}\n")

        return group.command(name, cls=Command, help=summary)(function)

    return decorate


def methods() -> dict[str, Iterable[str]]:
    """The names that --method takes, by tower."""
    from ..attr.registry import methods_for

    others = "classes of pytorch-grad-cam as cam:LayerCAM"
    return {
        "methods for ViTs": methods_for("vit"),
        "methods for ResNets": (*methods_for("resnet"), others),
    }


def check_texts(texts: list[str] | None) -> list[str]:
    """The texts; InputError where one is empty."""
    for text in texts or ():
        if not text.strip():
            raise InputError(f"the text {text!r} is empty; name what to look for.")
    return texts or []


def check_sign(method: str | None, sign: str) -> None:
    """Raise InputError where a method has no map of the sign."""
    from ..attr.registry import MethodChoice

    if method is not None and sign != "positive":
        MethodChoice.of(method).check_negative()


def check_emotions(names: list[str]) -> list[str]:
    """The names of emotions; InputError where one is none."""
    from ..emotions import CLASSES

    for name in names:
        check_choice("--emotion", name, CLASSES)
    return names


def _check_method(name: str | None) -> str | None:
    if name is not None:
        from ..attr.registry import MethodChoice

        MethodChoice.of(name)
    return name


def _check_methods(names: list[str] | None) -> list[str]:
    return [name for name in names or () if _check_method(name)]


def _check_device(name: str | None) -> str | None:
    if name is not None:
        from ..models.loading import choose_device

        choose_device(name)
    return name


DEFAULT_MODEL: Final = "ViT-B/32"
_METHOD: Final = "one of those below, with options as in last-grad:heads=averaged"
_PROBE: Final = "a probe of 'captum-clip emotions fit', or encodings that Mamooler published"

Sign: TypeAlias = Literal["positive", "negative", "both"]
Several: TypeAlias = list[str] | None
Texts: TypeAlias = Annotated[Several, Argument(help="what to look for", callback=check_texts)]
Text: TypeAlias = Annotated[
    Several, Option(help="what to look for; may be repeated", callback=check_texts)
]
Model: TypeAlias = Annotated[
    str | None,
    Option(
        help="a name of 'captum-clip models', a folder, or a model of the Hugging Face hub "
        f"(default: {DEFAULT_MODEL}, or the one that --emotions was fitted on)"
    ),
]
Models: TypeAlias = Annotated[
    Several, Option(help=f"as of 'explain'; may be repeated (default: {DEFAULT_MODEL})")
]
Method: TypeAlias = Annotated[
    str | None,
    Option(
        help=f"{_METHOD} (default: direct; conservative for pooling heads such as SigLIP's)",
        callback=_check_method,
    ),
]
Methods: TypeAlias = Annotated[
    Several,
    Option(
        help=f"{_METHOD}, used with the models that it fits; may be repeated "
        "(default: Mamooler's, last-grad for ViTs and grad-cam for ResNets)",
        callback=_check_methods,
    ),
]
Emotions: TypeAlias = Annotated[Path | None, Option(help=_PROBE)]
Probes: TypeAlias = Annotated[
    list[Path] | None, Option(help=f"{_PROBE}; one for each model, in the same order")
]
Processor: TypeAlias = Annotated[
    str | None, Option(help="whose image processor to use, for a checkpoint without one")
]
Tokenizer: TypeAlias = Annotated[str | None, Option(help="whose tokenizer to use, likewise")]
Device: TypeAlias = Annotated[
    str | None,
    Option(help="such as cpu or cuda (default: CUDA if available)", callback=_check_device),
]
Output: TypeAlias = Annotated[Path | None, Option("--output", "-o")]
Results: TypeAlias = Annotated[
    str, Option("--output", "-o", help="a folder of its own for the results")
]
Quiet: TypeAlias = Annotated[
    bool, Option("--quiet", help="hide the progress bars, which only a terminal shows")
]
