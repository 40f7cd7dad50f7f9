"""`run_study`: a config in, an output folder out, from which a stop at any moment takes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from ..errors import InputError
from . import listing, manifest, results
from .accumulator import Accumulator
from .config import StudyConfig
from .engine import Work
from .jobs import Job, Loader, threads
from .listing import Listing, list_images
from .local import run_local
from .on_ray import run_on_ray
from .opening import open_jobs
from .pictures import pictures
from .results import Summary
from .shards import Unit, read_shard, unfinished, units_of
from .storage import Storage, storage_of

Progress = Callable[[int, int], None]
"""Told how many images were done, and how many there are; an image counts once a subject."""

_TEMPORARY: Final = re.compile(r"(^|/)\.[^/]+\.(part|tries)$")


@dataclass(frozen=True)
class StudyResult:
    """What a study came to.

    Attributes:
        output: its folder or URL.
        images: number of image files that it looked at.
        skipped: file -> why it was left out, by one subject or by all.
    """

    output: str
    images: int
    skipped: dict[str, str]


def run_study(config: StudyConfig, *, progress: Progress | None = None) -> StudyResult:
    """Compute what is not there yet, then all statistics.

    Started again after a stop, it goes on with the shards that are there, and the folder ends up
    the same, to the byte. What the folder holds is told in docs/studies.md.

    Args:
        config: what to compute.
        progress: called now and then, first with what an earlier run had done.

    Returns:
        What it came to; ``statistics.csv`` in the output folder was written last.

    Raises:
        CaptumClipError: a model, text, method or folder that cannot be worked with; an output
            folder that holds another study, or in which one is at work; no image that can be
            read.

    Example:
        >>> from captum_clip.studies import StudyConfig, Subject, run_study
        >>> config = StudyConfig("photos", "out", (Subject("ViT-B/32"),), texts=("a horse",))
        >>> run_study(config)  # doctest: +SKIP
    """
    images, output = storage_of(config.images), storage_of(config.output)
    listed = list_images(images, output, limit=config.limit, seed=config.seed)
    with threads(config.threads or torch.get_num_threads()), output.alone():
        loader = Loader()
        jobs = open_jobs(config, loader)
        begun = manifest.begin(config, jobs, listed, output)
        units = units_of(
            [job.key for job in jobs],
            len(listed),
            batch_size=config.batch_size,
            batches_per_shard=config.batches_per_shard,
        )
        pending = _prepare(output, units, begun, listed)
        told = _told(progress, len(jobs) * len(listed), pending)
        if pending:
            work = Work(jobs, pending, listed.names, images, output, config.processes, config.gpus)
            if config.engine == "ray":
                run_on_ray(work, told)
            else:
                run_local(work, loader, told)
        return _summarise(jobs, units, begun, listed, output)


def _prepare(
    output: Storage, units: Sequence[Unit], begun: manifest.Manifest, listed: Listing
) -> list[Unit]:
    """Tidy the folder up after an earlier run; the units that it did not finish."""
    present = {name for name, _ in output.files()}
    for name in present:
        if _TEMPORARY.search(name):
            output.remove(name)
    pending = unfinished(output, units, present, read_shard)
    if pending:
        if results.STATISTICS in present:
            output.remove(results.STATISTICS)
        output.write(listing.NAME, listed.to_csv())
        output.write(manifest.NAME, begun.to_bytes())
    return pending


def _told(progress: Progress | None, total: int, pending: Sequence[Unit]) -> Callable[[int], None]:
    """Counts up from what was done before."""
    done = total - sum(len(unit.places) for unit in pending)

    def advance(images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress(done, total)

    advance(0)
    return advance


def _summarise(
    jobs: Sequence[Job],
    units: Sequence[Unit],
    begun: manifest.Manifest,
    listed: Listing,
    output: Storage,
) -> StudyResult:
    """One pass over all shards in order, then every file; the statistics come last."""
    summaries, reasons = [], []
    for number, job in enumerate(jobs):
        sums, skipped = _summed(job, [unit for unit in units if unit.job == number], output)
        summaries.append(Summary(job, sums, len(skipped)))
        reasons.append(skipped)
    told = _skipped(jobs, reasons, listed)
    counts = [{"images": s.sums.images, "skipped": s.skipped} for s in summaries]
    done = replace(begun, state=manifest.MAPS_DONE, counts=counts, skipped=told)
    output.write(manifest.NAME, done.to_bytes())
    if not any(summary.sums.images for summary in summaries):
        raise InputError(
            f"none of the {len(listed)} images can be read; the first: {told[0]['reason']} "
            f"All reasons are in {output.root}/{manifest.NAME}."
        )
    for summary in summaries:
        output.write(f"{results.MEAN_MAPS}/{summary.job.key}.npz", results.mean_maps_npz(summary))
    for name, content in pictures(summaries):
        output.write(name, content)
    if len(summaries) > 1:
        output.write(results.CORRELATIONS, results.correlations_csv(summaries))
    if jobs[0].centred:
        output.write(results.CENTRING, results.centring_csv(summaries))
    output.write(results.STATISTICS, results.statistics_csv(summaries))
    return StudyResult(output.root, len(listed), {one["file"]: one["reason"] for one in told})


def _summed(job: Job, units: Sequence[Unit], output: Storage) -> tuple[Accumulator, dict[int, str]]:
    """The sums over all shards of a job, in float64 and in order; and what was left out."""
    sums: Accumulator | None = None
    skipped: dict[int, str] = {}
    for unit in units:
        shard = read_shard(output, unit)
        part = Accumulator.of(shard, job.centred)
        sums = part if sums is None else sums.merge(part)
        skipped |= shard.skipped
    assert sums is not None
    return sums, skipped


def _skipped(
    jobs: Sequence[Job], reasons: Sequence[dict[int, str]], listed: Listing
) -> list[dict[str, Any]]:
    """Each file with its reason, and the jobs where it is not all of them."""
    found: dict[tuple[int, str], list[str]] = {}
    for job, skipped in zip(jobs, reasons, strict=True):
        for place, reason in skipped.items():
            found.setdefault((place, reason), []).append(job.key)
    return [
        {
            "file": listed.names[place],
            "reason": reason,
            **({} if len(keys) == len(jobs) else {"subjects": keys}),
        }
        for (place, reason), keys in sorted(found.items())
    ]
