"""`run_study`: a config in, an output folder out, from which a stop at any moment takes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import groupby, islice
from typing import Any

from .. import runs
from ..errors import InputError
from ..runs import manifest as manifests
from . import file_list, results
from .accumulator import Accumulator
from .batch_explainer import BatchExplainer, Job
from .config import StudyConfig
from .file_list import list_images
from .image_loader import ImageLoader, load_batches
from .plan import Plan, plan_study
from .results import Summary
from .shards import Shard, join, parse_final, parse_shard, to_bytes


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


def run_study(config: StudyConfig, *, progress: runs.Progress | None = None) -> StudyResult:
    """Compute what is not there yet, then all statistics.

    Started again after a stop, it goes on with the shards that are there, and the folder ends up
    the same, to the byte. docs/studies.md says what the folder holds.

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
    images, output = runs.storage_of(config.images), runs.storage_of(config.output)
    files = list_images(images, output, limit=config.limit, seed=config.seed)
    engine = config.choose_engine()
    engine.check_device()
    with runs.threads(engine.threads), output.lock():
        models = runs.ModelLoader(config.processor, config.tokenizer)
        plan = plan_study(config, images, files, models)
        begun = plan.begin_manifest(output, engine)
        runs.compute_missing(
            partial(StudyWorker, plan),
            plan.shards,
            output,
            engine,
            parse=parse_final,
            before={manifests.NAME: manifests.to_bytes(begun), file_list.NAME: files.to_csv()},
            result=results.STATISTICS,
            models=models,
            progress=progress,
        )
        return _summarise(plan, begun, output)


@dataclass(frozen=True, eq=False)
class StudyWorker:
    """Computes shards; the last model stays for the next one."""

    plan: Plan
    models: runs.ModelLoader

    def compute(self, units: Sequence[Shard], save: runs.Save, advance: runs.Advance) -> None:
        """Compute shards job by job, each batch in its order."""
        for job, shards in groupby(units, key=lambda shard: shard.job):
            # in a function, at whose end nothing holds the model: the next one is loaded then
            self._compute(self.plan.jobs[job], list(shards), save, advance)

    def _compute(
        self, job: Job, shards: Sequence[Shard], save: runs.Save, advance: runs.Advance
    ) -> None:
        plan, engine = self.plan, self.plan.config.choose_engine()
        clip = self.models.load_same(job.model, engine.device, job.fingerprint, "study")
        explainer = BatchExplainer(job, clip)
        names, size = plan.files.names, plan.config.batch_size
        loader = ImageLoader(plan.images, names, clip.processor, job.size, size)
        batches = [batch for shard in shards for batch in shard.batches]
        decoders = engine.processes if engine.name == "local" else None
        with load_batches(loader, batches, decoders) as loaded:
            for shard in shards:
                parts = []
                for batch in islice(loaded, len(shard.batches)):
                    parts.append(explainer.explain(batch))
                    advance(len(batch.indices))
                save(shard.name, to_bytes(join(parts), shard))


def _summarise(plan: Plan, begun: manifests.Content, output: runs.Storage) -> StudyResult:
    """One pass over all shards in order, then every file; the statistics come last."""
    summaries = [_sum_up(plan, number, output) for number in range(len(plan.jobs))]
    skipped_files = _skipped_files(plan, summaries)
    counts = [{"images": s.sums.images, "skipped": len(s.skipped)} for s in summaries]
    done = {**begun, "state": "maps done", "counts": counts, "skipped": skipped_files}
    output.write(manifests.NAME, manifests.to_bytes(done))
    if not any(summary.sums.images for summary in summaries):
        raise InputError(
            f"none of the {len(plan.files)} images can be read; the first: "
            f"{skipped_files[0]['reason']} All reasons are in {output.root}/{manifests.NAME}."
        )
    for summary in summaries:
        output.write(f"{results.MEAN_MAPS}/{summary.job.key}.npz", results.mean_maps_npz(summary))
    for name, content in results.pictures(summaries):
        output.write(name, content)
    if len(summaries) > 1:
        output.write(results.CORRELATIONS, results.correlations_csv(summaries))
    if plan.config.centred:
        output.write(results.CENTRING, results.centring_csv(summaries))
    output.write(results.STATISTICS, results.statistics_csv(summaries))
    skipped_reasons = {entry["file"]: entry["reason"] for entry in skipped_files}
    return StudyResult(output.root, len(plan.files), skipped_reasons)


def _sum_up(plan: Plan, number: int, output: runs.Storage) -> Summary:
    """The sums over all shards of a job, in float64 and in order; and what was left out."""
    job = plan.jobs[number]
    skipped: dict[int, str] = {}

    def parts() -> Iterator[Accumulator]:
        for shard in plan.shards:
            if shard.job == number:
                explained = runs.read_unit(output, shard, parse_shard)
                skipped.update(explained.skipped)
                yield Accumulator.of(explained, job.centred)

    return Summary(job, reduce(Accumulator.merge, parts()), skipped)


def _skipped_files(plan: Plan, summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """Each file with its reason, and the jobs where it is not all of them."""
    keys_of: dict[tuple[int, str], list[str]] = {}
    for summary in summaries:
        for index, reason in summary.skipped.items():
            keys_of.setdefault((index, reason), []).append(summary.job.key)
    return [
        {
            "file": plan.files.names[index],
            "reason": reason,
            **({} if len(keys) == len(plan.jobs) else {"subjects": keys}),
        }
        for (index, reason), keys in sorted(keys_of.items())
    ]
