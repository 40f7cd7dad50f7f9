"""The price of a map beside one plain forward pass: ``python -m tests.benchmarks``.

True-size towers with random weights, in turn with the library's own forward on the same batch and
threads; medians over interleaved rounds. Nothing else may run beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from captum_clip.checks import check_destination
from captum_clip.errors import InputError

from .files import save
from .jobs import PLAIN, package_jobs
from .memory import peak
from .peers import notes, peer_jobs
from .tables import Row, environment, markdown
from .timing import Run, medians, seconds
from .towers import LARGE, TOWERS, Tower, built

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}


def parsed() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--memory",
        action="store_true",
        help=f"memory alone, at batch 1 and --batch, of {', '.join(LARGE)} as well",
    )
    parser.add_argument("--batch", type=int, default=16, help="images at once")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--targets", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="TOWER", help="towers whose name holds this")
    parser.add_argument("--method", nargs="+", metavar="CLASS", help="methods of this package")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to write a CSV")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    arguments = parser.parse_args()
    arguments.dtype = DTYPES[arguments.dtype]
    check_files(parser, arguments)
    return arguments


def check_files(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Say before anything is measured what could not be written."""
    try:
        if arguments.output:
            arguments.output.mkdir(parents=True, exist_ok=True)
            check_destination(arguments.output / "rows.csv", (".csv",))
    except (OSError, InputError) as error:
        parser.error(str(error))


def jobs_of(tower: Tower, batch: int, arguments: argparse.Namespace) -> dict[str, Run]:
    """Everything that is measured on one tower, the plain forward first."""
    images = tower.images(batch, arguments.seed)
    jobs = package_jobs(tower, images, arguments.targets, arguments.seed)
    if arguments.method:
        wanted = (PLAIN, *(f"{method}," for method in arguments.method))
        jobs = {name: run for name, run in jobs.items() if name.startswith(wanted)}
    if arguments.peers:
        jobs |= peer_jobs(tower, images, arguments.targets, arguments.seed)
    return jobs


def timed(tower: Tower, arguments: argparse.Namespace) -> Iterator[Row]:
    """Median seconds of every job."""
    jobs = jobs_of(tower, arguments.batch, arguments)
    found = medians(jobs, arguments.repeats, lambda run: seconds(run, arguments.device))
    for job, value in found.items():
        share = value / found[PLAIN]
        yield Row(tower.name, job, arguments.batch, seconds=value, forwards=share)


def weighed(tower: Tower, arguments: argparse.Namespace) -> Iterator[Row]:
    """Peak memory of every job at batch 1 and at the batch asked for."""
    for batch in sorted({1, arguments.batch}):
        jobs = jobs_of(tower, batch, arguments)
        found = {job: peak(run, arguments.device) for job, run in jobs.items()}
        for job, value in found.items():
            share = value / found[PLAIN]
            yield Row(tower.name, job, batch, peak=value, peak_forwards=share)


def measure_towers(arguments: argparse.Namespace) -> None:
    """Print one table a tower."""
    makers = {**TOWERS, **LARGE} if arguments.memory else TOWERS
    chosen = [make for name, make in makers.items() if (arguments.only or "") in name]
    if not chosen:
        raise SystemExit(f"--only {arguments.only}: the towers are {', '.join(makers)}.")
    rows = []
    for make in chosen:
        tower = built(make, arguments.seed, arguments.device, arguments.dtype)
        found = [] if arguments.memory else list(timed(tower, arguments))
        found += weighed(tower, arguments)
        print(f"\n{markdown(found)}", flush=True)
        for note in notes(tower) if arguments.peers else ():
            print(f"\n{note}", flush=True)
        rows += found
    if arguments.output:
        settings = environment(arguments.device, arguments.dtype)
        save(arguments.output / "benchmarks.csv", rows, settings)


def main() -> None:
    """Say what the figures depend on, and measure."""
    arguments = parsed()
    settings = environment(arguments.device, arguments.dtype)
    said = ", ".join(f"{name} {value}" for name, value in settings.items())
    print(f"{said}, batch {arguments.batch}", flush=True)
    measure_towers(arguments)


if __name__ == "__main__":
    main()
