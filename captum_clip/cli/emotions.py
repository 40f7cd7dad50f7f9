"""``captum-clip emotions``: write a data set, fit a probe to one, check where its maps point."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .command import EMOTIONS, LOADING, METHOD, MODEL, OF_REPORT, OUTPUT, WORKERS, Command, Option
from .inputs import load_model, read_probe
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


def _write(arguments: Namespace) -> None:
    from ..demo.artemis import HELD_OUT
    from ..studies import write_demo_artemis

    folder = write_demo_artemis(
        arguments.output,
        paintings=arguments.paintings,
        seed=arguments.seed,
        progress=shows_bars(arguments),
    )
    print(f"paintings        {folder}")
    print(f"held-out faces   {folder / HELD_OUT}")


def _fit(arguments: Namespace) -> None:
    from ..checks import check_destination, check_integer
    from ..emotions.files import WEIGHTS
    from ..emotions.probe import check_options
    from ..studies import fit_emotions, score_emotions

    output = check_destination(arguments.output, (WEIGHTS,))
    settings = {name: getattr(arguments, name) for name in ("seed", "held_out", "strength")}
    check_options(**settings)
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
    print(f"{folder}: {data.report}")
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


def _check(arguments: Namespace) -> None:
    from ..studies import emotion_pointing, emotion_truth

    emotion_truth(arguments.folder)
    probe, model = read_probe(arguments)
    assert probe is not None  # it is required
    rows = emotion_pointing(
        load_model(arguments, model),
        probe,
        arguments.folder,
        method=arguments.method,
        progress=shows_bars(arguments),
    )
    head = ("", "kind", "images", "pointing", "energy", "chance", "no heatmap")
    print("{:<14}{:<8}{:>8}{:>10}{:>8}{:>8}{:>9}".format(*head))
    for row in rows:
        print(
            f"{row.emotion:<14}{row.kind:<8}{row.images:>8}{row.pointing:>10.2f}{row.energy:>8.2f}"
            f"{row.chance:>8.2f}{row.without_heat:>9}"
        )


_DEMO_DATA: Final = Command(
    "demo-data",
    "write a small data set in the format of ArtEmis, drawn from the demo's scenes",
    "captum-clip emotions demo-data -o art",
    replace(OUTPUT, usage="-o --output FOLDER", required=True),
    Option(
        "--paintings N",
        "paintings in FOLDER itself; FOLDER/held_out gets half as many",
        default=400,
    ),
    Option("--seed S", "seed of scenes and votes", default=0),
    run=_write,
)
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
_CHECK: Final = Command(
    "check",
    "measure where the maps of emotions point, on a data set written by demo-data",
    "captum-clip emotions check art/held_out --model demo/vit --emotions vit.safetensors",
    Option("folder FOLDER", "a folder written by demo-data, or its held_out", type=Path),
    MODEL,
    *LOADING,
    replace(EMOTIONS, required=True),
    replace(METHOD, otherwise=OF_REPORT),
    run=_check,
)
COMMAND: Final = Command(
    "emotions",
    "fit and check an emotion probe on a model's features",
    "captum-clip emotions fit FOLDER --model ViT-B/32 -o emotions.safetensors",
    commands=(_DEMO_DATA, _FIT, _CHECK),
)
