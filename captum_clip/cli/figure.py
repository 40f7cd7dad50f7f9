"""``captum-clip figure``: the figures of the report, on the user's own images."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .figure_inputs import MODEL, Inputs
from .progress import steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..models import ClipAdapter

NAME = "figure"
HELP = "draw a figure of the report: layers, compare, average, signs, emotions, words"
EXAMPLE = 'captum-clip figure layers photo.jpg "a horse" -o layers.png'


@dataclass(frozen=True)
class _Kind:
    """One figure: what it is, and which arguments it takes."""

    help: str
    example: str
    scales: Mapping[str, str] = field(default_factory=dict)
    texts: bool = False  # TEXT follows IMAGE, which is then one
    targets: bool = True  # --text and --image
    methods: str = "last-grad for ViTs, grad-cam for ResNets"


_KINDS = {
    "layers": _Kind(
        "for every layer its attention and the gradient with respect to it (Figures 2, 3)",
        EXAMPLE,
        scales={"each": "each map its own", "shared": "one for all layers"},
        texts=True,
        methods="",
    ),
    "compare": _Kind(
        "the input, then one column a method; images and targets as rows (Figures 4, 5)",
        'captum-clip figure compare a.jpg b.jpg --text "a horse" --method all-grad '
        "--method last-grad -o compare.png",
        scales={"each": "each map its own", "shared": "one a column"},
        methods="all that fit the model",
    ),
    "average": _Kind(
        "mean maps of studies: of methods, of emotions, of towers (Figures 6, 12)",
        "captum-clip figure average STUDY -o average.png",
    ),
    "signs": _Kind(
        "what speaks for each target beside what speaks against it (Figures 7 to 10)",
        'captum-clip figure signs photo.jpg --text "a horse" --image other.jpg --model ViT-B/32 '
        "--model RN101 -o signs.png",
        scales={"shared": "one for both signs", "each": "each map its own"},
    ),
    "emotions": _Kind(
        "one column an emotion, one row a model (Figure 11)",
        "captum-clip figure emotions photo.jpg --emotions vit.safetensors --model ViT-B/32 "
        "--emotions resnet.safetensors --model RN101 -o emotions.png",
        scales={"each": "each map its own", "shared": "one a row"},
        targets=False,
    ),
    "words": _Kind(
        "the whole text, then one column a word (Figure 13)",
        'captum-clip figure words photo.jpg "a horse and a dog" --model ViT-B/32 --model RN101 '
        "-o words.png",
        scales={"norm": "words dimmed by how much they matter", "each": "each map its own"},
        texts=True,
        targets=False,
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One command a figure."""
    figures = parser.add_subparsers(title="figures", metavar="FIGURE", required=True, dest="figure")
    for name, kind in _KINDS.items():
        added = figures.add_parser(
            name,
            help=kind.help,
            description=f"{kind.help[0].upper()}{kind.help[1:]}.",
            epilog=f"example:\n  {kind.example}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == "average":
            _add_studies(added)
        else:
            _add_images(added, kind)
            _add_models(added, name, kind)
        if name == "layers":
            added.add_argument(
                "--rows",
                choices=("cls", "sum"),
                default="cls",
                help="of the attention: that of the CLS token, or the sum of all "
                "(default: %(default)s)",
            )
        if name == "emotions":
            _add_emotions(added)
        _add_look(added, kind)


def _add_studies(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "given", metavar="STUDY", nargs="+", help="an output folder of 'captum-clip study'"
    )
    parser.add_argument(
        "--target",
        action="append",
        metavar="NAME",
        help="a text or emotion of the study; may be repeated (default: all)",
    )


def _add_images(parser: argparse.ArgumentParser, kind: _Kind) -> None:
    what = "IMAGE TEXT" if kind.texts else "IMAGE"
    text = "an image file, and what to look for" if kind.texts else "image files"
    parser.add_argument("given", metavar=what, nargs="*", help=text)
    parser.set_defaults(late="given")
    parser.add_argument(
        "--scene",
        action="append",
        default=[],
        metavar="SEED[:THING,...]",
        help="draw a scene for the embedded models in place of an IMAGE, as in 0:horse,dog; may "
        "be repeated",
    )
    if kind.targets:
        parser.add_argument(
            "--text",
            action="append",
            default=[],
            metavar="TEXT",
            help="what to look for; may be repeated",
        )
        parser.add_argument(
            "--image",
            action="append",
            default=[],
            metavar="FILE",
            help="an image to look for instead of a text; may be repeated",
        )


def _add_models(parser: argparse.ArgumentParser, name: str, kind: _Kind) -> None:
    again = "" if name == "layers" else "; may be repeated"
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help=f"as in 'captum-clip explain'{again} (default: {MODEL})",
    )
    if kind.methods:
        parser.add_argument(
            "--method",
            action="append",
            metavar="NAME",
            help="as in 'captum-clip explain'; may be repeated, and is used with the models that "
            f"it fits (default: {kind.methods})",
        )
    parser.add_argument("--device", help="such as cpu or cuda (default: CUDA if there is one)")


def _add_emotions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--emotions",
        action="append",
        required=True,
        metavar="FILE",
        help="as in 'captum-clip explain'; one for each model, in the same order",
    )
    parser.add_argument(
        "--emotion", action="append", metavar="NAME", help="may be repeated (default: all eight)"
    )
    parser.add_argument(
        "--centre",
        action="store_true",
        help="subtract the mean of all nine rows from those of the emotions",
    )


def _add_look(parser: argparse.ArgumentParser, kind: _Kind) -> None:
    if kind.scales:
        said = ", ".join(f"{name} ({what})" for name, what in kind.scales.items())
        parser.add_argument(
            "--scale",
            choices=tuple(kind.scales),
            default=next(iter(kind.scales)),
            help=f"of the colours: {said} (default: %(default)s)",
        )
    parser.add_argument(
        "--colormap",
        metavar="NAME",
        help="of matplotlib, such as viridis or jet, the report's own; jet is not even to the eye",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="a .png, .pdf or .svg picture (default: IMAGE-FIGURE.png in the current folder)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Draw the figure and say where it is.

    Raises:
        CaptumClipError: an argument that cannot be worked with.
    """
    from ..checks import check_destination
    from ..models import load_clip
    from ..visualization import save_figure
    from ..visualization.saving import FORMATS
    from ..visualization.style import colormap

    if arguments.colormap is not None:
        colormap(arguments.colormap)
    inputs = Inputs.of(arguments, texts_follow=_KINDS[arguments.figure].texts)
    default = Path(f"{inputs.stem}-{arguments.figure}.png")
    output = check_destination(arguments.output or default, FORMATS)
    for path in inputs.files:
        if output.exists() and output.samefile(path):
            raise InputError(f"the picture would replace the image {path}; give another --output.")
    with steps(len(inputs.models) + 2) as begin:
        clips = []
        for model in inputs.models:
            begin(f"loading {model}")
            clips.append(load_clip(model, device=arguments.device))
        begin("computing")
        figure = _draw(arguments, inputs, clips)
        begin("drawing")
        save_figure(figure, output)
    print(output)


def _draw(arguments: argparse.Namespace, inputs: Inputs, clips: list[ClipAdapter]) -> Figure:
    from .. import figures

    options: dict[str, Any] = {}
    if arguments.colormap is not None:
        options["cmap"] = arguments.colormap
    if arguments.figure == "average":
        return figures.average(inputs.images, names=arguments.target, **options)
    options["scale"] = arguments.scale
    if arguments.figure == "layers":
        options |= {"references": inputs.references, "model": clips[0], "rows": arguments.rows}
        return figures.layers(inputs.images[0], inputs.texts, **options)
    options |= {"models": clips, "methods": arguments.method}
    if arguments.figure == "emotions":
        options |= {"names": arguments.emotion, "centre": arguments.centre}
        return figures.emotions(inputs.images, inputs.probes, **options)
    if arguments.figure == "words":
        return figures.words(inputs.images, inputs.texts[0], **options)
    draw = figures.compare if arguments.figure == "compare" else figures.signs
    return draw(inputs.images, inputs.texts, references=inputs.references, **options)
