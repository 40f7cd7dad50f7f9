"""``captum-clip study``: statistics of the maps of a whole folder of images."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import Any, Final

from .command import DEFAULT_MODEL, METHODS, MODELS, PROBES, RUN, TEXTS, Command, Option
from .inputs import config_fields, read_probes
from .output import images_bar, inside

_TOWERS: Final = {"statistics": (DEFAULT_MODEL,), "emotions": (DEFAULT_MODEL, "RN101")}


def _run(arguments: Namespace) -> None:
    """Run the study, or go on with it, and say where the results are."""
    from .. import evaluation
    from ..evaluation.image_batches import list_images
    from ..evaluation.storage import storage_of

    images, output = storage_of(arguments.images), storage_of(arguments.output)
    if images.is_local:  # elsewhere it takes long
        list_images(images, output)
    fields = config_fields(arguments, model="models", method="methods")
    if "emotions" in fields:
        _, fitted = read_probes(fields["emotions"], _TOWERS[arguments.command])
        fields.setdefault("models", tuple(fitted))
    presets: dict[str, Any] = {
        "statistics": evaluation.StudyConfig,
        "corner-bias": evaluation.corner_bias_study,
        "emotions": evaluation.emotions_study,
    }
    config = presets[arguments.command](**fields)
    with images_bar(arguments, "study") as progress:
        result = evaluation.run_study(config, progress=progress)
    print(f"statistics  {inside(arguments.output, 'statistics.csv')}")
    print(f"mean maps   {inside(arguments.output, 'mean_maps.png')}")
    if result.skipped:
        print(
            f"{len(result.skipped)} of {result.images} images "
            f"{'was' if len(result.skipped) == 1 else 'were'} skipped; the reasons are in "
            f"{inside(arguments.output, 'manifest.json')}"
        )


def _study(name: str, help: str, example: str, *targets: Option, **defaults: str) -> Command:
    """A study; `models` and `methods` say what its defaults are."""
    return Command(
        name,
        help,
        f"captum-clip study {name} {example}",
        Option("images FOLDER", "a folder of images, searched recursively"),
        replace(MODELS, otherwise=defaults.get("models", MODELS.otherwise)),
        replace(METHODS, otherwise=defaults.get("methods", METHODS.otherwise)),
        *targets,
        Option("--batch-size N", "images per forward pass", default=16),
        Option("--limit N", "study a sample of N images", type=int),
        Option("--seed S", "seed of the sample", default=0),
        Option("--value-entropy", "measure the entropy of values as well (slow)", default=False),
        Option(
            "--workers N",
            "processes that decode images (local, default 2) or that compute (ray, default 1)",
            type=int,
        ),
        *RUN,
        run=_run,
        note="Rerun after an interruption, it resumes.",
    )


_CORNER_TEXTS: Final = '"this person is happy", "this person is sad"'

COMMAND: Final = Command(
    "study",
    "average maps over a folder of images, and measure them",
    'captum-clip study statistics photos --text "a horse" --text "a dog" -o horses',
    commands=(
        _study(
            "statistics",
            "mean maps, their spread, entropies and biases, for any texts and emotions",
            'photos --text "a horse" --text "a dog" -o horses',
            *TEXTS,
            PROBES,
        ),
        _study(
            "corner-bias",
            "do methods favour the corners? three methods, a happy and a sad text",
            "photos -o corners",
            *(replace(option, otherwise=_CORNER_TEXTS) for option in TEXTS),
            methods="all-grad, attention-grad-cam and last-grad for ViTs, grad-cam for ResNets",
        ),
        _study(
            "emotions",
            "eight emotions, plain and centred, a ViT beside a ResNet",
            "photos --emotions vit.safetensors --emotions resnet.safetensors -o emotions",
            replace(PROBES, required=True),
            models="those that --emotions were fitted on, or ViT-B/32 and RN101",
        ),
    ),
    metavar="STUDY",
)
