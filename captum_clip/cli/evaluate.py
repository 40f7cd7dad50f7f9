"""``captum-clip evaluate``: methods and metrics over data sets, in one table with intervals."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ..errors import InputError
from .command import (
    BATCH_SIZE,
    DEFAULT_MODEL,
    DEVICE,
    METHODS,
    MODEL,
    RUN,
    SEED,
    WORKERS,
    Command,
    Option,
)
from .inputs import count_gpus
from .progress import images_bar, inside

if TYPE_CHECKING:
    from ..evaluation import EvaluationConfig

_FIELDS: Final = {"data": "data", "method": "methods", "task": "tasks", "fill": "fills"}
"""Option -> field of the configuration, where their names differ."""


def _run(arguments: Namespace) -> None:
    """Measure, or go on measuring, and say where the results are."""
    from ..evaluation import evaluate

    config = _config(arguments)
    with images_bar(arguments, "evaluate") as progress:
        evaluation = evaluate(config, progress=progress)
    output = arguments.output
    print(f"report   {inside(output, 'report.html')}")
    print(f"tables   {inside(output, 'results.md')}")
    print(f"figures  {inside(output, 'results.csv')}")
    for name in evaluation.pictures:
        print(f"curves   {inside(output, name)}")
    for data, entries in evaluation.skipped.items():
        if entries:
            print(
                f"{data}: {len(entries)} entries were skipped; the reasons are in "
                f"{inside(output, 'manifest.json')}"
            )


def _config(arguments: Namespace) -> EvaluationConfig:
    from ..demo import MODELS
    from ..evaluation import EvaluationConfig

    fields: dict[str, Any] = {}
    for each in COMMAND.options:
        assert not isinstance(each, tuple)
        value = getattr(arguments, each.dest)
        if value is not None and each is not DEVICE:
            value = tuple(value) if isinstance(value, list) else value
            fields[_FIELDS.get(each.dest, each.dest)] = value
    fields["gpus"] = count_gpus(arguments)
    config = EvaluationConfig(**fields)
    if not config.data and config.model not in MODELS:
        raise InputError(
            f"the data sets used without --data are scenes drawn for the embedded models,"
            f" and {config.model} is none of {', '.join(MODELS)}; give --data, such as voc:FOLDER "
            "or classes:FOLDER, or --data demo for the scenes all the same."
        )
    return config


COMMAND: Final = Command(
    "evaluate",
    "measure which map is right: methods by metrics, with intervals",
    "captum-clip evaluate --model demo/vit -o evaluation",
    options=(
        replace(MODEL, default=DEFAULT_MODEL, otherwise=""),
        Option(
            "--data",
            "masks:FOLDER, imagenet-segmentation:FILE, imagenet-s:FOLDER, voc:FOLDER, "
            "open-images:FOLDER, classes:FOLDER, mosaics:FOLDER, fixations:FOLDER, demo-singles, "
            "demo-shortcut, demo-shortcut-object, demo-shortcut-other, "
            "demo, demo-objects, demo-mosaics",
            otherwise="the last three for embedded models",
            metavar="DATA",
            many=True,
        ),
        replace(
            METHODS,
            help="with options as in last-grad:heads=averaged",
            otherwise="all that fit the tower, Captum's for reference, and baselines",
        ),
        Option(
            "--maps",
            "maps made elsewhere, IMAGE_STEM.npz with maps (K, h, w) and names (K,)",
            metavar="FOLDER",
            many=True,
        ),
        Option(
            "--task",
            "localization, points, signs, effect, words, grid, perturbation, faithfulness, fixlip, "
            "sanity, fixation",
            otherwise="all that the data support",
            metavar="NAME",
            many=True,
        ),
        Option(
            "--reference",
            "the method that all others are compared with",
            otherwise="the tower's own method",
            metavar="NAME",
        ),
        Option(
            "--against",
            "explain regions by their text, or by another picture",
            default="text",
            choices=("text", "image"),
        ),
        Option("--images", "images of each data set at most", default=500),
        Option(
            "--few", "images for slow measures: sensitivity, sanity, ROAD, Captum's own", default=64
        ),
        SEED,
        Option("--draws", "random masks per image for faithfulness and infidelity", default=32),
        replace(BATCH_SIZE, default=32),
        Option(
            "--chunk-size", "images per unit of work; a stop costs at most one unit", default=32
        ),
        Option("--resamples", "bootstrap resamples", default=2000),
        Option(
            "--fill",
            "what removed pixels become",
            otherwise="mean and road",
            choices=("mean", "black", "blur", "road"),
            many=True,
        ),
        Option(
            "--template", 'text of a class, as "a photo of a {}" (class folders)', metavar="TEXT"
        ),
        Option(
            "--void",
            "pixels that Pascal VOC marks as void",
            otherwise="out",
            choices=("out", "background"),
        ),
        Option("--text", "the text that fixations are compared with", metavar="TEXT"),
        replace(WORKERS, help="processes of Ray", default=1),
        *RUN,
    ),
    run=_run,
)
