"""``captum-clip evaluate``: methods and metrics over data sets, in one table with intervals."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .places import inside
from .progress import images_bar

if TYPE_CHECKING:
    from ..evaluation import EvaluationConfig

NAME = "evaluate"
HELP = "measure methods: which map is right"
EXAMPLE = "captum-clip evaluate --model demo/vit -o evaluation"

_SETTINGS = (
    *("reference", "against", "images", "few", "seed", "draws", "template", "text"),
    *("batch_size", "chunk_size", "resamples", "engine", "workers", "gpus", "threads"),
)
_SEVERAL = {"data": "data", "method": "methods", "maps": "maps", "task": "tasks", "fill": "fills"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--model", default="ViT-B/32", metavar="NAME", help="default: %(default)s")
    parser.add_argument(
        "--data",
        action="append",
        metavar="DATA",
        help="may be repeated: demo, demo-singles, demo-mosaics (default: these three), "
        "masks:FOLDER, imagenet-segmentation:FILE, voc:FOLDER, classes:FOLDER, fixations:FOLDER",
    )
    parser.add_argument(
        "--method",
        action="append",
        metavar="NAME",
        help="may be repeated, with options as in last-grad:heads=averaged (default: all that fit "
        "the tower, Captum's for reference, and baselines)",
    )
    parser.add_argument(
        "--maps",
        action="append",
        metavar="FOLDER",
        help="maps made elsewhere, IMAGE_STEM.npz with maps (K, h, w) and names (K,); may be "
        "repeated",
    )
    parser.add_argument(
        "--task",
        action="append",
        metavar="NAME",
        help="may be repeated: localization, signs, effect, words, perturbation, faithfulness, "
        "sanity, fixation (default: all that the data serve)",
    )
    parser.add_argument(
        "--reference", metavar="NAME", help="compare with this method (default: the tower's own)"
    )
    _add_settings(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--against",
        choices=("text", "image"),
        default="text",
        help="explain regions by their text, or by another picture (default: %(default)s)",
    )
    numbers = {
        "--images": (500, "images of each data set at most"),
        "--few": (64, "images for what takes long: sensitivity, sanity, ROAD, Captum's own"),
        "--seed": (0, "of every draw"),
        "--draws": (10, "perturbations an image for infidelity"),
        "--batch-size": (32, "images a forward pass"),
        "--chunk-size": (32, "images a unit of work, what a stop can cost"),
        "--resamples": (2000, "of the bootstrap"),
        "--workers": (1, "processes of Ray"),
        "--gpus": (0, "0 computes on the CPU"),
    }
    for option, (default, text) in numbers.items():
        parser.add_argument(
            option, type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)"
        )
    parser.add_argument("--threads", type=int, metavar="N", help="of each process that computes")
    parser.add_argument(
        "--fill",
        action="append",
        choices=("mean", "black", "blur", "road"),
        help="of removed pixels; may be repeated (default: mean and road)",
    )
    parser.add_argument(
        "--template", metavar="TEXT", help='text of a class, as "a photo of a {}" (class folders)'
    )
    parser.add_argument("--text", metavar="TEXT", help="that fixations are compared with")
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="default: %(default)s"
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="a folder of its own for the results"
    )


def run(arguments: argparse.Namespace) -> None:
    """Measure, or go on measuring, and say where the results are.

    Raises:
        CaptumClipError: an argument that cannot be worked with, or data of which nothing can be
            used.
    """
    from ..evaluation import evaluate

    with images_bar("evaluate") as progress:
        found = evaluate(_config(arguments), progress=progress)
    place = arguments.output
    for what, name in (("tables", "results.md"), ("figures", "results.csv")):
        print(f"{what:<8} {inside(place, name)}")
    for name in found.pictures:
        print(f"curves   {inside(place, name)}")
    for data, entries in found.skipped.items():
        if entries:
            print(
                f"{data}: {len(entries)} entries were skipped; the reasons are in "
                f"{inside(place, 'manifest.json')}"
            )


def _config(arguments: argparse.Namespace) -> EvaluationConfig:
    from ..evaluation import EvaluationConfig

    given: dict[str, Any] = {name: getattr(arguments, name) for name in _SETTINGS}
    for option, name in _SEVERAL.items():
        if getattr(arguments, option):
            given[name] = tuple(getattr(arguments, option))
    return EvaluationConfig(arguments.model, arguments.output, **given)
