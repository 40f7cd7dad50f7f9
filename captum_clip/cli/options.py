"""The application, what makes a function a command of it, and options that commands share.

Help of options that several commands have, unless the docstring of a command tells more:

    texts: what to look for
    texts_file: a file with more texts to look for, one per line
    model: a name of 'captum-clip models', a folder, or a model of the Hugging Face hub (default:
        ViT-B/32, or the one that --emotions was fitted on)
    method: one of those below, with options as in last-grad:heads=averaged, or mamooler: last-grad
        for ViTs, grad-cam for ResNets (default: direct; conservative for pooling heads such as
        SigLIP's)
    methods: as in 'explain' (default: the same; the figure compare draws all that fit, the study
        corner-bias takes three)
    emotions: a probe of 'captum-clip emotions fit', or of an embedded model, such as demo/vit
    centre: subtract the mean of all nine embeddings of --emotions from each of them
    processor: a model whose image processor to use, for a checkpoint without one
    tokenizer: a model whose tokenizer to use, likewise
    image_size: side in pixels of the model's images, for finer maps (default: its own)
    device: such as cpu or cuda (default: CUDA if available)
    engine: this machine, or Ray: several processes or a cluster
    gpus: GPUs that the workers share; 0 is the CPU (default: by --device)
    threads: the number of threads of each computing process
    batch_size: images per forward pass
    workers: images read ahead at a time
    output: a folder for these results alone
    dpi: pixels an inch of the figures, such as 300 for print (default: for a screen)
    quiet: hide progress: the bars in a terminal, the lines in a file
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

from typer import Argument, Context, Exit, Option, Typer
from typer.core import TyperCommand

from .._version import __version__
from ..checks import as_list, check_choice, find_file
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


def _helps(docstring: str | None) -> dict[str, str]:
    """Names and descriptions of arguments in a docstring."""
    found = re.findall(
        r"^    (\w+): (.+(?:\n        .+)*)", inspect.cleandoc(docstring or ""), re.M
    )
    return {name: " ".join(description.split()) for name, description in found}


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
        helps = _helps(__doc__) | _helps(function.__doc__)

        class Command(TyperCommand):
            def __init__(self, *args: Any, **settings: Any) -> None:
                super().__init__(*args, **settings)
                parameter: Any
                for parameter in self.params:
                    again = "; may be repeated" if parameter.multiple else ""
                    parameter.help = helps[parameter.name] + again

            def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
                _, _, order = self.make_parser(ctx).parse_args(args=[*args])
                named = [one for one in order if one.name == "model" and not one.multiple]
                if len(named) > 1:  # of which the last would win in silence
                    got = f"got {len(named)}; take each by itself"
                    raise InputError(f"{name} takes one --model, {got}.")
                return super().parse_args(ctx, args)

            def collect_usage_pieces(self, ctx: Any) -> list[str]:
                pieces = super().collect_usage_pieces(ctx)  # several words have their own brackets
                return [re.sub(r"^[\[{](.+ .+)[\]}]\.\.\.$", r"\1", piece) for piece in pieces]

            def format_epilog(self, ctx: Any, formatter: Any) -> None:
                for title, names in lists().items() if lists else ():
                    with formatter.section(title):
                        lines = textwrap.wrap(", ".join(names), 76, break_on_hyphens=False)
                        formatter.write("".join(f"  {line}\n" for line in lines))
                with formatter.section("example"):
                    formatter.write(f"  {ctx.command_path} {example}\n")

        summary = inspect.cleandoc(function.__doc__ or "").partition("\n\nArgs:\n")[0]
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
        raise InputError(f"{file} holds no text; write one a line.")
    return texts


def check_emotions(names: list[str]) -> list[str]:
    """The names of emotions; InputError where one is none."""
    from ..emotions import CLASSES

    for name in names:
        check_choice(name, CLASSES, name="an emotion")
    return names


def check_methods(names: Any) -> Any:
    """The names of methods; InputError where one is none."""
    if names:
        from ..attr.registry import check_method

        for name in as_list(names):
            check_method(name)
    return names


def given(arguments: Mapping[str, Any], *others: str) -> dict[str, Any]:
    """The arguments of a command, its ``locals()``, that are on the line or have a default.

    Without the `others`, which the library does not take.
    """
    return {
        name: value
        for name, value in arguments.items()
        if name not in others and value is not None and value is not False and value != []
    }


DEFAULT_MODEL: Final = "ViT-B/32"

Sign: TypeAlias = Literal["positive", "negative", "both"]
Several: TypeAlias = list[str] | None
Texts: TypeAlias = Annotated[Several, Argument(callback=check_texts)]
TextsFile: TypeAlias = Annotated[Path | None, Option("--texts")]
Model: TypeAlias = Annotated[str | None, Option("--model", "-m")]
Models: TypeAlias = Annotated[Several, Option("--model", "-m")]
Method: TypeAlias = Annotated[str | None, Option(callback=check_methods)]
Methods: TypeAlias = Annotated[Several, Option("--method", callback=check_methods)]
Workers: TypeAlias = Annotated[int, Option(min=0)]
Centre: TypeAlias = Annotated[bool, Option("--centre")]
Output: TypeAlias = Annotated[Path | None, Option("--output", "-o")]
Results: TypeAlias = Annotated[str, Option("--output", "-o")]
Dpi: TypeAlias = Annotated[int | None, Option(min=1, max=2400)]
Quiet: TypeAlias = Annotated[bool, Option("--quiet")]
