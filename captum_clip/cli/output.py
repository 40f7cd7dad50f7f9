"""What a command says while it works, and the pictures that it makes of a folder."""

from __future__ import annotations

import hashlib
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..models import ClipAdapter

_NO_SETTINGS: Final = (
    *("run", "command", "device", "output", "quiet"),
    *("image", "given", "scene", "model", "processor", "tokenizer", "emotions", "text"),
)
"""Arguments that change no picture, or that the caller tells in another way."""


def shows_bars(arguments: Namespace) -> bool:
    """Whether there is somebody to look at a bar."""
    return not arguments.quiet and sys.stderr.isatty()


@contextmanager
def steps(arguments: Namespace, total: int) -> Iterator[Callable[[str], None]]:
    """A bar of `total` steps on stderr; calling what it gives names the step that begins."""
    from tqdm import tqdm

    form = "{desc:<42} {bar} {n_fmt}/{total_fmt}"
    look: dict[str, Any] = {"bar_format": form, "leave": False, "mininterval": 0}
    with tqdm(total=total, disable=not shows_bars(arguments), **look) as bar:
        ended = 0  # steps, before the first one begins

        def begin(step: str) -> None:
            nonlocal ended
            bar.update(ended)
            ended = 1
            bar.set_description_str(step)

        yield begin
        bar.update()


@contextmanager
def images_bar(arguments: Namespace, task: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr with the rate and the time left, from the first call on."""
    from tqdm import tqdm

    bar: Any = None
    look: dict[str, Any] = {"desc": task, "unit": "image", "leave": False}

    def progress(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, initial=done, disable=not shows_bars(arguments), **look)
        bar.update(done - bar.n)

    try:
        yield progress
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise
    finally:
        if bar is not None:
            bar.close()


def inside(folder: str, name: str) -> str:
    """A file in a folder or under a URL.

    >>> inside("out", "results.md"), inside("s3://bucket/out/", "results.md")
    ('out/results.md', 's3://bucket/out/results.md')
    """
    return f"{folder.rstrip('/')}/{name}" if "://" in folder else str(Path(folder, name))


def say_skipped(skipped: Mapping[Path, str]) -> None:
    """Say how many files could not be read, and why the first one; nothing where there is none."""
    if skipped:
        path, reason = next(iter(skipped.items()))
        files = "1 file" if len(skipped) == 1 else f"{len(skipped):,} files"
        print(" ".join(f"{files} left out, {path}: {reason}".split()), file=sys.stderr)


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
    pictures = "picture" if count == 1 else "pictures"
    print(f"{count:,} {pictures} in {output}", *drawn.sheets, sep="\n")
