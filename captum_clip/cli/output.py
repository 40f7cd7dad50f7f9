"""Progress bars and messages of a command, and the figures that it draws of a folder."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError


def shows_bars(quiet: bool) -> bool:
    """Whether somebody looks at a bar."""
    return not quiet and sys.stderr.isatty()


@contextmanager
def steps(total: int, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show a bar of `total` steps on stderr; the function given starts the step that it names."""
    from tqdm import tqdm

    look: dict[str, Any] = {"bar_format": "{desc:<42} {bar} {n_fmt}/{total_fmt}", "leave": False}
    with tqdm(total=total, disable=not shows_bars(quiet), mininterval=0, **look) as bar:

        def begin(step: str) -> None:
            bar.update()
            bar.set_description_str(step)

        yield begin


@contextmanager
def images_bar(task: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr with the rate and the time left."""
    from tqdm import tqdm

    with tqdm(disable=not shows_bars(quiet), desc=task, unit="image", leave=False) as bar:

        def progress(done: int, total: int) -> None:
            if bar.total is None:  # what an earlier run had done takes no part in the rate
                bar.total, bar.initial, bar.n = total, done, done
            bar.update(done - bar.n)

        try:
            yield progress
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            raise


def inside(folder: str, name: str) -> str:
    """A file in a folder or under a URL.

    >>> inside("out", "results.md"), inside("s3://bucket/out/", "results.md")
    ('out/results.md', 's3://bucket/out/results.md')
    """
    return f"{folder.rstrip('/')}/{name}" if "://" in folder else str(Path(folder, name))


def report_skipped(skipped: Mapping[Path, str]) -> None:
    """Print how many files could not be read, and why the first one; nothing if all could."""
    if skipped:
        path, reason = next(iter(skipped.items()))
        files = "1 file" if len(skipped) == 1 else f"{len(skipped):,} files"
        print(" ".join(f"{files} left out, {path}: {reason}".split()), file=sys.stderr)


def draw_folder(
    folder: Path,
    output: Path,
    names: list[str],
    draw: Callable[[Path, Path], object],
    *,
    quiet: bool,
) -> None:
    """Draw images that have no figure yet, by name, and print where the figures are."""
    skipped: dict[Path, str] = {}
    # with the ending of the image, since a folder may hold a.jpg and a.png
    figures = {folder / name: output / f"{name}.png" for name in names}
    missing = [image for image, figure in figures.items() if not figure.exists()]
    existed = len(names) - len(missing)
    with images_bar("figures", quiet=quiet) as progress:
        progress(existed, len(names))
        for done, image in enumerate(missing, existed + 1):
            figures[image].parent.mkdir(parents=True, exist_ok=True)
            try:
                draw(image, figures[image])
            except InputError as error:
                skipped[image] = str(error).removeprefix("preprocess: ")
            progress(done, len(names))
    if len(skipped) == len(names):
        image, reason = next(iter(skipped.items()))
        raise InputError(f"none of the {len(names)} images can be drawn; {image}: {reason}")
    report_skipped(skipped)
    there = f" ({existed:,} existed)" if existed else ""
    print(f"{len(names) - len(skipped):,} figures in {output}{there}")
