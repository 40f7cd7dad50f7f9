"""What a command says while it works, and the pictures that it makes of a folder."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    arguments: Namespace, folder: Path, output: Path, draw: Callable[[Path], Figure]
) -> None:
    """Draw each image of a folder that has no figure yet, and print where the figures are."""
    from ..evaluation.image_batches import list_images
    from ..evaluation.storage import storage_of
    from ..visualization import save_figure

    names = list_images(storage_of(folder), storage_of(output))
    # with the ending of the image, since a folder may hold a.jpg and a.png
    figures = {folder / name: output / f"{name}.png" for name in names}
    missing = [image for image, figure in figures.items() if not figure.exists()]
    skipped: dict[Path, str] = {}
    with images_bar(arguments, arguments.command) as progress:
        for done, image in enumerate(missing, len(figures) - len(missing)):
            progress(done, len(figures))
            try:
                figure = draw(image)
            except InputError as error:
                skipped[image] = str(error).removeprefix("preprocess: ")
            else:
                figures[image].parent.mkdir(parents=True, exist_ok=True)
                save_figure(figure, figures[image])
    if len(skipped) == len(figures):
        image, reason = next(iter(skipped.items()))
        raise InputError(f"none of the {len(figures)} images can be drawn; {image}: {reason}")
    say_skipped(skipped)
    print(f"{len(figures) - len(skipped):,} figures in {output}")
