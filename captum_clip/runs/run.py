"""The order of a run: tidy up, keep what is whole, compute the rest on an engine."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from .engine import Advance, Engine, Worker
from .model_loader import ModelLoader
from .on_ray import run_on_ray
from .storage import Storage
from .units import Arrays, U, unfinished

Progress = Callable[[int, int], None]
"""Told how many images were done, and how many there are."""

TEMPORARY: Final = re.compile(r"(^|/)\.[^/]+\.(part|tries)$")
"""Names of files that a run which was killed leaves behind."""


def compute_missing(
    make_worker: Callable[[ModelLoader], Worker[U]],
    units: Sequence[U],
    output: Storage,
    engine: Engine,
    *,
    parse: Callable[[Arrays, U], object],
    before: Mapping[str, bytes],
    result: str,
    models: ModelLoader,
    progress: Progress | None = None,
) -> None:
    """Compute every unit that has no whole file; afterwards each of them has one.

    The folder is locked by this run, and `parse` reads a unit's arrays as for
    :func:`captum_clip.runs.units.read_unit`.

    `make_worker` is called once in each process with what loads models, or has them already; it
    can be sent to another machine, as ``functools.partial(StudyWorker, plan)`` can.

    Where anything is missing, the file `result`, which says that all is done, goes away, and the
    files `before` are written, in this order; the manifest comes first, since a folder without one
    is taken for somebody else's. `progress` is told at once what an earlier run had done.

    Raises:
        CaptumClipError: a model that cannot be loaded, a disk that refuses, a worker that died.
    """
    tidy_up(output)
    missing = unfinished(output, units, parse)
    advance = _counter(progress, units, missing)
    if not missing:
        return
    output.remove(result)
    for name, content in before.items():
        output.write(name, content)
    if engine.name == "ray":
        run_on_ray(make_worker, missing, output, engine, models, advance)
        tidy_up(output)  # a worker that was killed leaves files too, although the run goes on
    else:
        make_worker(models).compute(missing, output.write, advance)


def tidy_up(output: Storage) -> None:
    """Remove what a run that was killed left half-written."""
    for name, _ in output.files():
        if TEMPORARY.search(name):
            output.remove(name)


def _counter(progress: Progress | None, units: Sequence[U], missing: Sequence[U]) -> Advance:
    """Counts up from what was done before."""
    total = sum(unit.size for unit in units)
    done = total - sum(unit.size for unit in missing)

    def advance(images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress(done, total)

    advance(0)
    return advance
