"""``captum-clip figure``: Mamooler's figures, and heads, on the user's own images."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .command import CENTRE, LOADING, METHODS, MODELS, OUTPUT, PROBES, TEXT, Command, Option
from .figure_inputs import Inputs, read_inputs
from .inputs import check_emotions, check_folder, check_output, load_model
from .output import draw_pictures, steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..models import ClipAdapter

_KEYWORDS: Final = {
    "colormap": "cmap",
    "method": "methods",
    "emotion": "names",
    "target": "names",
    **{name: name for name in ("scale", "rows", "count", "sign", "centre")},
}
"""Options -> what the functions of :mod:`captum_clip.figures` call them."""


def _run(arguments: Namespace) -> None:
    """Draw the figure and say where it is."""
    from ..visualization import save_figure
    from ..visualization.grid import FORMATS

    _check_options(arguments)
    inputs = read_inputs(arguments)
    if inputs.folder is not None:
        folder, output = check_folder(arguments, inputs.folder)
        clips = [load_model(arguments, model) for model in inputs.models]
        draw_pictures(
            arguments,
            folder,
            output,
            lambda path: _draw(arguments, replace(inputs, images=[path]), clips),
        )
        return
    default = f"{inputs.stem}-{arguments.command}.png"
    files = [part for part in (*inputs.images, *inputs.references) if isinstance(part, Path)]
    output = check_output(arguments.output, default, FORMATS, files)
    clips = [load_model(arguments, model) for model in inputs.models]
    with steps(arguments, 2) as begin:
        begin("computing")
        figure = _draw(arguments, inputs, clips)
        begin("drawing")
        save_figure(figure, output)
    print(output)


def _check_options(arguments: Namespace) -> None:
    from ..checks import check_integer
    from ..visualization.colors import colormap
    from ..visualization.strips import MASK

    masks = arguments.command == "layers" and arguments.colormap == MASK
    if arguments.colormap is not None and not masks:
        colormap(arguments.colormap)
    if arguments.command == "heads":
        check_integer("figure heads", "--count", arguments.count)
    if arguments.command == "emotions":
        check_emotions(arguments.emotion)


def _draw(arguments: Namespace, inputs: Inputs, clips: list[ClipAdapter]) -> Figure:
    from .. import figures

    given = vars(arguments)
    options: dict[str, Any] = {
        keyword: given[name] for name, keyword in _KEYWORDS.items() if given.get(name) is not None
    }
    command: str = arguments.command
    draw: Callable[..., Figure] = getattr(figures, command)
    if command == "average":
        return draw(inputs.images, **options)
    if "image" in given:
        options["references"] = inputs.references
    if command in ("layers", "heads"):  # of one image and one model
        return draw(inputs.images[0], inputs.texts, model=clips[0], **options)
    targets = inputs.probes if command == "emotions" else inputs.texts
    return draw(
        inputs.images, targets[0] if command == "words" else targets, models=clips, **options
    )


_COLORMAP: Final = Option(
    "--colormap NAME",
    "a colormap of matplotlib, such as viridis or jet (Mamooler's, which is not perceptually "
    "uniform); for layers also mask, as Mamooler drew them: the image multiplied by each map",
)
_OUTPUT: Final = replace(
    OUTPUT,
    help="a .png, .jpg, .pdf or .svg picture",
    otherwise="IMAGE-FIGURE.png, or FOLDER-FIGURE, in the current folder",
)
_TARGETS: Final = (TEXT, Option("--image FILE...", "an image to look for instead of a text"))


def _figure(name: str, help: str, example: str, *options: Option, **scales: str) -> Command:
    """A figure of images, and what its scales mean; the first one is the default."""
    texts = TEXT in options
    then = "; then what to look for" if texts else ""
    described = ", ".join(f"{scale} ({meaning})" for scale, meaning in scales.items())
    return Command(
        name,
        help,
        f"captum-clip figure {name} {example}",
        Option(
            "given IMAGE TEXT..." if texts else "given IMAGE...",
            f"image files, or a folder of which each image gets a picture{then}",
        ),
        Option(
            "--scene SEED[:THING,...]...",
            "draw a scene for the embedded models in place of an IMAGE, as in 0:horse,dog",
        ),
        MODELS,
        *LOADING,
        *options,
        Option("--scale", f"scale of the colours: {described}", choices=tuple(scales)),
        _COLORMAP,
        _OUTPUT,
        run=_run,
    )


_LAYERS: Final = _figure(
    "layers",
    "the attention of every layer, and the gradient with respect to it (Figures 2, 3)",
    'photo.jpg "a horse" -o layers.png',
    *_TARGETS,
    Option(
        "--rows",
        "which row of the attention: that of the CLS token, or the sum of all rows",
        choices=("cls", "sum"),
    ),
    each="each map its own",
    shared="one for all layers",
)
_COMPARE: Final = _figure(
    "compare",
    "the input, then one column per method; images and targets as rows (Figures 4, 5)",
    'a.jpg b.jpg --text "a horse" --method all-grad --method last-grad -o compare.png',
    *_TARGETS,
    replace(METHODS, otherwise="all that fit the model"),
    each="each map its own",
    shared="one per column",
)
_AVERAGE: Final = Command(
    "average",
    "mean maps of studies: of methods, of emotions, of towers (Figures 6, 12)",
    "captum-clip figure average STUDY -o average.png",
    Option("given STUDY...", "an output folder of 'captum-clip study'", required=True),
    Option("--target NAME...", "a text or emotion of the study", otherwise="all"),
    _COLORMAP,
    _OUTPUT,
    run=_run,
)
_SIGNS: Final = _figure(
    "signs",
    "what speaks for each target, and what speaks against it (Figures 7 to 10)",
    'photo.jpg --text "a horse" --image other.jpg --model ViT-B/32 --model RN101 -o signs.png',
    *_TARGETS,
    METHODS,
    shared="one for both signs",
    each="each map its own",
)
_EMOTIONS: Final = _figure(
    "emotions",
    "one column per emotion, one row per model (Figure 11)",
    "photo.jpg --emotions vit.safetensors --model ViT-B/32 --emotions resnet.safetensors "
    "--model RN101 -o emotions.png",
    METHODS,
    replace(PROBES, required=True),
    Option("--emotion NAME...", otherwise="all eight"),
    CENTRE,
    each="each map its own",
    shared="one per row",
)
_WORDS: Final = _figure(
    "words",
    "the whole text, then one column per word (Figure 13)",
    'photo.jpg "a horse and a dog" --model ViT-B/32 --model RN101 -o words.png',
    TEXT,
    METHODS,
    norm="words dimmed by how much they matter",
    each="each map its own",
)
_HEADS: Final = _figure(
    "heads",
    "the attention heads that add most to the score, and the rest of the sum",
    'photo.jpg "a horse" -o heads.png',
    *_TARGETS,
    Option("--count N", "the most heads to show", default=8),
    Option(
        "--sign",
        "the heads that add most (positive), those that take most away (negative), or both",
        choices=("positive", "negative", "both"),
    ),
    each="each map its own",
    shared="one for all maps",
)
COMMAND: Final = Command(
    "figure",
    "draw one of Mamooler's figures on your own images, or the heads behind a score",
    'captum-clip figure layers photo.jpg "a horse" -o layers.png',
    commands=(_LAYERS, _COMPARE, _AVERAGE, _SIGNS, _EMOTIONS, _WORDS, _HEADS),
    metavar="FIGURE",
)
