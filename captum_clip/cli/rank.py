"""``captum-clip rank``: the images of a folder that fit a text or an emotion best."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Final

from ..errors import InputError
from .command import EMOTIONS, LOADING, METHOD, MODEL, RESULTS, TEXTS, WORKERS, Command, Option
from .inputs import check_emotions, load_model, read_folder, read_probe
from .output import say_skipped, shows_bars


def _run(arguments: Namespace) -> None:
    """Find the images and say where the list and the picture are."""
    from ..checks import check_integer
    from ..evaluation import rank
    from ..files import make_folder
    from ..targets import emotion

    _check_target(arguments)
    check_integer("rank", "--top", arguments.top)
    check_integer("rank", "--workers", arguments.workers, least=0)
    check_emotions(arguments.emotion and [arguments.emotion])
    folder = read_folder(arguments.folder)
    probe, model = read_probe(arguments)
    output = make_folder(arguments.output)
    clip = load_model(arguments, model)
    ranking = rank(
        clip,
        folder,
        arguments.texts[0] if probe is None else emotion(clip, probe, arguments.emotion),
        top=arguments.top,
        method=arguments.method,
        cache=output / "features.npz",
        workers=arguments.workers,
        progress=shows_bars(arguments),
    )
    table, picture = ranking.save(output)
    say_skipped(ranking.skipped)
    source = f"({ranking.model}, {ranking.method})"
    print(f"{ranking.target!r}, best of {ranking.ranked:,} images {source}:")
    for number, (file, score) in enumerate(zip(ranking.files, ranking.scores, strict=True), 1):
        print(f"{number:4d}  {score:6.3f}  {file}")
    print(table)
    print(picture)


def _check_target(arguments: Namespace) -> None:
    """Exactly one thing to look for."""
    if (arguments.emotions is None) != (arguments.emotion is None):
        raise InputError("--emotions FILE and --emotion NAME go together.")
    count = len(arguments.texts) + (arguments.emotion is not None)
    if count == 0:
        raise InputError("the following arguments are required: TEXT, or --emotions and --emotion.")
    if count > 1:
        raise InputError(f"expected one TEXT or one --emotion to look for, got {count}.")


COMMAND: Final = Command(
    "rank",
    "find the images of a folder that fit a text or an emotion best",
    'captum-clip rank photos "a horse in the snow" --top 20 -o found',
    Option("folder FOLDER", "a folder of images, searched recursively", type=Path),
    *TEXTS,
    EMOTIONS,
    Option("--emotion NAME", "what to look for, instead of a TEXT"),
    MODEL,
    METHOD,
    Option("--top N", "how many to find", default=12),
    WORKERS,
    *LOADING,
    replace(RESULTS, help="a folder for ranking.csv and ranking.png"),
    run=_run,
)
