"""``captum-clip emotions``: write a data set, fit a probe to one, check where its maps point."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..emotions import Artemis, ProbeScores

NAME = "emotions"
HELP = "teach a model's features the emotions of ArtEmis"
EXAMPLE = "captum-clip emotions fit FOLDER --model ViT-B/32 -o emotions.safetensors"

_DEMO_DATA = "write a small data set in the format of ArtEmis, drawn from the demo's scenes"
_FIT = "fit a linear probe from a model's image features to the votes of ArtEmis"
_CHECK = "measure where the maps of emotions point, on a data set of demo-data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The three commands below this one."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo_data = commands.add_parser("demo-data", help=_DEMO_DATA, description=_sentence(_DEMO_DATA))
    demo_data.set_defaults(action=_write)
    demo_data.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    demo_data.add_argument(
        "--paintings",
        type=int,
        default=400,
        help="in FOLDER itself; FOLDER/held_out gets half as many (default: %(default)s)",
    )
    _add_seed(demo_data, "of scenes and votes")
    _add_fit(commands.add_parser("fit", help=_FIT, description=_sentence(_FIT)))
    check = commands.add_parser("check", help=_CHECK, description=_sentence(_CHECK))
    check.set_defaults(action=_check)
    check.add_argument("folder", type=Path, metavar="FOLDER", help="of demo-data, or its held_out")
    _add_model(check)
    check.add_argument("--emotions", type=Path, required=True, metavar="FILE", help="from fit")
    check.add_argument("--method", help="as in 'captum-clip explain'")


def run(arguments: argparse.Namespace) -> None:
    """Run the chosen one.

    Raises:
        CaptumClipError: an argument that cannot be worked with.
    """
    arguments.action(arguments)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _add_fit(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(action=_fit)
    parser.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="with artemis_dataset_release_v0.csv and images/ART_STYLE/PAINTING.jpg",
    )
    _add_model(parser)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="if it is not in FOLDER")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="if they are not in FOLDER")
    parser.add_argument(
        "--test", type=Path, metavar="FOLDER", help="a second data set to score the probe on"
    )
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="of the paintings, for the scores (default: %(default)s)",
    )
    parser.add_argument(
        "--strength",
        type=float,
        default=1e-3,
        help="of the penalty on the weights (default: %(default)s)",
    )
    _add_seed(parser, "of the split into paintings to fit and to score")
    parser.add_argument("--workers", type=int, default=0, help="processes that read the images")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="a .safetensors file"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="as in 'captum-clip explain'")
    parser.add_argument("--device", help="such as cpu or cuda (default: CUDA if there is one)")


def _add_seed(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--seed", type=int, default=0, help=f"{what} (default: %(default)s)")


def _write(arguments: argparse.Namespace) -> None:
    from ..studies import write_demo_artemis
    from ..studies.demo_artemis import HELD_OUT

    folder = write_demo_artemis(
        arguments.output, paintings=arguments.paintings, seed=arguments.seed, progress=True
    )
    print(f"paintings        {folder}")
    print(f"held-out faces   {folder / HELD_OUT}")


def _fit(arguments: argparse.Namespace) -> None:
    from ..checks import check_destination
    from ..emotions.files import WEIGHTS, check_ending
    from ..models import load_clip
    from ..studies import fit_emotions, score_emotions
    from .skipped import say_skipped

    output = check_destination(arguments.output, (WEIGHTS,))
    check_ending(output)
    data = _read(arguments.folder, arguments.csv, arguments.images)
    print(f"{arguments.folder}: {data.report}")
    test = None
    if arguments.test is not None:
        test = _read(arguments.test, None, None)
        print(f"{arguments.test}: {test.report}")
    clip = load_clip(arguments.model, device=arguments.device)
    options = {"workers": arguments.workers, "progress": True}
    probe, skipped = fit_emotions(
        clip,
        data,
        seed=arguments.seed,
        held_out=arguments.held_out,
        strength=arguments.strength,
        **options,
    )
    scores = {} if probe.scores is None else {f"held out of {arguments.folder}": probe.scores}
    if test is not None:
        scores[str(arguments.test)], more = score_emotions(clip, probe, test, **options)
        skipped |= more
    probe.save(output)
    say_skipped(skipped)
    _print_scores(scores)
    print(output)


def _read(folder: Path, csv: Path | None, images: Path | None) -> Artemis:
    from ..emotions import find_artemis, read_artemis

    if csv is None or images is None:
        found = find_artemis(folder)
        csv, images = csv or found[0], images or found[1]
    return read_artemis(csv, images)


def _print_scores(scores: dict[str, ProbeScores]) -> None:
    """Accuracy, each beside what the most frequent answer gives."""
    if not scores:
        return
    print(f"\n{'':<24}{'paintings':>10}{'of nine':>10}{'majority':>10}", end="")
    print(f"{'of eight':>10}{'majority':>10}")
    for name, found in scores.items():
        print(name)
        for what, part in (("all", found.all), ("over half agree", found.agreed)):
            figures = (part.nine, part.majority_nine, part.eight, part.majority_eight)
            cells = "".join(f"{figure:>10.3f}" for figure in figures)
            print(f"  {what:<22}{part.paintings:>10}{cells}")
    print()


def _check(arguments: argparse.Namespace) -> None:
    from ..models import load_clip
    from ..studies import emotion_pointing

    clip = load_clip(arguments.model, device=arguments.device)
    found = emotion_pointing(
        clip, arguments.emotions, arguments.folder, method=arguments.method, progress=True
    )
    print(
        f"{'':<14}{'kind':<8}{'images':>8}{'pointing':>10}{'energy':>8}{'chance':>8}{'no heat':>9}"
    )
    for one in found:
        print(
            f"{one.emotion:<14}{one.kind:<8}{one.images:>8}{one.pointing:>10.2f}{one.energy:>8.2f}"
            f"{one.chance:>8.2f}{one.without_heat:>9}"
        )
