"""``captum-clip explain``: one image, one or several texts or emotions, one picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .progress import steps

if TYPE_CHECKING:
    from ..emotions import EmotionProbe
    from ..models import ClipAdapter
    from ..targets import Target

NAME = "explain"
HELP = "draw where a model looks for each text"
EXAMPLE = 'captum-clip explain photo.jpg "a horse" "a dog" --model ViT-B/16 -o horse.png'

_METHOD = (
    "last-grad (default for ViTs), all-grad, attention-grad-cam, rollout, or grad-cam (default "
    "for ResNets); options after a colon, as in last-grad:heads=averaged"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="what to look for")
    parser.set_defaults(late="texts")
    parser.add_argument(
        "--model",
        default="ViT-B/32",
        help="a name of 'captum-clip models', a folder, or a model of the Hugging Face hub "
        "(default: %(default)s)",
    )
    parser.add_argument("--method", help=_METHOD)
    parser.add_argument(
        "--words", action="store_true", help="take one TEXT apart: a map for each of its words"
    )
    parser.add_argument(
        "--emotions",
        type=Path,
        metavar="FILE",
        help="a probe that 'captum-clip emotions fit' wrote, or published encodings (.json): a map "
        "for each of its eight emotions, after those of the TEXTs, if any",
    )
    parser.add_argument(
        "--centre",
        action="store_true",
        help="subtract the mean of all nine rows from those of the emotions",
    )
    sign = parser.add_mutually_exclusive_group()
    sign.add_argument(
        "--sign",
        choices=("positive", "negative", "both"),
        default="positive",
        help="what speaks for the text, against it, or both (default: %(default)s)",
    )
    sign.add_argument(
        "--negative",
        action="store_const",
        const="negative",
        dest="sign",
        help="the same as --sign negative",
    )
    parser.add_argument("--device", help="such as cpu or cuda (default: CUDA if there is one)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="a .png, .pdf or .svg picture, or .npz for the maps themselves "
        "(default: IMAGE-explained.png in the current folder)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Explain the image and say where the picture is.

    Raises:
        CaptumClipError: an argument that cannot be worked with.
    """
    from ..checks import check_destination
    from ..explanation import FORMATS, explain
    from ..models import load_clip

    image = Path(arguments.image).expanduser()
    if not image.is_file():
        raise InputError(f"there is no image file {arguments.image}")
    probe = _probe(arguments)
    output = arguments.output or Path(f"{image.stem}-explained.png")
    output = check_destination(output, FORMATS)
    if output.exists() and output.samefile(image):
        raise InputError(f"the picture would replace the image {image}; give another --output.")
    with steps(3) as begin:
        begin(f"loading {arguments.model}")
        clip = load_clip(arguments.model, device=arguments.device)
        begin("explaining")
        found = explain(
            image,
            _wanted(arguments, clip, probe),
            model=clip,
            method=arguments.method,
            sign=arguments.sign,
            words=arguments.words,
        )
        begin("drawing")
        found.save(output)
    what = "to each text"
    if found.words:
        what = "to the text, and to what each word adds"
    elif arguments.emotions is not None:
        what = "to each text and emotion" if arguments.texts else "to each emotion"
    print(f"cosine similarity {what} ({found.model}, {found.method}, {' and '.join(found.maps)}):")
    rows = zip(found.names, found.scores[0], found.norms, strict=True)
    for index, (name, score, norm) in enumerate(rows):
        length = f"   norm {norm:.2f}" if found.words and index > 0 else ""
        print(f"  {score:6.3f}  {name}{length}")
    print(output)


def _probe(arguments: argparse.Namespace) -> EmotionProbe | None:
    """The probe that is asked for, if any; what is asked for fits together."""
    if arguments.emotions is None:
        if arguments.centre:
            raise InputError("--centre goes with --emotions FILE.")
        if not arguments.texts:
            raise InputError("the following arguments are required: TEXT, or --emotions FILE.")
        return None
    if arguments.words:
        raise InputError("--words takes a TEXT apart; leave it out, or leave --emotions out.")
    from ..emotions import EmotionProbe

    return EmotionProbe.load(arguments.emotions)


def _wanted(
    arguments: argparse.Namespace, clip: ClipAdapter, probe: EmotionProbe | None
) -> list[str] | Target:
    """The texts, or texts and emotions as one target."""
    if probe is None:
        texts: list[str] = arguments.texts
        return texts
    from .. import targets

    parts = [targets.emotion(clip, probe, centre=arguments.centre)]
    if arguments.texts:
        parts.insert(0, targets.text(clip, arguments.texts))
    return targets.concatenate(parts)
