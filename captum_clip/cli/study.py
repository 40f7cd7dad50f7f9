"""``captum-clip study``: statistics of the maps of a whole folder of images."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .places import inside
from .progress import images_bar

if TYPE_CHECKING:
    from ..studies import StudyConfig

NAME = "study"
HELP = "average maps over a folder of images, and measure them"
EXAMPLE = 'captum-clip study statistics photos --text "a horse" --text "a dog" -o horses'

_EXAMPLES = {
    "statistics": EXAMPLE,
    "corner-bias": "captum-clip study corner-bias photos -o corners",
    "emotions": "captum-clip study emotions photos --emotions vit.safetensors "
    "--emotions resnet.safetensors -o emotions",
}
_HELP = {
    "statistics": "mean maps, their spread, entropies and biases, for any texts and emotions",
    "corner-bias": "do methods favour the corners? three methods, a happy and a sad text",
    "emotions": "eight emotions, plain and centred, a ViT beside a ResNet",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    studies = parser.add_subparsers(title="studies", metavar="STUDY", required=True, dest="study")
    for name, text in _HELP.items():
        added = studies.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}. Started again after a stop, it goes on.",
            epilog=f"example:\n  {_EXAMPLES[name]}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_subjects(added, name)
        _add_settings(added)


def _add_subjects(parser: argparse.ArgumentParser, study: str) -> None:
    models = "ViT-B/32 and RN101" if study == "emotions" else "ViT-B/32"
    methods = {
        "corner-bias": "all-grad, attention-grad-cam and last-grad for ViTs, grad-cam for ResNets"
    }
    parser.add_argument(
        "images", metavar="FOLDER", help="searched for images through to the bottom"
    )
    parser.add_argument(
        "--model", action="append", metavar="NAME", help=f"may be repeated (default: {models})"
    )
    parser.add_argument(
        "--method",
        action="append",
        metavar="NAME",
        help="may be repeated, and is used with the towers that it fits (default: "
        f"{methods.get(study, 'last-grad for ViTs, grad-cam for ResNets')})",
    )
    if study != "emotions":
        default = ' (default: "this person is happy", "this person is sad")'
        parser.add_argument(
            "--text",
            action="append",
            metavar="TEXT",
            help=f"may be repeated{default if study == 'corner-bias' else ''}",
        )
    if study != "corner-bias":
        parser.add_argument(
            "--emotions",
            action="append",
            metavar="FILE",
            required=study == "emotions",
            help="from 'captum-clip emotions fit'; one for each model, in the same order",
        )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, default=16, metavar="N")
    parser.add_argument("--limit", type=int, metavar="N", help="study a sample of N images")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the sample")
    parser.add_argument(
        "--value-entropy", action="store_true", help="measure it as well, which takes its time"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that decode images (local, default 2) or that compute (ray, default 1)",
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="this machine, or Ray: several processes or a cluster (default: %(default)s)",
    )
    parser.add_argument(
        "--gpus", type=int, default=0, metavar="N", help="0 computes on the CPU (default)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of each process that computes")
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="a folder of its own for the results"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the study, or go on with it, and say where the results are.

    Raises:
        CaptumClipError: an argument that cannot be worked with, or no image that can be read.
    """
    from ..studies import run_study

    config = _config(arguments)
    with images_bar("study") as progress:
        found = run_study(config, progress=progress)
    print(f"statistics  {inside(arguments.output, 'statistics.csv')}")
    print(f"mean maps   {inside(arguments.output, 'mean_maps.png')}")
    if found.skipped:
        print(
            f"{len(found.skipped)} of {found.images} images were skipped; the reasons are in "
            f"{inside(arguments.output, 'manifest.json')}"
        )


def _config(arguments: argparse.Namespace) -> StudyConfig:
    from .. import studies

    make: dict[str, Callable[..., StudyConfig]] = {
        "statistics": studies.statistics_study,
        "corner-bias": studies.corner_bias_study,
        "emotions": studies.emotions_study,
    }
    several = {"models": "model", "methods": "method", "texts": "text", "emotions": "emotions"}
    given: dict[str, Any] = {
        name: tuple(value)
        for name, option in several.items()
        if (value := getattr(arguments, option, None))
    }
    settings = (
        *("batch_size", "limit", "seed", "value_entropy"),
        *("workers", "engine", "gpus", "threads"),
    )
    given |= {name: getattr(arguments, name) for name in settings}
    return make[arguments.study](arguments.images, arguments.output, **given)
