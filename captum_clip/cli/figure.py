"""``captum-clip figure``: Mamooler's figures, and heads, on the user's own images."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from .command import CENTRE, LOADING, METHODS, MODELS, OUTPUT, PROBES, TEXT, Command, Option
from .figure_inputs import Inputs, read_inputs
from .inputs import check_emotions, check_output, load_model
from .picture_folder import check_folder, draw_pictures
from .progress import steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..models import ClipAdapter


def _run(arguments: Namespace) -> None:
    """Draw the figure and say where it is."""
    from ..checks import check_integer
    from ..visualization import save_figure
    from ..visualization.layers import MASK
    from ..visualization.saving import FORMATS
    from ..visualization.style import colormap

    masks = arguments.command == "layers" and arguments.colormap == MASK
    if arguments.colormap is not None and not masks:
        colormap(arguments.colormap)
    if arguments.command == "heads":
        check_integer("figure heads", "--count", arguments.count)
    if arguments.command == "emotions":
        check_emotions(arguments.emotion)
    inputs = read_inputs(arguments)
    if inputs.folder is not None:
        folder, output = check_folder(arguments, inputs.folder)
        clips = _load(arguments, inputs.models)
        draw_pictures(
            arguments,
            folder,
            output,
            lambda path: _draw(arguments, replace(inputs, images=[path]), clips),
            clips=clips,
            texts=inputs.texts,
            files=[*inputs.references, *(getattr(arguments, "emotions", None) or ())],
        )
        return
    default = f"{inputs.stem}-{arguments.command}.png"
    output = check_output(arguments.output, default, FORMATS, inputs.files)
    clips = _load(arguments, inputs.models)
    with steps(arguments, 2) as begin:
        begin("computing")
        figure = _draw(arguments, inputs, clips)
        begin("drawing")
        save_figure(figure, output)
    print(output)


def _load(arguments: Namespace, models: list[str]) -> list[ClipAdapter]:
    with steps(arguments, len(models)) as begin:
        clips = []
        for model in models:
            begin(f"loading {model}")
            clips.append(load_model(arguments, model))
    return clips


def _draw(arguments: Namespace, inputs: Inputs, clips: list[ClipAdapter]) -> Figure:
    from .. import figures

    options: dict[str, Any] = {}
    if arguments.colormap is not None:
        options["cmap"] = arguments.colormap
    if arguments.command == "average":
        return figures.average(inputs.images, names=arguments.target, **options)
    options["scale"] = arguments.scale
    if arguments.command == "layers":
        options |= {"references": inputs.references, "model": clips[0], "rows": arguments.rows}
        return figures.layers(inputs.images[0], inputs.texts, **options)
    if arguments.command == "heads":
        options |= {"references": inputs.references, "model": clips[0]}
        options |= {"count": arguments.count, "sign": arguments.sign}
        return figures.heads(inputs.images[0], inputs.texts, **options)
    options |= {"models": clips, "methods": arguments.method}
    if arguments.command == "emotions":
        options |= {"names": arguments.emotion, "centre": arguments.centre}
        return figures.emotions(inputs.images, inputs.probes, **options)
    if arguments.command == "words":
        return figures.words(inputs.images, inputs.texts[0], **options)
    draw = figures.compare if arguments.command == "compare" else figures.signs
    return draw(inputs.images, inputs.texts, references=inputs.references, **options)


_COLORMAP: Final = Option(
    "--colormap",
    "a colormap of matplotlib, such as viridis or jet (Mamooler's, which is not perceptually "
    "uniform); for layers also mask, as Mamooler drew them: the image multiplied by each map",
    metavar="NAME",
)
_OUTPUT: Final = replace(
    OUTPUT,
    help="a .png, .jpg, .pdf or .svg picture",
    otherwise="IMAGE-FIGURE.png, or FOLDER-FIGURE, in the current folder",
)
_SCENE: Final = Option(
    "--scene",
    "draw a scene for the embedded models in place of an IMAGE, as in 0:horse,dog",
    metavar="SEED[:THING,...]",
    many=True,
)
_REFERENCE: Final = Option(
    "--image", "an image to look for instead of a text", metavar="FILE", many=True
)
_ROWS: Final = Option(
    "--rows",
    "which row of the attention: that of the CLS token, or the sum of all rows",
    default="cls",
    choices=("cls", "sum"),
)
_COUNT: Final = Option("--count", "the most heads to show", default=8)
_SIGN: Final = Option(
    "--sign",
    "the heads that add most (positive), those that take most away (negative), or both",
    default="positive",
    choices=("positive", "negative", "both"),
)


def _figure(name: str, help: str, example: str, *options: Option, **scales: str) -> Command:
    """A figure of images, and what its scales mean; the first one is the default."""
    texts = TEXT in options
    then = "; then what to look for" if texts else ""
    described = ", ".join(f"{scale} ({meaning})" for scale, meaning in scales.items())
    return Command(
        name,
        help,
        f"captum-clip figure {name} {example}",
        options=(
            Option(
                "given",
                f"image files, or a folder of which each image gets a picture{then}",
                metavar="IMAGE TEXT" if texts else "IMAGE",
                many=True,
            ),
            _SCENE,
            MODELS,
            *LOADING,
            *options,
            Option(
                "--scale",
                f"scale of the colours: {described}",
                next(iter(scales)),
                choices=(*scales,),
            ),
            _COLORMAP,
            _OUTPUT,
        ),
        run=_run,
    )


COMMAND: Final = Command(
    "figure",
    "draw one of Mamooler's figures on your own images, or the heads behind a score",
    'captum-clip figure layers photo.jpg "a horse" -o layers.png',
    commands=(
        _figure(
            "layers",
            "the attention of every layer, and the gradient with respect to it (Figures 2, 3)",
            'photo.jpg "a horse" -o layers.png',
            *(TEXT, _REFERENCE, _ROWS),
            each="each map its own",
            shared="one for all layers",
        ),
        _figure(
            "compare",
            "the input, then one column per method; images and targets as rows (Figures 4, 5)",
            'a.jpg b.jpg --text "a horse" --method all-grad --method last-grad -o compare.png',
            *(TEXT, _REFERENCE, replace(METHODS, otherwise="all that fit the model")),
            each="each map its own",
            shared="one per column",
        ),
        Command(
            "average",
            "mean maps of studies: of methods, of emotions, of towers (Figures 6, 12)",
            "captum-clip figure average STUDY -o average.png",
            options=(
                Option(
                    "given",
                    "an output folder of 'captum-clip study'",
                    metavar="STUDY",
                    many=True,
                    required=True,
                ),
                Option(
                    "--target",
                    "a text or emotion of the study",
                    otherwise="all",
                    metavar="NAME",
                    many=True,
                ),
                _COLORMAP,
                _OUTPUT,
            ),
            run=_run,
        ),
        _figure(
            "signs",
            "what speaks for each target, and what speaks against it (Figures 7 to 10)",
            'photo.jpg --text "a horse" --image other.jpg --model ViT-B/32 --model RN101 '
            "-o signs.png",
            *(TEXT, _REFERENCE, METHODS),
            shared="one for both signs",
            each="each map its own",
        ),
        _figure(
            "emotions",
            "one column per emotion, one row per model (Figure 11)",
            "photo.jpg --emotions vit.safetensors --model ViT-B/32 --emotions resnet.safetensors "
            "--model RN101 -o emotions.png",
            METHODS,
            replace(PROBES, required=True),
            Option("--emotion", otherwise="all eight", metavar="NAME", many=True),
            CENTRE,
            each="each map its own",
            shared="one per row",
        ),
        _figure(
            "words",
            "the whole text, then one column per word (Figure 13)",
            'photo.jpg "a horse and a dog" --model ViT-B/32 --model RN101 -o words.png',
            *(TEXT, METHODS),
            norm="words dimmed by how much they matter",
            each="each map its own",
        ),
        _figure(
            "heads",
            "the attention heads that add most to the score, and the rest of the sum",
            'photo.jpg "a horse" -o heads.png',
            *(TEXT, _REFERENCE, _COUNT, _SIGN),
            each="each map its own",
            shared="one for all maps",
        ),
    ),
    metavar="FIGURE",
)
