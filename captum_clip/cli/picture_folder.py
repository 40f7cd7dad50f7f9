"""A picture for each image of a folder, for the commands that draw one of an image."""

from __future__ import annotations

import hashlib
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import InputError
from .inputs import read_folder
from .progress import images_bar, say_skipped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..models import ClipAdapter

_NO_SETTINGS: Final = (
    *("run", "command", "device", "output", "quiet"),
    *("image", "given", "scene", "model", "processor", "tokenizer", "emotions", "text"),
)
"""Arguments that change no picture, or that the caller tells in another way."""


def check_folder(arguments: Namespace, name: str) -> tuple[Path, Path]:
    """The folder of images, which holds one, and that of their pictures."""
    from ..explanation import FORMATS
    from ..runs import storage_of
    from ..studies.file_list import list_images

    folder = read_folder(name)
    ending = "explained" if arguments.command == "explain" else arguments.command
    output: Path = arguments.output or Path(f"{folder.resolve().name}-{ending}")
    if output.suffix.lower() in FORMATS or output.is_file():
        raise InputError(
            f"{name} is a folder, of which each image gets a picture; -o {output} must name a "
            "folder for them."
        )
    list_images(storage_of(folder), storage_of(output))
    return folder, output


def draw_pictures(
    arguments: Namespace,
    folder: Path,
    output: Path,
    draw: Callable[[Path], Figure],
    *,
    clips: Sequence[ClipAdapter],
    texts: Sequence[str],
    files: Sequence[str | Path],
) -> None:
    """Draw what is not drawn yet, and say where the pictures are.

    Arguments that change the pictures must be the same when a command goes on; `files`, such as
    probes, count by their content.
    """
    from ..studies.picture_folder import draw_folder

    settings = {
        "figure": arguments.command,
        "texts": list(texts),
        "files": [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files],
        **{n: v for n, v in vars(arguments).items() if n not in _NO_SETTINGS and v is not None},
    }
    with images_bar(arguments, arguments.command) as progress:
        drawn = draw_folder(
            folder, output, draw, settings=settings, models=clips, progress=progress
        )
    say_skipped(drawn.skipped)
    count = len(drawn.pictures)
    print(
        f"{count:,} {'picture' if count == 1 else 'pictures'} in {output}", *drawn.sheets, sep="\n"
    )
