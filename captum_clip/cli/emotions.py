"""``captum-clip emotions``: fit a probe to a data set."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .command import LOADING, MODEL, OUTPUT, WORKERS, Command, Option
from .inputs import load_model
from .output import say_skipped, shows_bars

if TYPE_CHECKING:
    from ..emotions import Artemis, ProbeScores

_FIGURES: Final = (
    ("of nine", "nine"),
    ("majority", "majority_nine"),
    ("of eight", "eight"),
    ("majority", "majority_eight"),
)
"""Headings, and what is under them: an accuracy, then what the most frequent answer gives."""


def _fit(arguments: Namespace) -> None:
    from ..checks import check_destination, check_integer
    from ..emotions import check_fit
    from ..evaluation import fit_emotions, score_emotions

    output = check_destination(arguments.output, (".safetensors",))
    settings = {name: getattr(arguments, name) for name in ("seed", "held_out", "strength")}
    check_fit(**settings)
    check_integer("emotions fit", "--workers", arguments.workers, least=0)
    data = _read(arguments.folder, arguments.csv, arguments.images)
    test = None if arguments.test is None else _read(arguments.test)
    clip = load_model(arguments, arguments.model)
    options = {"workers": arguments.workers, "progress": shows_bars(arguments)}
    probe, skipped = fit_emotions(clip, data, **settings, **options)
    scores = {} if probe.scores is None else {f"held out of {arguments.folder}": probe.scores}
    if test is not None:
        scores[str(arguments.test)], more = score_emotions(clip, probe, test, **options)
        skipped |= more
    probe.save(output)
    say_skipped(skipped)
    if scores:
        _print_scores(scores)
    print(output)


def _read(folder: Path, csv: Path | None = None, images: Path | None = None) -> Artemis:
    """A data set of ArtEmis, of which is said what is in it."""
    from ..emotions import find_artemis, read_artemis

    if csv is None or images is None:
        default_csv, default_images = find_artemis(folder)
        csv, images = csv or default_csv, images or default_images
    data = read_artemis(csv, images)
    print(f"{folder}: {data}")
    return data


def _print_scores(scores: Mapping[str, ProbeScores]) -> None:
    headings = ("paintings", *(heading for heading, _ in _FIGURES))
    print(f"\n{'':<24}{''.join(f'{heading:>10}' for heading in headings)}")
    for data, score in scores.items():
        print(data)
        for name, part in (("all", score.all), ("over half agree", score.agreed)):
            cells = "".join(f"{getattr(part, field):>10.3f}" for _, field in _FIGURES)
            print(f"  {name:<22}{part.paintings:>10}{cells}")
    print()


_FIT: Final = Command(
    "fit",
    "fit a linear probe from a model's image features to the votes of ArtEmis",
    "captum-clip emotions fit art --model demo/vit -o vit.safetensors",
    Option(
        "folder FOLDER",
        "with artemis_dataset_release_v0.csv and images/ART_STYLE/PAINTING.jpg in it",
        type=Path,
    ),
    replace(MODEL, otherwise="", required=True),
    *LOADING,
    Option("--csv FILE", "the annotations, if they are not in FOLDER", type=Path),
    Option("--images FOLDER", "the images, if they are not in FOLDER", type=Path),
    Option("--test FOLDER", "a second data set to score the probe on", type=Path),
    Option("--held-out SHARE", "share of the paintings kept for the scores", default=0.2),
    Option("--strength", "strength of the penalty on the weights", default=1e-3),
    Option("--seed S", "seed of the split into paintings to fit and to score", default=0),
    WORKERS,
    replace(OUTPUT, help="a .safetensors file", required=True),
    run=_fit,
)
COMMAND: Final = Command(
    "emotions",
    "fit an emotion probe on a model's features",
    "captum-clip emotions fit FOLDER --model ViT-B/32 -o emotions.safetensors",
    commands=(_FIT,),
)
