"""A bar that says what is being done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def steps(total: int) -> Iterator[Callable[[str], None]]:
    """A bar of `total` steps on stderr; calling what it gives names the step that begins."""
    from tqdm import tqdm

    form = "{desc:<42} {bar} {n_fmt}/{total_fmt}"
    with tqdm(total=total, bar_format=form, leave=False, mininterval=0) as bar:
        begun = False

        def begin(what: str) -> None:
            nonlocal begun
            if begun:
                bar.update()
            begun = True
            bar.set_description_str(what)

        yield begin
        bar.update()


@contextmanager
def images_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr with the rate and the time left, from the first call on.

    Args:
        what: is being done.
    """
    from tqdm import tqdm

    bar: Any = None

    def progress(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(desc=what, unit="image", total=total, initial=done, leave=False)
        bar.update(done - bar.n)

    try:
        yield progress
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise
    finally:
        if bar is not None:
            bar.close()
