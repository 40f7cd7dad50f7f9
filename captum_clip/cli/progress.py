"""A bar that says what is being done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
