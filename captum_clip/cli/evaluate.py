"""``captum-clip evaluate``: methods and metrics over data sets, in one table with intervals."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import Final

from ..errors import InputError
from .command import DEFAULT_MODEL, METHODS, MODEL, RUN, Command, Option
from .inputs import config_fields
from .output import images_bar, inside


def _run(arguments: Namespace) -> None:
    """Measure, or go on measuring, and say where the results are."""
    from ..demo import MODELS
    from ..evaluation import EvaluationConfig, evaluate

    fields = config_fields(arguments, method="methods", task="tasks", fill="fills")
    config = EvaluationConfig(**fields)
    if not config.data and config.model not in MODELS:
        raise InputError(
            f"the data sets used without --data are scenes drawn for the embedded models,"
            f" and {config.model} is none of {', '.join(MODELS)}; give --data, such as voc:FOLDER "
            "or classes:FOLDER, or --data demo for the scenes all the same."
        )
    with images_bar(arguments, "evaluate") as progress:
        evaluation = evaluate(config, progress=progress)
    output = arguments.output
    print(f"report   {inside(output, 'report.html')}")
    print(f"tables   {inside(output, 'results.md')}")
    print(f"figures  {inside(output, 'results.csv')}")
    for name in evaluation.curves:
        print(f"curves   {inside(output, name)}")
    for data, entries in evaluation.skipped.items():
        if entries:
            print(
                f"{data}: {len(entries)} entries were skipped; the reasons are in "
                f"{inside(output, 'manifest.json')}"
            )


COMMAND: Final = Command(
    "evaluate",
    "measure which map is right: methods by metrics, with intervals",
    "captum-clip evaluate --model demo/vit -o evaluation",
    replace(MODEL, default=DEFAULT_MODEL, otherwise=""),
    Option(
        "--data DATA...",
        "masks:FOLDER, imagenet-segmentation:FILE, imagenet-s:FOLDER, voc:FOLDER, "
        "classes:FOLDER, mosaics:FOLDER, fixations:FOLDER, demo-singles, "
        "demo, demo-objects, demo-mosaics",
        otherwise="the last three for embedded models",
    ),
    replace(
        METHODS,
        help="with options as in last-grad:heads=averaged",
        otherwise="all that fit the tower, Captum's for reference, and baselines",
    ),
    Option(
        "--maps FOLDER...", "maps made elsewhere, IMAGE_STEM.npz with maps (K, h, w) and names (K,)"
    ),
    Option(
        "--task NAME...",
        "localization, signs, effect, words, grid, perturbation, faithfulness, fixlip, "
        "sanity, fixation",
        otherwise="all that the data support",
    ),
    Option(
        "--reference NAME",
        "the method that all others are compared with",
        otherwise="Mamooler's",
    ),
    Option(
        "--against",
        "explain regions by their text, or by another picture",
        choices=("text", "image"),
    ),
    Option("--images N", "images of each data set at most", default=500),
    Option(
        "--slow-images N",
        "images for slow measures: sensitivity, sanity, ROAD, Captum's own",
        default=64,
    ),
    Option("--seed S", "seed of every random choice", default=0),
    Option("--draws N", "random masks per image for faithfulness and infidelity", default=32),
    Option("--batch-size N", "images per forward pass", default=32),
    Option("--chunk-size N", "images per unit of work; a stop costs at most one unit", default=32),
    Option("--resamples N", "bootstrap resamples", default=2000),
    Option(
        "--fill ...",
        "what removed pixels become",
        otherwise="mean and road",
        choices=("mean", "black", "blur", "road"),
    ),
    Option("--template TEXT", 'text of a class, as "a photo of a {}" (class folders)'),
    Option(
        "--void",
        "pixels that Pascal VOC marks as void",
        otherwise="out",
        choices=("out", "background"),
    ),
    Option("--text TEXT", "the text that fixations are compared with"),
    Option("--workers N", "processes of Ray", default=1),
    *RUN,
    run=_run,
)
