"""``captum-clip rank``: the images of a folder that fit a text or an emotion best."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError

NAME = "rank"
HELP = "find the images of a folder that fit a text or an emotion best"
EXAMPLE = 'captum-clip rank photos "a horse in the snow" --top 20 -o found'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="of images, with the folders in it"
    )
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="what to look for")
    parser.set_defaults(late="texts")
    parser.add_argument(
        "--emotions", type=Path, metavar="FILE", help="as in 'captum-clip explain', with --emotion"
    )
    parser.add_argument("--emotion", metavar="NAME", help="what to look for, instead of a TEXT")
    parser.add_argument(
        "--model", default="ViT-B/32", help="as in 'captum-clip explain' (default: %(default)s)"
    )
    parser.add_argument("--method", help="as in 'captum-clip explain'")
    parser.add_argument(
        "--top", type=int, default=12, metavar="N", help="how many to find (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that read the images")
    parser.add_argument("--device", help="such as cpu or cuda (default: CUDA if there is one)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="a folder for ranking.csv and ranking.png",
    )


def run(arguments: argparse.Namespace) -> None:
    """Find the images and say where the list and the picture are.

    Raises:
        CaptumClipError: an argument that cannot be worked with, or no image that can be read.
    """
    from ..emotions import EmotionProbe
    from ..models import load_clip
    from ..studies import rank
    from ..studies.folders import make_folder
    from ..targets import emotion
    from .skipped import say_skipped

    _check_wanted(arguments)
    if not arguments.folder.expanduser().is_dir():
        raise InputError(f"there is no folder {arguments.folder}.")
    probe = None if arguments.emotions is None else EmotionProbe.load(arguments.emotions)
    output = make_folder(arguments.output)
    clip = load_clip(arguments.model, device=arguments.device)
    found = rank(
        clip,
        arguments.folder,
        arguments.texts[0] if probe is None else emotion(clip, probe, arguments.emotion),
        top=arguments.top,
        method=arguments.method,
        workers=arguments.workers,
        progress=True,
    )
    table, picture = found.save(output)
    say_skipped(found.skipped)
    print(f"{found.target!r}, best of {found.ranked:,} images ({found.model}, {found.method}):")
    for place, (file, score) in enumerate(zip(found.files, found.scores, strict=True), 1):
        print(f"{place:4d}  {score:6.3f}  {file}")
    print(table)
    print(picture)


def _check_wanted(arguments: argparse.Namespace) -> None:
    """Exactly one thing to look for."""
    if (arguments.emotions is None) != (arguments.emotion is None):
        raise InputError("--emotions FILE and --emotion NAME go together.")
    wanted = len(arguments.texts) + (arguments.emotion is not None)
    if wanted == 0:
        raise InputError("the following arguments are required: TEXT, or --emotions and --emotion.")
    if wanted > 1:
        raise InputError(f"expected one TEXT or one --emotion to look for, got {wanted}.")
