"""``captum-clip study``: statistics of the maps of a whole folder of images."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from .command import (
    BATCH_SIZE,
    DEFAULT_MODEL,
    DEVICE,
    METHODS,
    MODELS,
    PROBES,
    RUN,
    SEED,
    TEXTS,
    WORKERS,
    Command,
    Option,
)
from .inputs import count_gpus, load_probe, model_names
from .progress import images_bar, inside

if TYPE_CHECKING:
    from ..studies import StudyConfig

_SETTINGS: Final = (
    BATCH_SIZE,
    Option("--limit", "study a sample of N images", type=int),
    replace(SEED, help="seed of the sample"),
    Option("--value-entropy", "measure the entropy of values as well (slow)", default=False),
    replace(
        WORKERS,
        default=None,
        type=int,
        help="processes that decode images (local, default 2) or that compute (ray, default 1)",
    ),
    *RUN,
)
_TOWERS: Final = {"statistics": (DEFAULT_MODEL,), "emotions": (DEFAULT_MODEL, "RN101")}
_LISTS: Final = {"model": "models", "method": "methods", "texts": "texts", "emotions": "emotions"}


def _run(arguments: Namespace) -> None:
    """Run the study, or go on with it, and say where the results are."""
    from ..runs import storage_of
    from ..studies import run_study
    from ..studies.file_list import list_images

    images, output = storage_of(arguments.images), storage_of(arguments.output)
    if images.is_local:  # elsewhere it takes long
        list_images(images, output)
    config = _config(arguments)
    with images_bar(arguments, "study") as progress:
        result = run_study(config, progress=progress)
    print(f"statistics  {inside(arguments.output, 'statistics.csv')}")
    print(f"mean maps   {inside(arguments.output, 'mean_maps.png')}")
    if result.skipped:
        print(
            f"{len(result.skipped)} of {result.images} images "
            f"{'was' if len(result.skipped) == 1 else 'were'} skipped; the reasons are in "
            f"{inside(arguments.output, 'manifest.json')}"
        )


def _config(arguments: Namespace) -> StudyConfig:
    from .. import studies

    make = {
        "statistics": studies.statistics_study,
        "corner-bias": studies.corner_bias_study,
        "emotions": studies.emotions_study,
    }[arguments.command]
    settings: dict[str, Any] = {
        name: tuple(values)
        for option, name in _LISTS.items()
        if (values := getattr(arguments, option, None))
    }
    given = [option.dest for option in _SETTINGS if option is not DEVICE]
    settings |= {name: getattr(arguments, name) for name in given}
    settings["gpus"] = count_gpus(arguments)
    probes = [load_probe(file) for file in settings.get("emotions", ())]
    if probes and "models" not in settings:
        settings["models"] = model_names(None, probes, _TOWERS[arguments.command])
    return make(arguments.images, settings.pop("output"), **settings)


def _study(name: str, help: str, example: str, *targets: Option, **defaults: str) -> Command:
    """A study; `models` and `methods` say what its defaults are."""
    return Command(
        name,
        help,
        f"captum-clip study {name} {example}",
        options=(
            Option("images", "a folder of images, searched recursively", metavar="FOLDER"),
            replace(MODELS, otherwise=defaults.get("models", MODELS.otherwise)),
            replace(METHODS, otherwise=defaults.get("methods", METHODS.otherwise)),
            *targets,
            *_SETTINGS,
        ),
        run=_run,
        note="Rerun after an interruption, it resumes.",
    )


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
            *(
                replace(option, otherwise='"this person is happy", "this person is sad"')
                for option in TEXTS
            ),
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
